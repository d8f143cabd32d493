// bind: a socket got its local address. On success it is read from the socket, where the port stands that the kernel chose;
// on failure it is the one that was asked for.

#ifdef WITH_bind

static __always_inline int bind_event(void *socket, const void *address, u32 length, long result, int user)
{
    void *sk = (void *)READ(socket, sk, socket);
    struct event event;
    if (!is_known_family(sk) || !event_begin(&event, KIND_bind))
        return 0;
    struct chunk *chunk = event_reserve(&event, KIND_bind);
    if (!chunk)
        return 0;
    struct payload_bind *head = &chunk->bind;
    struct sun_names names = {.cap = event.set->cap_path};
    fill_socket(head, socket, sk, error_of(result));
    if (result)
        fill_asked(&head->local_address, &head->local_port, &names, LOCAL, address, length, user);
    else if (head->family == AF_UNIX)
        sun_of(&names, LOCAL, (u64)sk);
    else
        fill_local(head, sk);
    sun_send(&event, chunk, &head->local_path, head->room, ROOM_bind, &names);
    return 0;
}

#ifdef WITH_bind_fexit
PROGRAM(on_bind)
{
    return bind_event((void *)ctx->args[0], (void *)ctx->args[1], ctx->args[2], (int)RETURNED(inet_bind), 0);
}

// An LSM said no: the functions above are not called.
PROGRAM(bind_denied)
{
    int result = RETURNED(security_socket_bind);
    return result ? bind_event((void *)ctx->args[0], (void *)ctx->args[1], ctx->args[2], result, 0) : 0;
}
#endif

#ifdef WITH_bind_sys_exit
PROGRAM(bind_exit)
{
    struct call call;
    call_read(&call, (void *)ctx->args[0], ctx->args[1]);
    void *socket = socket_of(call.task, call.fd);
    return socket ? bind_event(socket, (void *)call.address, call.length, call.result, 1) : 0;
}
#endif
#endif
