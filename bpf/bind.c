// bind: a socket got its local address. On success it is read from the socket, where the port stands that the kernel chose;
// on failure it is the one that was asked for.

#ifdef WITH_bind

static __always_inline int bind_event(struct seen *seen, const void *address, u32 length, long result, int user)
{
    struct event event;
    if (!event_begin(&event, KIND_bind))
        return 0;
    struct chunk *chunk = event_reserve(&event, KIND_bind);
    if (!chunk)
        return 0;
    struct payload_bind *head = &chunk->bind;
    struct sun_names names = {.cap = event.set->cap_path};
    struct socket_kind kind;
    kind_of(&kind, seen);
    fill_socket(head, &kind, error_of(result));
    if (result)
        fill_asked(&head->local_address, &head->local_port, &names, LOCAL, address, length, user);
    else if (head->family == AF_UNIX)
        sun_of(&names, LOCAL, (u64)seen->sk);
    else
        fill_local(head, seen);
    sun_send(&event, chunk, &head->local_path, head->room, ROOM_bind, &names);
    return 0;
}

#ifdef WITH_bind_fexit
PROGRAM(on_bind)
{
    struct seen seen;
    if (!see_known(&seen, (void *)ctx->args[0]))
        return 0;
    return bind_event(&seen, (void *)ctx->args[1], ctx->args[2], (int)RETURNED(inet_bind), 0);
}

// An LSM said no: the functions above are not called.
PROGRAM(bind_denied)
{
    struct seen seen;
    int result = RETURNED(security_socket_bind);
    if (!result || !see_known(&seen, (void *)ctx->args[0]))
        return 0;
    return bind_event(&seen, (void *)ctx->args[1], ctx->args[2], result, 0);
}
#endif

#ifdef WITH_bind_sys_exit
PROGRAM(bind_exit)
{
    struct call call;
    struct seen seen;
    struct sock_begin begin;
    call_read(&call, (void *)ctx->args[0], ctx->args[1]);
    void *socket = socket_of(call.task, call.fd);
    if (!socket || !see(&seen, &begin, socket, (void *)READ(socket, sk, socket)))
        return 0;
    return bind_event(&seen, (void *)call.address, call.length, call.result, 1);
}
#endif
#endif
