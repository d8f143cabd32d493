// The end of every system call: where LSM and fexit are denied, events are made from the arguments that pt_regs still has.
//
// It taxes every call, so it does as little as can be: one table, filled with the handlers of the calls that are asked for. A
// handler is a program behind a tail call; it gets the hook's own arguments, pt_regs and the result.

PROGRAM(on_sys_exit)
{
    u64 number = READ(pt_regs, orig_ax, (void *)ctx->args[0]);
    if (number >= SYS_EXIT_COMPAT)
        return 0;
    if (is_compat((void *)bpf_get_current_task_btf()))
        number += SYS_EXIT_COMPAT;
    calls_sys_exit.call(ctx, number); // falls through where nobody asks for this call
    return 0;
}
