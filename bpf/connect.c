// connect: a connection was asked for. What is still under way when the call comes back is followed by connect_done.c.

#define EALREADY 114

#ifdef WITH_connect

// What a caller asked for; NULL where that cannot be seen.
struct asked {
    const void *address;
    u32 length;
    int user;
};

// Room for the event; NULL: it is not reported. `earlier`: id of the connect that began what this one found under way, or 0.
static __always_inline struct chunk *connect_reserve(struct event *event, struct seen *seen, long result, u64 earlier)
{
    struct chunk *chunk = event_reserve(event, KIND_connect);
    if (!chunk)
        return 0;
    struct socket_kind kind;
    kind_of(&kind, seen);
    fill_socket(&chunk->bind, &kind, error_of(result));
    chunk->connect.connect_id = earlier ? earlier : chunk->id;
    return chunk;
}

static __always_inline void connect_send(struct event *event, struct chunk *chunk, struct seen *seen, const struct asked *asked,
                                         long result)
{
    struct payload_connect *head = &chunk->connect;
    int is_unix = head->family == AF_UNIX;
    int is_asked = asked && (is_unix ? result : !is_on_its_way(result)); // what was asked for is all there is
    if (!is_unix)
        fill_local(&chunk->bind, seen);
    if (!is_unix && !is_asked) {
        if (!asked || LOAD(sock_common, skc_dport, seen->common) ||
            family_asked(asked->address, asked->length, asked->user) != AF_UNSPEC)
            fill_remote(&chunk->bind, seen);
        nameless_send(chunk, &head->local_path);
        return;
    }
    struct sun_names names = {.cap = event->set->cap_path};
    if (is_unix)
        sun_of(&names, LOCAL, (u64)seen->sk);
    if (is_asked)
        fill_asked(&head->remote_address, &head->remote_port, &names, REMOTE, asked->address, asked->length, asked->user);
    else
        sun_of(&names, REMOTE, READ(unix_sock, peer, seen->sk));
    sun_send(event, chunk, &head->local_path, head->room, ROOM_connect, &names);
}

// The id of the connect that is followed already; 0: none.
static __always_inline u64 earlier_of(u64 sk, long result)
{
#ifdef WITH_connect_done
    if (result == -EALREADY || is_interrupted(result)) {
        struct connecting *connecting = connectings.lookup(&sk);
        if (connecting && connecting->phase == FOLLOWED)
            return connecting->id;
    }
#endif
    return 0;
}

#ifdef WITH_connect_fexit
static __always_inline int connect_end(void *socket, const void *address, u32 length, int result)
{
    struct event event;
    struct seen seen;
    if (!see_known(&seen, socket) || !event_begin(&event, KIND_connect))
        return 0;
    struct asked asked = {address, length, 0};
    u64 earlier = earlier_of((u64)seen.sk, result);
    struct chunk *chunk = connect_reserve(&event, &seen, result, earlier);
    u64 id = 0;
    if (chunk) { // asked once: Linux 6.1 thinks that a second answer could be another
        id = chunk->id;
        connect_send(&event, chunk, &seen, &asked, result);
    }
#ifdef WITH_connect_done
    if (is_on_its_way(result) && is_open(LOAD(sock_common, skc_state, seen.common)) && !earlier &&
        LOAD(socket, type, socket) == SOCK_STREAM)
        follow(&event, &seen, 0, id);
#endif
    return 0;
}

PROGRAM(connect_stream)
{
    int result = RETURNED(__inet_stream_connect);
    return connect_end((void *)ctx->args[0], (void *)ctx->args[1], ctx->args[2], result);
}

PROGRAM(on_connect)
{
    return connect_end((void *)ctx->args[0], (void *)ctx->args[1], ctx->args[2], (int)RETURNED(inet_dgram_connect));
}

// An LSM said no: the functions above are not called.
PROGRAM(connect_denied)
{
    int result = RETURNED(security_socket_connect);
    return result ? connect_end((void *)ctx->args[0], (void *)ctx->args[1], ctx->args[2], result) : 0;
}
#endif

#ifdef WITH_connect_tracepoint
static __always_inline void connect_began(void *sk)
{
    struct event event;
    struct seen seen;
    struct sock_begin begin;
    if (READ(sock, sk_protocol, sk) != IPPROTO_TCP || !see(&seen, &begin, (void *)READ(sock, sk_socket, sk), sk) ||
        !event_begin(&event, KIND_connect))
        return;
    struct chunk *chunk = connect_reserve(&event, &seen, 0, 0);
#ifdef WITH_connect_done
    follow(&event, &seen, chunk, 0);
#endif
    if (chunk)
        connect_send(&event, chunk, &seen, 0, 0);
}
#endif

#ifdef WITH_connect_sys_exit
#ifdef WITH_connect_done
// The call came back: what is under way is followed from now on, unless it is over already.
static __always_inline void call_end(struct event *event, struct seen *seen, struct chunk *chunk, long result)
{
    u64 sk = (u64)seen->sk;
    struct connecting *connecting = connectings.lookup(&sk);
    if (!connecting) {
        if (result == -EINPROGRESS) // nothing could be remembered
            done_lost(event);
        return;
    }
    if (!is_own_call(connecting)) // followed by an earlier call, or of another thread's
        return;
    int follows = result ? is_on_its_way(result) : connecting->phase == CALLING;
    if (follows && is_done_wanted(event)) {
        connecting_fill(connecting, event, seen, chunk);
        if (__sync_val_compare_and_swap(&connecting->phase, CALLING, FOLLOWED) == CALLING)
            return;
        done_event(event->set, event->book, event->ring, connecting, sk, connecting->error);
    }
    connecting_end(event->book, sk);
}
#endif

PROGRAM(connect_exit)
{
    struct call call;
    call_read(&call, (void *)ctx->args[0], ctx->args[1]);
    void *socket = 0, *sk = 0;
#ifdef WITH_connect_done
    sk = (void *)called_socket(call.fd);
    socket = (void *)READ(sock, sk_socket, sk);
#endif
    if (!socket) {
        socket = socket_of(call.task, call.fd);
        sk = (void *)READ(socket, sk, socket);
    }
    struct event event;
    struct seen seen;
    struct sock_begin begin;
    if (!socket || !see(&seen, &begin, socket, sk) || !event_begin(&event, KIND_connect))
        return 0;
    struct asked asked = {(void *)call.address, call.length, 1};
    struct chunk *chunk = connect_reserve(&event, &seen, call.result, earlier_of((u64)sk, call.result));
#ifdef WITH_connect_done
    call_end(&event, &seen, chunk, call.result);
#endif
    if (chunk)
        connect_send(&event, chunk, &seen, &asked, call.result);
    return 0;
}
#endif
#endif
