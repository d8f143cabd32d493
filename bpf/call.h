// The arguments of a system call as pt_regs still has them at its end, for 64-bit and for 32-bit programs.

#define TS_COMPAT 2

static __always_inline int is_compat(void *task)
{
    return LOAD(task_struct, thread_info__status, task) & TS_COMPAT;
}

static __always_inline u64 first_argument(void *task, void *regs)
{
    return is_compat(task) ? (u32)READ(pt_regs, bx, regs) : READ(pt_regs, di, regs);
}

static __always_inline u64 second_argument(void *task, void *regs)
{
    return is_compat(task) ? (u32)READ(pt_regs, cx, regs) : READ(pt_regs, si, regs);
}
