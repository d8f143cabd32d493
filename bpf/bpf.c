// bpf_load, bpf_unload: what the kernel would tell perf of each BPF program.

#define PROG_LOAD 1 // enum perf_bpf_event_type
#define PROG_UNLOAD 2
#define BPF_PROG_LOAD_COMMAND 5

// bpf_unload's head is bpf_load's; `number` and `room` are the kind's.
static __always_inline void bpf_send(void *prog, u16 number, u32 room)
{
    struct event event;
    struct payload_bpf_load *head = slot_begin(&event, number);
    if (!head)
        return;
    void *aux = (void *)READ(bpf_prog, aux, prog);
    head->program_id = READ(bpf_prog_aux, id, aux);
    head->program_type = READ(bpf_prog, type, prog);
    head->attach_type = READ(bpf_prog, expected_attach_type, prog);
    head->instructions = READ(bpf_prog, len, prog);
    head->jited = READ(bpf_prog, jited_len, prog);
    bpf_probe_read_kernel(head->tag, sizeof(head->tag), AT(bpf_prog, tag, prog));
    name_add(&event, &head->name, AT(bpf_prog_aux, name, aux));
    name_add(&event, &head->attach_to, (void *)READ(bpf_prog_aux, attach_func_name, aux));
    texts_send(&event, room);
}

#ifdef WITH_bpf_load_fexit
PROGRAM(bpf_loaded)
{
    if (ARGUMENT(perf_event_bpf_event, type) == PROG_LOAD)
        bpf_send((void *)ARGUMENT(perf_event_bpf_event, prog), KIND_bpf_load, ROOM_bpf_load);
    return 0;
}
#endif

#ifdef WITH_bpf_load_sys_exit
PROGRAM(bpf_called)
{
    long fd = ctx->args[1];
    void *regs = (void *)ctx->args[0], *task = (void *)bpf_get_current_task_btf();
    u32 command = is_compat(task) ? READ(pt_regs, bx, regs) : READ(pt_regs, di, regs);
    if (fd < 0 || command != BPF_PROG_LOAD_COMMAND)
        return 0;
    void *prog = (void *)READ(file, private_data, file_of(task, fd));
    if (prog && READ(bpf_prog_aux, prog, READ(bpf_prog, aux, prog)) == (u64)prog) // else another thread closed it
        bpf_send(prog, KIND_bpf_load, ROOM_bpf_load);
    return 0;
}
#endif

#ifdef WITH_bpf_unload_fexit
PROGRAM(bpf_unloaded)
{
    if (ARGUMENT(perf_event_bpf_event, type) == PROG_UNLOAD)
        bpf_send((void *)ARGUMENT(perf_event_bpf_event, prog), KIND_bpf_unload, ROOM_bpf_unload);
    return 0;
}
#endif
