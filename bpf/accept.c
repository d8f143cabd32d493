// accept: a process took over a connection; the event is about its new socket, or about the listening one where that failed.

#ifdef WITH_accept

static __always_inline int accept_event(struct seen *seen, long result)
{
    struct event event;
    if (!event_begin(&event, KIND_accept))
        return 0;
    struct chunk *chunk = event_reserve(&event, KIND_accept);
    if (!chunk)
        return 0;
    struct payload_accept *head = &chunk->accept;
    struct socket_kind kind;
    kind_of(&kind, seen);
    fill_socket(&chunk->bind, &kind, error_of(result));
    if (head->family != AF_UNIX) {
        fill_local(&chunk->bind, seen);
        if (result >= 0)
            fill_remote(&chunk->bind, seen);
        nameless_send(chunk, &head->local_path);
        return 0;
    }
    struct sun_names names = {.cap = event.set->cap_path};
    sun_of(&names, LOCAL, (u64)seen->sk);
    if (result >= 0)
        sun_of(&names, REMOTE, READ(unix_sock, peer, seen->sk));
    sun_send(&event, chunk, &head->local_path, head->room, ROOM_accept, &names);
    return 0;
}

// That none was waiting is no event.
static __always_inline int none_waits(long result)
{
    return result == -EAGAIN || result == -EINTR || is_interrupted(result);
}

#ifdef WITH_accept_fexit
PROGRAM(on_accept)
{
    struct seen seen;
    int result = RETURNED(inet_accept);
    u64 listening = ctx->args[0], accepted = ctx->args[1];
    asm volatile("" : "+r"(listening), "+r"(accepted)); // no verifier takes a load from one of two places in ctx
    if (none_waits(result) || !see_known(&seen, (void *)(result ? listening : accepted)))
        return 0;
    return accept_event(&seen, result);
}

// An LSM said no: the functions above are not called.
PROGRAM(accept_denied)
{
    struct seen seen;
    int result = RETURNED(security_socket_accept);
    return result && see_known(&seen, (void *)ctx->args[0]) ? accept_event(&seen, result) : 0;
}
#endif

#ifdef WITH_accept_sys_exit
PROGRAM(accept_exit)
{
    struct call call;
    struct seen seen;
    struct sock_begin begin;
    call_read(&call, (void *)ctx->args[0], ctx->args[1]);
    if (none_waits(call.result))
        return 0;
    void *socket = socket_of(call.task, call.result < 0 ? call.fd : call.result);
    return socket && see(&seen, &begin, socket, (void *)READ(socket, sk, socket)) ? accept_event(&seen, call.result) : 0;
}
#endif
#endif
