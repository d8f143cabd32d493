// exec_failed: an execve or execveat that returned an error, seen at the end of the system call; there the arguments can be
// read once more from where the caller has them. It runs for every exec, so the way out comes first.
//
// Strings lie scattered in the caller's memory: they are gathered in scratch memory, argv then environment. That is more than
// there could be slots for (slot.h): each CPU has one, and where another task's run holds it, the event is lost and booked.

#define NR_execveat 322
#define NR_execveat_32 358
#define ERESTARTSYS 512
#define ERESTART_RESTARTBLOCK 516

#define STRINGS_STEPS 500     // strings per program; a tail call goes on
#define STRINGS_CALLS 7       // of the kernel's 33 tail calls: 4,000 strings; the entry has 1, paths 6, the stream needs 16
#define ARGUMENT_ROOM 131072  // Linux's own limit for one string
#define FAILED_BUFFER (MIDDLE + STRING_ROOM + ARGUMENTS + ARGUMENT_ROOM + PAYLOAD)
#define FAILED_LIMIT (MIDDLE + STRING_ROOM + ARGUMENTS)

struct failed_scratch {
    u64 owner; // task; 0: free
    struct walk walk;
    struct stream stream;
    u64 pointers[2]; // argv, envp: where the next pointer stands
    u32 counts[2];
    u32 width;       // of a pointer
    u32 which;       // 0: argv, 1: environment, 2: both done
    u32 rounds;
    u32 stage;
    u32 back;
    u32 faults;
    struct payload_exec_failed head;
    char buffer[FAILED_BUFFER];
};

BPF_ARRAY(failed_scratches, struct failed_scratch, RINGS);

static __always_inline struct failed_scratch *failed_take(struct kind_books *kind, u32 ring)
{
    struct failed_scratch *s = failed_scratches.lookup(&ring);
    if (s && !__sync_val_compare_and_swap(&s->owner, 0, bpf_get_current_task()))
        return s;
    count(kind->lost_slot);
    return 0;
}

static __always_inline int failed_mine(const struct failed_scratch *s)
{
    return s->owner == bpf_get_current_task();
}

static __always_inline void failed_give(struct failed_scratch *s)
{
    s->owner = 0;
}

// A tail call before the head fell through.
static __always_inline void failed_lost(struct failed_scratch *s, struct books *book)
{
    count(book->kinds[KIND_exec_failed].lost_call);
    failed_give(s);
}

// One after it.
static __always_inline void failed_cut(struct failed_scratch *s, struct books *book, u32 ring)
{
    count(book->cut_calls);
    stream_cut(&s->stream, book, ring, CAPPED);
    failed_give(s);
}

// The three pointers of the call.
static __always_inline u64 exec_arguments(struct failed_scratch *s, void *task, void *regs)
{
    u64 number = READ(pt_regs, orig_ax, regs);
    int compat = is_compat(task), at = compat ? number == NR_execveat_32 : number == NR_execveat;
    s->width = compat ? 4 : 8;
    if (compat) {
        u32 second = READ(pt_regs, cx, regs), third = READ(pt_regs, dx, regs);
        s->pointers[0] = at ? third : second;
        s->pointers[1] = at ? (u32)READ(pt_regs, si, regs) : third;
        return at ? second : (u32)READ(pt_regs, bx, regs);
    }
    u64 second = READ(pt_regs, si, regs), third = READ(pt_regs, dx, regs);
    s->pointers[0] = at ? third : second;
    s->pointers[1] = at ? READ(pt_regs, r10, regs) : third;
    return at ? second : READ(pt_regs, di, regs);
}

// A path takes at most STRING_ROOM bytes with its NUL, an argument ARGUMENT_ROOM: was this one longer?
static __always_inline int is_longer(const void *string, u32 room)
{
    char last = 0;
    bpf_probe_read_user(&last, 1, string + room - 1);
    return last != 0;
}

static __always_inline void path_read(struct failed_scratch *s, const void *path, u32 cap)
{
    struct promise *promise = &s->head.path;
    append_string(s->buffer, &s->back, MIDDLE, path, 1, cap, promise);
    if (promise->of == UNKNOWN)
        s->faults |= 1 << PROMISE_exec_path;
    if (promise->of == STRING_ROOM - 1 && is_longer(path, STRING_ROOM))
        promise->of = UNKNOWN;
}

// Past the point of no return the caller's memory is replaced: what lies at its addresses now is not what it passed.
// The new memory gets its env_end when the program is in place, and then nothing can fail any more.
static __always_inline int memory_is_gone(void *task)
{
    return !LOAD(mm_struct, env_end, LOAD(task_struct, mm, task));
}

static __always_inline void all_fault(struct failed_scratch *s, struct settings *set)
{
    s->faults = 1 << PROMISE_exec_path | 1 << PROMISE_exec_argv;
    s->head.path.of = s->head.argv.of = UNKNOWN;
    if (set->environment) {
        s->faults |= 1 << PROMISE_exec_environment;
        s->head.environment.of = UNKNOWN;
    }
    s->counts[0] = s->counts[1] = UNKNOWN;
    s->which = 2;
}

PROGRAM(failed_exit)
{
    long result = ctx->args[1];
    if (result >= 0 || result < -4095 || (result <= -ERESTARTSYS && result >= -ERESTART_RESTARTBLOCK))
        return 0;
    struct event event;
    if (!event_begin(&event, KIND_exec_failed) || !wanted(event.set, event.kind, KIND_exec_failed, event_flags(&event)))
        return 0;
    struct settings *set = event.set;
    struct failed_scratch *s = failed_take(event.kind, event.ring);
    if (!s)
        return 0;
    void *task = event.task;
    u64 path = exec_arguments(s, task, (void *)ctx->args[0]);
    struct payload_exec_failed *head = &s->head;
    fill_common((struct payload_common *)head, set, task, event.leader, event.self);
    fill_exec((struct payload_exec *)head, task);
    head->errno = -result;
    s->back = MIDDLE;
    s->faults = s->which = s->rounds = 0;
    s->counts[0] = s->counts[1] = 0;
    head->path.of = head->path.have = head->interpreter.of = head->interpreter.have = 0;
    head->argv.of = head->argv.have = head->environment.of = head->environment.have = 0;
    if (memory_is_gone(task))
        all_fault(s, set);
    else
        path_read(s, (void *)path, set->cap_path);

    s->stage = WALK_CWD;
    s->walk.calls = 0;
    walk_cwd(&s->walk, s->buffer, task, set->cap_path);
    calls_exec_failed.call(ctx, CALL_failed_walk);
    failed_lost(s, event.book);
    return 0;
}

PROGRAM(failed_walk)
{
    u32 ring = bpf_get_smp_processor_id(), zero = 0;
    struct books *book = books.lookup(&ring);
    struct settings *set = settings.lookup(&zero);
    struct failed_scratch *s = failed_scratches.lookup(&ring);
    if (!book || !set || !s || !failed_mine(s))
        return 0;
    struct promise *promise = s->stage == WALK_CWD ? &s->head.cwd : &s->head.executable;
    int ended = walk_on(&s->walk, s->buffer, EXEC_PATHS, promise);
    if (!ended && ++s->walk.calls >= WALK_CALLS / 2) {
        walk_give_up(book, &s->walk, promise);
        ended = 1;
    }
    if (ended && s->stage == WALK_EXECUTABLE)
        calls_exec_failed.call(ctx, CALL_failed_strings);
    if (ended && s->stage == WALK_CWD) {
        s->stage = WALK_EXECUTABLE;
        walk_executable(&s->walk, s->buffer, (void *)bpf_get_current_task_btf(), set->cap_path);
    }
    calls_exec_failed.call(ctx, CALL_failed_walk);
    failed_lost(s, book);
    return 0;
}

// What was read of a list so far is all that can be had.
static __always_inline void strings_end(struct failed_scratch *s, struct promise *promise)
{
    promise->of = UNKNOWN;
    s->counts[s->which & 1] = UNKNOWN;
    s->which++;
}

static __always_inline void strings_fault(struct failed_scratch *s, struct promise *promise)
{
    s->faults |= 1 << (s->which ? PROMISE_exec_environment : PROMISE_exec_argv);
    strings_end(s, promise);
}

// Take the next string of a list. Beyond its cap a string is read to be counted, not kept.
static __always_inline void strings_step(struct failed_scratch *s, struct promise *promise, u32 cap)
{
    u64 pointer = 0, list = s->pointers[s->which & 1];
    int width = s->width;
    if (!list) {
        s->which++;
        return;
    }
    if (bpf_probe_read_user(&pointer, width == 4 ? 4 : 8, (void *)list)) {
        strings_fault(s, promise);
        return;
    }
    if (!pointer) {
        s->which++;
        return;
    }
    u64 at = bound(s->back, FAILED_LIMIT);
    int n = bpf_probe_read_user_str(s->buffer + at, ARGUMENT_ROOM, (void *)pointer);
    if (n < 0) {
        strings_fault(s, promise);
        return;
    }
    if (n == 0) { // an empty string, as kernels before 6.13 or so count it
        s->buffer[at] = 0;
        n = 1;
    }
    int longer = n == ARGUMENT_ROOM && is_longer((void *)pointer, ARGUMENT_ROOM);
    n -= longer; // the NUL at its end is not the caller's
    if (promise->of == promise->have) {
        u32 fits = smaller(n, cap - promise->have);
        promise->have += fits;
        s->back = at + fits;
    }
    if (longer) {
        strings_end(s, promise);
        return;
    }
    promise->of += n;
    s->counts[s->which & 1]++;
    s->pointers[s->which & 1] = list + width;
}

PROGRAM(failed_strings)
{
    u32 ring = bpf_get_smp_processor_id(), zero = 0;
    struct books *book = books.lookup(&ring);
    struct settings *set = settings.lookup(&zero);
    struct failed_scratch *s = failed_scratches.lookup(&ring);
    if (!book || !set || !s || !failed_mine(s))
        return 0;
    for (int i = 0; i < STRINGS_STEPS; i++) {
        if (s->which == 0)
            strings_step(s, &s->head.argv, set->cap_argv);
        else if (s->which == 1 && set->environment)
            strings_step(s, &s->head.environment, set->cap_environment);
        else
            calls_exec_failed.call(ctx, CALL_failed_emit);
    }
    if (s->rounds++ < STRINGS_CALLS) {
        calls_exec_failed.call(ctx, CALL_failed_strings);
    } else { // capped: how much there would have been is not known
        count(book->cut_calls);
        if (s->which == 0)
            s->head.argv.of = s->counts[0] = UNKNOWN;
        s->head.environment.of = s->counts[1] = UNKNOWN;
        calls_exec_failed.call(ctx, CALL_failed_emit);
    }
    failed_lost(s, book);
    return 0;
}

PROGRAM(failed_emit)
{
    u32 ring = bpf_get_smp_processor_id(), zero = 0;
    struct books *book = books.lookup(&ring);
    struct settings *set = settings.lookup(&zero);
    struct failed_scratch *s = failed_scratches.lookup(&ring);
    if (!book || !set || !s || !failed_mine(s))
        return 0;
    struct stream *stream = &s->stream;
    s->head.argc = s->counts[0];
    s->head.envc = s->counts[1];
    stream->at = s->walk.at;
    stream->local_left = s->back - s->walk.at;
    stream->user_left = stream->next_left = 0;
    stream->kind = KIND_exec_failed;
    int sent = head_send(stream, set, book, &book->kinds[KIND_exec_failed], ring, &s->head, s->buffer, FAILED_BUFFER,
                         ROOM_exec_failed, s->faults);
    if (sent == HEAD_AND_MORE) {
        calls_exec_failed.call(ctx, CALL_failed_stream);
        failed_cut(s, book, ring);
    } else {
        failed_give(s);
    }
    return 0;
}

PROGRAM(failed_stream)
{
    u32 ring = bpf_get_smp_processor_id();
    struct books *book = books.lookup(&ring);
    struct failed_scratch *s = failed_scratches.lookup(&ring);
    if (!book || !s || !failed_mine(s))
        return 0;
    for (int i = 0; i < STREAM_STEPS; i++)
        if (local_step(&s->stream, s->buffer, FAILED_BUFFER, book, ring)) {
            failed_give(s);
            return 0;
        }
    calls_exec_failed.call(ctx, CALL_failed_stream);
    failed_cut(s, book, ring);
    return 0;
}
