// exec: sched_process_exec comes after the point of no return, with the new program's memory in place. Five programs:
// the hook fills the head and reads the names; `walk` the paths; `emit` sends the head; `local` and `stream` send the data.

#define EXEC_BUFFER (MIDDLE + 2 * STRING_ROOM + 2 * PAYLOAD + NAME_ROOM)

struct exec_scratch {
    struct walk walk;
    struct stream stream;
    u64 flags; // of the identity
    u32 stage;
    u32 back;
    u32 faults;
    struct payload_exec head;
    char buffer[EXEC_BUFFER];
};

BPF_ARRAY(exec_scratches, struct exec_scratch, RINGS);

#ifdef WITH_exec_lsm
// The file that the call opened, while that is known: where it is a script, another one runs in the end. The next exec overwrites
// it, the task's end takes it away; a failed exec leaves nothing that another could take for its own.
struct opened {
    u64 bprm, inode, number;
};

BPF_TASK_STORAGE(opened_files, struct opened);

PROGRAM(exec_opened)
{
    struct opened *opened =
        opened_files.task_storage_get(bpf_get_current_task_btf(), 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
    if (!opened)
        return 0;
    void *bprm = (void *)ctx->args[0];
    opened->bprm = (u64)bprm;
    opened->inode = LOAD(file, f_inode, LOAD(linux_binprm, file, bprm));
    opened->number = LOAD(inode, i_ino, opened->inode);
    return 0;
}

static __always_inline u64 script_inode(void *task, void *bprm)
{
    struct opened *opened = opened_files.task_storage_get(bpf_get_current_task_btf(), 0, 0);
    u64 runs = LOAD(file, f_inode, LOAD(mm_struct, exe_file, LOAD(task_struct, mm, task)));
    return opened && opened->bprm == (u64)bprm && opened->inode != runs ? opened->number : 0;
}
#else
#define script_inode(task, bprm) 0
#endif

// What an exec that nobody will hear of runs under: an id that no chunk has.
static __always_inline void remember_hidden(struct books *book, struct identity_key *key, u32 ring, u64 flags)
{
    u64 id = hidden_id(book, ring);
    remember_exec(book, key, id, flags);
    know_exec(id, flags);
}

// A tail call before the head fell through.
static __always_inline void exec_lost(struct exec_scratch *s, struct books *book, u32 ring)
{
    struct identity_key key = {.start = s->head.start / TICK, .pid = s->head.pid};
    count(book->kinds[KIND_exec].lost_call);
    remember_hidden(book, &key, ring, s->flags);
}

PROGRAM(on_exec)
{
    u32 ring = bpf_get_smp_processor_id(), zero = 0;
    struct books *book = books.lookup(&ring);
    struct settings *set = settings.lookup(&zero);
    struct exec_scratch *s = exec_scratches.lookup(&ring);
    if (!book || !set || !s)
        return 0;
    struct kind_books *kind = &book->kinds[KIND_exec];
    count(kind->attempted);

    void *task = (void *)bpf_get_current_task_btf(), *bprm = (void *)ctx->args[2];
    void *leader = leader_of(task);
    struct identity_key key;
    key_of(&key, leader);
    struct identity *self = identities.lookup(&key);
    u64 flags = self ? self->flags : 0;
    if (!wanted(set, kind, KIND_exec, flags)) {
        remember_hidden(book, &key, ring, flags);
        return 0;
    }

    fill_common((struct payload_common *)&s->head, set, task, leader, self);
    fill_exec(&s->head, task);
    s->head.script_inode = script_inode(task, bprm);
    s->head.argc = READ(linux_binprm, argc, bprm);
    s->head.envc = READ(linux_binprm, envc, bprm);
    s->flags = flags;
    s->faults = 0;
    s->back = MIDDLE;

    u64 name = READ(linux_binprm, filename, bprm), interpreter = READ(linux_binprm, interp, bprm);
    append_string(s->buffer, &s->back, MIDDLE + STRING_ROOM, (void *)name, 0, set->cap_path, &s->head.path);
    s->head.interpreter.of = s->head.interpreter.have = 0;
    if (interpreter != name)
        append_string(s->buffer, &s->back, MIDDLE + STRING_ROOM, (void *)interpreter, 0, set->cap_path,
                      &s->head.interpreter);

    s->stage = WALK_CWD;
    s->walk.calls = 0;
    walk_cwd(&s->walk, s->buffer, task, set->cap_path);
    if (walk_short(&s->walk, s->buffer, EXEC_PATHS, &s->head.cwd)) {
        s->stage = WALK_EXECUTABLE;
        walk_executable(&s->walk, s->buffer, task, set->cap_path);
        if (walk_short(&s->walk, s->buffer, EXEC_PATHS, &s->head.executable))
            calls_exec.call(ctx, CALL_exec_emit);
    }
    calls_exec.call(ctx, CALL_exec_walk);
    exec_lost(s, book, ring);
    return 0;
}

PROGRAM(exec_walk)
{
    u32 ring = bpf_get_smp_processor_id(), zero = 0;
    struct books *book = books.lookup(&ring);
    struct settings *set = settings.lookup(&zero);
    struct exec_scratch *s = exec_scratches.lookup(&ring);
    if (!book || !set || !s)
        return 0;
    struct promise *promise = s->stage == WALK_CWD ? &s->head.cwd : &s->head.executable;
    int ended = walk_on(&s->walk, s->buffer, EXEC_PATHS, promise);
    if (!ended && ++s->walk.calls >= WALK_CALLS) {
        walk_give_up(book, &s->walk, promise);
        ended = 1;
    }
    if (ended && s->stage == WALK_EXECUTABLE)
        calls_exec.call(ctx, CALL_exec_emit);
    if (ended && s->stage == WALK_CWD) {
        s->stage = WALK_EXECUTABLE;
        walk_executable(&s->walk, s->buffer, (void *)bpf_get_current_task_btf(), set->cap_path);
    }
    calls_exec.call(ctx, CALL_exec_walk);
    exec_lost(s, book, ring);
    return 0;
}

// Fill the last chunk of scratch memory up with the first of the arguments, so that the rest can be sent from where it is.
static __always_inline void join_arguments(struct exec_scratch *s, struct stream *stream)
{
    u64 back = bound(s->back, MIDDLE + 2 * STRING_ROOM);
    u64 rest = PAYLOAD - stream->local_left % PAYLOAD;
    u64 more = bound(smaller(rest, stream->user_left), PAYLOAD);
    if (bpf_probe_read_user(s->buffer + back, more, (void *)stream->user)) {
        s->faults |= 1 << PROMISE_exec_argv | 1 << PROMISE_exec_environment;
        stream->user_left = stream->next_left = 0;
        return;
    }
    stream->user += more;
    stream->user_left -= more;
    stream->local_left += more;
    if (more < rest && stream->next_left) {
        u64 extra = bound(smaller(rest - more, stream->next_left), PAYLOAD);
        back = bound(back + more, MIDDLE + 2 * STRING_ROOM + PAYLOAD);
        if (bpf_probe_read_user(s->buffer + back, extra, (void *)stream->next)) {
            s->faults |= 1 << PROMISE_exec_environment;
            stream->next_left = 0;
            return;
        }
        stream->user = stream->next + extra;
        stream->user_left = stream->next_left - extra;
        stream->next_left = 0;
        stream->local_left += extra;
    }
}

PROGRAM(exec_emit)
{
    u32 ring = bpf_get_smp_processor_id(), zero = 0;
    struct books *book = books.lookup(&ring);
    struct settings *set = settings.lookup(&zero);
    struct exec_scratch *s = exec_scratches.lookup(&ring);
    if (!book || !set || !s)
        return 0;
    struct kind_books *kind = &book->kinds[KIND_exec];
    struct stream *stream = &s->stream;
    struct payload_exec *head = &s->head;
    u64 mm = LOAD(task_struct, mm, bpf_get_current_task_btf());
    u64 arguments = LOAD(mm_struct, arg_start, mm), environment = LOAD(mm_struct, env_start, mm);

    head->argv.of = LOAD(mm_struct, arg_end, mm) - arguments;
    head->argv.have = smaller(head->argv.of, set->cap_argv);
    head->environment.of = set->environment ? LOAD(mm_struct, env_end, mm) - environment : 0;
    head->environment.have = smaller(head->environment.of, set->cap_environment);

    stream->user = arguments;
    stream->user_left = head->argv.have;
    stream->next = environment;
    stream->next_left = head->environment.have;
    if (environment == arguments + head->argv.have) { // one range, as the kernel lays them out
        stream->user_left += stream->next_left;
        stream->next_left = 0;
    }
    stream->at = s->walk.at;
    stream->local_left = s->back - s->walk.at;
    join_arguments(s, stream);
    if (s->faults & 1 << PROMISE_exec_argv)
        head->argv.have = 0;
    if (s->faults)
        head->environment.have = 0;
    stream->kind = KIND_exec;
    int sent = head_send(stream, set, book, kind, ring, head, s->buffer, EXEC_BUFFER, ROOM_exec, s->faults);
    struct identity_key key = {.start = head->start / TICK, .pid = head->pid};
    remember_exec(book, &key, stream->id, s->flags);
    know_exec(stream->id, s->flags);
    if (sent != HEAD_AND_MORE)
        return 0;
    calls_exec.call(ctx, CALL_exec_local);
    count(book->cut_calls);
    stream_cut(stream, book, ring, CAPPED);
    return 0;
}

// First what lies in scratch memory …
PROGRAM(exec_local)
{
    u32 ring = bpf_get_smp_processor_id();
    struct books *book = books.lookup(&ring);
    struct exec_scratch *s = exec_scratches.lookup(&ring);
    if (!book || !s)
        return 0;
    for (int i = 0; i < EXEC_BUFFER / PAYLOAD; i++)
        if (local_step(&s->stream, s->buffer, EXEC_BUFFER, book, ring))
            break;
    if (s->stream.part >= s->stream.parts)
        return 0;
    calls_exec.call(ctx, CALL_exec_stream);
    count(book->cut_calls);
    stream_cut(&s->stream, book, ring, CAPPED);
    return 0;
}

// … then the process's own memory.
PROGRAM(exec_stream)
{
    u32 ring = bpf_get_smp_processor_id();
    struct books *book = books.lookup(&ring);
    struct exec_scratch *s = exec_scratches.lookup(&ring);
    if (!book || !s)
        return 0;
    for (int i = 0; i < STREAM_STEPS; i++)
        if (user_step(&s->stream, book, ring))
            break;
    if (s->stream.part < s->stream.parts && s->stream.user_left < PAYLOAD && s->stream.next_left)
        straddle(&s->stream, book, ring);
    if (s->stream.part >= s->stream.parts)
        return 0;
    calls_exec.call(ctx, CALL_exec_stream);
    count(book->cut_calls);
    stream_cut(&s->stream, book, ring, CAPPED);
    return 0;
}
