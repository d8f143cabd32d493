// connect: a connection was asked for. What is still under way when the call comes back is followed by connect_done.c.

#define EALREADY 114

#ifdef WITH_connect

// What a caller asked for; NULL where that cannot be seen.
struct asked {
    const void *address;
    u32 length;
    int user;
};

// Returns the event's id; 0: it is not reported. `earlier`: id of the connect that began what this one found under way, or 0.
static __always_inline u64 connect_event(struct event *event, void *socket, void *sk, const struct asked *asked, long result,
                                         u64 earlier)
{
    struct chunk *chunk = event_reserve(event, KIND_connect);
    if (!chunk)
        return 0;
    struct payload_connect *head = &chunk->connect;
    struct sun_names names = {.cap = event->set->cap_path};
    u64 id = chunk->id;
    fill_socket(&chunk->bind, socket, sk, error_of(result));
    head->connect_id = earlier ? earlier : id;
    int is_unix = head->family == AF_UNIX;
    if (is_unix)
        sun_of(&names, LOCAL, (u64)sk);
    else
        fill_local(&chunk->bind, sk);
    if (asked && (is_unix ? result : !is_on_its_way(result)))
        fill_asked(&head->remote_address, &head->remote_port, &names, REMOTE, asked->address, asked->length, asked->user);
    else if (is_unix)
        sun_of(&names, REMOTE, READ(unix_sock, peer, sk));
    else if (!asked || family_asked(asked->address, asked->length, asked->user) != AF_UNSPEC)
        fill_remote(&chunk->bind, sk);
    sun_send(event, chunk, &head->local_path, head->room, ROOM_connect, &names);
    return id;
}

// The id of the connect that is followed already; 0: none.
static __always_inline u64 earlier_of(u64 sk, long result)
{
#ifdef WITH_connect_done
    struct connecting *connecting = connectings.lookup(&sk);
    if (connecting && connecting->phase == FOLLOWED && (result == -EALREADY || is_interrupted(result)))
        return connecting->id;
#endif
    return 0;
}

#ifdef WITH_connect_fexit
static __always_inline int connect_end(void *socket, const void *address, u32 length, int result)
{
    void *sk = (void *)READ(socket, sk, socket);
    struct event event;
    if (!is_known_family(sk) || !event_begin(&event, KIND_connect))
        return 0;
    struct asked asked = {address, length, 0};
    u64 earlier = earlier_of((u64)sk, result);
    u64 id = connect_event(&event, socket, sk, &asked, result, earlier);
#ifdef WITH_connect_done
    if (READ(socket, type, socket) == SOCK_STREAM && is_open(READ(sock_common, skc_state, sk)) && is_on_its_way(result) && !earlier)
        follow(&event, (u64)sk, socket, id);
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
    if (READ(sock, sk_protocol, sk) != IPPROTO_TCP || !event_begin(&event, KIND_connect))
        return;
    void *socket = (void *)READ(sock, sk_socket, sk);
    u64 id = connect_event(&event, socket, sk, 0, 0, 0);
#ifdef WITH_connect_done
    follow(&event, (u64)sk, socket, id);
#endif
}
#endif

#ifdef WITH_connect_sys_exit
#ifdef WITH_connect_done
// The call came back: what is under way is followed from now on, unless it is over already.
static __always_inline void call_end(struct event *event, u64 sk, void *socket, u64 id, long result)
{
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
        connecting_fill(connecting, event, inode_of(socket), id);
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
    if (!socket || !is_known_family(sk) || !event_begin(&event, KIND_connect))
        return 0;
    struct asked asked = {(void *)call.address, call.length, 1};
    u64 id = connect_event(&event, socket, sk, &asked, call.result, earlier_of((u64)sk, call.result));
#ifdef WITH_connect_done
    call_end(&event, (u64)sk, socket, id, call.result);
#endif
    return 0;
}
#endif
#endif
