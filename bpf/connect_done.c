// connect_done: what became of a connection that was under way when its call came back.
//
// What is under way stands in `connectings` until the TCP socket's state says how it ended, which can be in an interrupt, on any
// CPU. At the end of __inet_stream_connect the caller still holds the socket's lock: no state changes between our look at it and
// the entry. At a system call's exit it can have changed already, on the same CPU even: there the entry is made inside the call,
// when the state becomes SYN_SENT, and both ends agree by its phase. Which socket that is stands in the task's storage: meanwhile
// another thread can have closed the call's descriptor, or given it to another file.

#define EINPROGRESS 115
#define ECANCELED 125
#define SS_UNCONNECTED 1
#define NR_connect 42
#define NR_connect_32 362

static __always_inline int is_open(u8 state)
{
    return state == TCP_SYN_SENT || state == TCP_SYN_RECV;
}

// Did the call begin something that goes on? An interrupted one does.
static __always_inline int is_on_its_way(long result)
{
    return result >= 0 || result == -EINPROGRESS || is_interrupted(result);
}

#ifdef WITH_connect_done

#define CONNECTINGS 262144
#define CALLING 0  // the call has not come back
#define FOLLOWED 1 // it has: a connect_done will follow
#define OVER 2     // settled before the call came back

struct connecting {
    u64 phase;
    u64 caller; // task whose call has not come back
    u64 id;     // of its connect; 0: it was not reported
    u64 time, flags, error;
    struct socket_kind kind;
    struct payload_common common;
};

BPF_F_TABLE("hash", u64, struct connecting, connectings, CONNECTINGS, BPF_F_NO_PREALLOC);

// The kernel skipped the run that would have ended it: the call's, or that of the socket's state.
static __always_inline void connecting_expired(struct books *book, struct connecting *connecting)
{
    struct kind_books *kind = &book->kinds[connecting->phase == FOLLOWED ? KIND_connect_done : KIND_connect];
    count(kind->attempted);
    count(kind->expired);
}

// How many there are, so that where there are none nobody has to look. Counted before it is there, and until it is gone.
static __always_inline struct books *followed(void)
{
    u32 zero = 0;
    return books.lookup(&zero);
}

static __always_inline void followed_add(s64 n)
{
    struct books *first = followed();
    if (first)
        __sync_fetch_and_add(&first->followed, n);
}

// Non-zero: there is no room.
static __always_inline int connecting_add(struct books *book, u64 sk, struct connecting *connecting)
{
    struct connecting *stale = connectings.lookup(&sk);
    if (stale)
        connecting_expired(book, stale);
    else
        followed_add(1);
    if (connectings.update(&sk, connecting)) {
        if (!stale)
            followed_add(-1);
        return 1;
    }
    if (!stale)
        count(book->joins);
    return 0;
}

static __always_inline void connecting_end(struct books *book, u64 sk)
{
    if (connectings.delete(&sk))
        return;
    followed_add(-1);
    __sync_fetch_and_sub(&book->joins, 1);
}

// Is a connect_done wanted? What a filter hides is booked here, in the caller's process; our own acts go the whole way.
static __always_inline int is_done_wanted(struct event *event)
{
    struct kind_books *kind = &event->book->kinds[KIND_connect_done];
    if (event_flags(event) & TEST || wanted(event->set, kind, KIND_connect_done, event_flags(event)))
        return 1;
    count(kind->attempted);
    return 0;
}

// What its connect says already is taken from there; NULL: that is not reported, or sent.
static __always_inline void connecting_fill(struct connecting *connecting, struct event *event, struct seen *seen,
                                            struct chunk *chunk)
{
    connecting->flags = event_flags(event);
    if (chunk) {
        connecting->id = chunk->id;
        connecting->time = chunk->time;
        connecting->common = chunk->common;
        kind_told(&connecting->kind, &chunk->bind);
    } else {
        connecting->time = bpf_ktime_get_boot_ns();
        fill_common(&connecting->common, event->set, event->task, event->leader, event->self);
        kind_of(&connecting->kind, seen);
    }
}

static __always_inline void done_lost(struct event *event)
{
    count(event->book->kinds[KIND_connect_done].attempted);
    count(event->book->kinds[KIND_connect_done].lost_slot);
}

static __always_inline void follow(struct event *event, struct seen *seen, struct chunk *chunk, u64 id)
{
    struct connecting connecting = {.phase = FOLLOWED, .id = id};
    if (!is_done_wanted(event))
        return;
    connecting_fill(&connecting, event, seen, chunk);
    if (connecting_add(event->book, (u64)seen->sk, &connecting))
        done_lost(event);
}

static __always_inline void done_event(struct settings *set, struct books *book, u32 ring,
                                       struct connecting *connecting, u64 sk, u32 error)
{
    struct kind_books *kind = &book->kinds[KIND_connect_done];
    count(kind->attempted);
    if (connecting->flags & TEST) {
        count(kind->filtered_test);
        return;
    }
    struct chunk *chunk = head_reserve(set, book, kind, ring, KIND_connect_done);
    if (!chunk)
        return;
    struct payload_connect_done *head = &chunk->connect_done;
    chunk->common = connecting->common;
    fill_socket(&chunk->bind, &connecting->kind, error);
    struct seen seen;
    struct sock_begin begin;
    see(&seen, &begin, 0, (void *)sk);
    fill_local(&chunk->bind, &seen);
    fill_remote(&chunk->bind, &seen);
    head->connect_id = connecting->id;
    head->elapsed = chunk->time - connecting->time;
    nameless_send(chunk, &head->local_path);
}

// How a connection failed: by the error that the kernel left on its socket. None: the caller gave up, or, where the socket was not
// even said to be connecting, the call itself failed, and why is not known here. (MPTCP leaves its error later.)
static __always_inline u32 failure(u64 sk)
{
    u32 error = READ(sock, sk_err, sk);
    if (error)
        return error;
    if (READ(sock, sk_protocol, sk) != IPPROTO_TCP)
        return UNKNOWN;
    return READ(socket, state, READ(sock, sk_socket, sk)) == SS_UNCONNECTED ? UNKNOWN : ECANCELED;
}

#ifdef WITH_connect_sys_exit
struct connect_call {
    u64 sk;
    u32 fd;
};

BPF_TASK_STORAGE(connect_calls, struct connect_call);

// Inside a connect call of the current process's own? (MPTCP's inner sockets have no file.)
static __always_inline int is_called(u64 sk)
{
    struct task_struct *task = bpf_get_current_task_btf();
    u64 number = READ(pt_regs, orig_ax, bpf_task_pt_regs(task));
    return number == (is_compat(task) ? NR_connect_32 : NR_connect) && READ(sock, sk_protocol, sk) == IPPROTO_TCP &&
           READ(socket, file, READ(sock, sk_socket, sk));
}

// Is it of a call of the current task's that has not come back?
static __always_inline int is_own_call(struct connecting *connecting)
{
    return connecting->phase != FOLLOWED && connecting->caller == bpf_get_current_task();
}

// A call has begun something; see the file's head.
static __always_inline void connect_called(u64 sk)
{
    struct connecting called = {.phase = CALLING, .caller = bpf_get_current_task()};
    struct task_struct *task = bpf_get_current_task_btf();
    u32 ring = bpf_get_smp_processor_id();
    struct books *book = is_called(sk) ? books.lookup(&ring) : 0;
    if (!book)
        return;
    struct connect_call *call = connect_calls.task_storage_get(task, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
    if (call) {
        u64 last = call->sk;
        struct connecting *stale = connectings.lookup(&last);
        if (stale && last != sk && is_own_call(stale)) {
            connecting_expired(book, stale);
            connecting_end(book, last);
        }
        call->sk = sk;
        call->fd = first_argument(task, (void *)bpf_task_pt_regs(task));
    }
    connecting_add(book, sk, &called);
}

// The socket of the current task's call, if it began something; 0: it did not.
static __always_inline u64 called_socket(u32 fd)
{
    struct connect_call *call = connect_calls.task_storage_get(bpf_get_current_task_btf(), 0, 0);
    if (!call || call->fd != fd)
        return 0;
    u64 sk = call->sk;
    struct connecting *connecting = connectings.lookup(&sk);
    return connecting && is_own_call(connecting) ? sk : 0;
}

// Has the last descriptor gone? Then no call is under way. (Since Linux 6.13, 90ee6ed776c0, the last one but one counts as 0.)
static __always_inline int is_released(u64 sk)
{
    u64 file = READ(socket, file, READ(sock, sk_socket, sk));
    s64 references = READ_IF(file, f_count__counter, file, READ_IF(file, f_ref__refcnt__counter, file, 0));
    return !file || references < !!HAVE_file__f_count__counter;
}
#endif

// Can a change of state end what stands in `connectings`? Where a run was skipped, a socket's last change does, or the first one of
// those whose call's end was skipped: that is when its last descriptor goes.
static __always_inline int can_end(int before, int after)
{
#ifdef WITH_connect_sys_exit
    if (before == TCP_ESTABLISHED)
        return 1;
#endif
    return after == TCP_CLOSE || (is_open(before) && !is_open(after));
}

// A TCP socket's state is no longer that of a connection under way.
static __always_inline void connect_over(u64 sk, int before, int after)
{
    u32 ring = bpf_get_smp_processor_id(), zero = 0;
    struct books *first = followed();
    if (!first || !first->followed) // nearly all changes end here
        return;
    struct connecting *connecting = connectings.lookup(&sk);
    if (!connecting)
        return;
    struct books *book = books.lookup(&ring);
    struct settings *set = settings.lookup(&zero);
    if (!book || !set)
        return;
    u32 error = 0;
    if (after == TCP_CLOSE && is_open(before))
        error = failure(sk);
    else if (after == TCP_CLOSE && before == TCP_CLOSE) // the kernel skipped the run that saw how it ended
        error = UNKNOWN;
#ifdef WITH_connect_sys_exit
    int over = connecting->phase == OVER;
    if (!over) {
        connecting->error = error;
        over = __sync_val_compare_and_swap(&connecting->phase, CALLING, OVER) == CALLING;
    }
    if (over) {
        if (is_released(sk)) { // the call's end was skipped
            connecting_expired(book, connecting);
            connecting_end(book, sk);
        }
        return;
    }
#endif
    done_event(set, book, ring, connecting, sk, error);
    connecting_end(book, sk);
}

#endif
