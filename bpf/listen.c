// listen: a socket waits for connections from now on.

#ifdef WITH_listen

static __always_inline int listen_event(struct seen *seen, u32 backlog, long result)
{
    struct event event;
    if (!event_begin(&event, KIND_listen))
        return 0;
    struct chunk *chunk = event_reserve(&event, KIND_listen);
    if (!chunk)
        return 0;
    struct payload_listen *head = &chunk->listen;
    struct sun_names names = {.cap = event.set->cap_path};
    struct socket_kind kind;
    kind_of(&kind, seen);
    fill_socket(&chunk->bind, &kind, error_of(result));
    head->backlog = backlog;
    if (head->family == AF_UNIX)
        sun_of(&names, LOCAL, (u64)seen->sk);
    else
        fill_local(&chunk->bind, seen);
    sun_send(&event, chunk, &head->local_path, head->room, ROOM_listen, &names);
    return 0;
}

#ifdef WITH_listen_fexit
PROGRAM(on_listen)
{
    struct seen seen;
    return see_known(&seen, (void *)ctx->args[0]) ? listen_event(&seen, ctx->args[1], (int)RETURNED(inet_listen)) : 0;
}

// An LSM said no: the functions above are not called.
PROGRAM(listen_denied)
{
    struct seen seen;
    int result = RETURNED(security_socket_listen);
    return result && see_known(&seen, (void *)ctx->args[0]) ? listen_event(&seen, ctx->args[1], result) : 0;
}
#endif

#ifdef WITH_listen_tracepoint
static __always_inline void listen_began(void *sk)
{
    struct seen seen;
    struct sock_begin begin;
    if (READ(sock, sk_protocol, sk) == IPPROTO_TCP && see(&seen, &begin, (void *)READ(sock, sk_socket, sk), sk))
        listen_event(&seen, READ(sock, sk_max_ack_backlog, sk), 0);
}
#endif

#ifdef WITH_listen_sys_exit
PROGRAM(listen_exit)
{
    struct call call;
    struct seen seen;
    struct sock_begin begin;
    call_read(&call, (void *)ctx->args[0], ctx->args[1]);
    void *socket = socket_of(call.task, call.fd);
    if (!socket || !see(&seen, &begin, socket, (void *)READ(socket, sk, socket)))
        return 0;
    return listen_event(&seen, call.address, call.result);
}
#endif
#endif
