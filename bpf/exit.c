// exit: the last thread of a process ended; it need not be the leader.
//
// Two threads that end at once can both see `live` at 0. Newer kernels say as the hook's second argument which of them is the
// last (group_dead; the loader asks BTF whether it is there). On older ones the first to claim the process's
// identity speaks; one that finds no identity does not, unless it is alone: another thread took it.

#define SIGNAL_GROUP_EXIT 4

PROGRAM(on_exit)
{
    void *task = (void *)bpf_get_current_task_btf();
    void *signal = (void *)LOAD(task_struct, signal, task);
#ifdef GROUP_DEAD
    if (!(ctx->args[1] & 1))
        return 0;
#else
    if (LOAD(signal_struct, live, signal))
        return 0;
#endif

    u32 ring = bpf_get_smp_processor_id(), zero = 0;
    struct books *book = books.lookup(&ring);
    struct settings *set = settings.lookup(&zero);
    if (!book || !set)
        return 0;

    void *leader = leader_of(task);
    know_end(leader);
    struct identity_key key;
    struct identity copy = {};
    key_of(&key, leader);
    struct identity *self = identities.lookup(&key);
    if (self) {
        if (__sync_fetch_and_add(&self->ended, 1))
            return 0;
        copy = *self;
        identities.delete(&key);
    }
#ifndef GROUP_DEAD
    else if (LOAD(signal_struct, nr_threads, signal) > 1) {
        return 0;
    }
#endif
    struct kind_books *kind = &book->kinds[KIND_exit];
    count(kind->attempted);
    if (!wanted(set, kind, KIND_exit, copy.flags))
        return 0;

    struct chunk *chunk = head_reserve(set, book, kind, ring, KIND_exit);
    if (!chunk)
        return 0;
    struct payload_exit *head = &chunk->exit;
    fill_common(&chunk->common, set, task, leader, &copy);
    u32 status = LOAD(signal_struct, flags, signal) & SIGNAL_GROUP_EXIT ? LOAD(signal_struct, group_exit_code, signal)
                                                                      : LOAD(task_struct, exit_code, leader);
    head->code = status >> 8 & 0xff;
    head->signal = status & 0x7f;
    head->core = status >> 7 & 1;
    head->utime = LOAD(signal_struct, utime, signal) + LOAD(task_struct, utime, task);
    head->stime = LOAD(signal_struct, stime, signal) + LOAD(task_struct, stime, task);
    head->runtime =
        LOAD(signal_struct, sum_sched_runtime, signal) + LOAD(task_struct, se__sum_exec_runtime, task);
    if (task != leader) {
        head->utime += LOAD(task_struct, utime, leader);
        head->stime += LOAD(task_struct, stime, leader);
        head->runtime += LOAD(task_struct, se__sum_exec_runtime, leader);
    }
    chunk_submit(chunk);
    return 0;
}
