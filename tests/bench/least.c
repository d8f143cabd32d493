// The least that a program could do for an event: count it, and write one numbered and timed chunk that says nothing, by the
// project's own chunk writer. At a TCP socket's change of state two for each connection (it was asked for, it came about); at the
// kernel's tree of mappings, where raw tracepoints see a new mapping first, one for each that can be executed.

#define TCP_ESTABLISHED 1
#define TCP_SYN_SENT 2
#define VM_EXEC 4

BPF_RINGBUF_OUTPUT(least, PAGES);

static __always_inline void write_least(void)
{
    u32 ring = bpf_get_smp_processor_id(), zero = 0;
    struct books *book = books.lookup(&ring);
    struct settings *set = settings.lookup(&zero);
    if (!book || !set)
        return;
    struct kind_books *kind = &book->kinds[KIND_fork];
    count(kind->attempted);
    struct chunk *chunk = head_reserve(set, book, kind, ring, KIND_fork);
    if (chunk)
        chunk_submit(chunk);
}

int on_state(struct bpf_raw_tracepoint_args *ctx)
{
    int before = ctx->args[1], after = ctx->args[2];
    if (after == TCP_SYN_SENT || (before == TCP_SYN_SENT && after == TCP_ESTABLISHED))
        write_least();
    return 0;
}

// It runs twice for each change: once by the name of what was asked for (mas_store…), once by that of how it is done (mas_wr_…).
int on_mapping(struct bpf_raw_tracepoint_args *ctx)
{
    char name[5] = {};
    void *vma = (void *)ctx->args[3], *mm = (void *)LOAD(task_struct, mm, bpf_get_current_task_btf());
    if (!vma || (void *)READ(ma_state, tree, (void *)ctx->args[1]) != AT(mm_struct, mm_mt, mm))
        return 0;
    bpf_probe_read_kernel(name, sizeof(name), (void *)ctx->args[0]);
    if (name[4] == 's' && READ(vm_area_struct, vm_flags, vma) & VM_EXEC)
        write_least();
    return 0;
}
