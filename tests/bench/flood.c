// A flood: each system call of the marked process writes one event of one chunk, through the project's own chunk writer.

BPF_ARRAY(marked, u32, 1);
BPF_RINGBUF_OUTPUT(flooded, PAGES);

int on_enter(struct bpf_raw_tracepoint_args *ctx)
{
    u32 ring = bpf_get_smp_processor_id(), zero = 0;
    u32 pid = bpf_get_current_pid_tgid() >> 32;
    u32 *wanted = marked.lookup(&zero);
    struct books *book = books.lookup(&ring);
    struct settings *set = settings.lookup(&zero);
    if (!wanted || *wanted != pid || !book || !set)
        return 0;
    struct kind_books *kind = &book->kinds[KIND_fork];
    count(kind->attempted);
    struct chunk *chunk = head_reserve(set, book, kind, ring, KIND_fork);
    if (!chunk)
        return 0;
    __builtin_memset(chunk->data, 0, PAYLOAD);
    chunk->common.pid = pid;
    chunk->common.tid = pid;
    chunk_submit(chunk);
    return 0;
}
