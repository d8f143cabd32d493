// fork: a process made a child process. The caller is current; its exec id goes over to the child.

#define CLONE_THREAD 0x10000

PROGRAM(on_fork)
{
    void *child = (void *)ctx->args[0];
    u64 flags = ctx->args[1];
    if (flags & CLONE_THREAD)
        return 0;

    u32 ring = bpf_get_smp_processor_id(), zero = 0;
    struct books *book = books.lookup(&ring);
    struct settings *set = settings.lookup(&zero);
    if (!book || !set)
        return 0;
    struct kind_books *kind = &book->kinds[KIND_fork];
    count(kind->attempted);

    void *task = (void *)bpf_get_current_task_btf();
    void *leader = leader_of(task);
    struct identity_key key, child_key;
    key_of(&key, leader);
    child_key.pid = READ(task_struct, tgid, child);
    u64 child_start = READ(task_struct, start_boottime, child);
    child_key.start = child_start / TICK;
    struct identity *self = identities.lookup(&key);
    if (self)
        remember(book, &child_key, self->exec_id, self->flags);
    know_child(self, leader, child, &child_key, child_start, flags);
    if (!wanted(set, kind, KIND_fork, self ? self->flags : 0))
        return 0;

    struct chunk *chunk = head_reserve(set, book, kind, ring, KIND_fork);
    if (!chunk)
        return 0;
    struct payload_fork *head = &chunk->fork;
    fill_common(&chunk->common, set, task, leader, self);
    head->flags = flags;
    head->child_start = child_start;
    head->child_pid = child_key.pid;
    head->child_ns_pid = ns_pid_of_child(child, child_key.pid);
    chunk_submit(chunk);
    return 0;
}
