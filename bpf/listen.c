// listen: a socket waits for connections from now on.

#ifdef WITH_listen

static __always_inline int listen_event(void *socket, void *sk, u32 backlog, long result)
{
    struct event event;
    if (!is_known_family(sk) || !event_begin(&event, KIND_listen))
        return 0;
    struct chunk *chunk = event_reserve(&event, KIND_listen);
    if (!chunk)
        return 0;
    struct payload_listen *head = &chunk->listen;
    struct sun_names names = {.cap = event.set->cap_path};
    fill_socket(&chunk->bind, socket, sk, error_of(result));
    head->backlog = backlog;
    if (head->family == AF_UNIX)
        sun_of(&names, LOCAL, (u64)sk);
    else
        fill_local(&chunk->bind, sk);
    sun_send(&event, chunk, &head->local_path, head->room, ROOM_listen, &names);
    return 0;
}

#ifdef WITH_listen_fexit
PROGRAM(on_listen)
{
    void *socket = (void *)ctx->args[0];
    return listen_event(socket, (void *)READ(socket, sk, socket), ctx->args[1], (int)RETURNED(inet_listen));
}

// An LSM said no: the functions above are not called.
PROGRAM(listen_denied)
{
    void *socket = (void *)ctx->args[0];
    int result = RETURNED(security_socket_listen);
    return result ? listen_event(socket, (void *)READ(socket, sk, socket), ctx->args[1], result) : 0;
}
#endif

#ifdef WITH_listen_tracepoint
static __always_inline void listen_began(void *sk)
{
    if (READ(sock, sk_protocol, sk) == IPPROTO_TCP)
        listen_event((void *)READ(sock, sk_socket, sk), sk, READ(sock, sk_max_ack_backlog, sk), 0);
}
#endif

#ifdef WITH_listen_sys_exit
PROGRAM(listen_exit)
{
    struct call call;
    call_read(&call, (void *)ctx->args[0], ctx->args[1]);
    void *socket = socket_of(call.task, call.fd);
    return socket ? listen_event(socket, (void *)READ(socket, sk, socket), call.address, call.result) : 0;
}
#endif
#endif
