// A TCP socket's state changes: once for each, whoever looks. A connection changes it six times on a host that has both its ends,
// and a program of its own for each kind made that three times as dear. What is paid for it: a change of another socket's that
// interrupts a run is skipped for all of them (booked, as `connect_done`).

PROGRAM(on_sock_state)
{
    u64 sk = ctx->args[0];
    int before = ctx->args[1], after = ctx->args[2];

#ifdef WITH_listen_tracepoint
    if (after == TCP_LISTEN)
        listen_began((void *)sk);
#endif
#ifdef WITH_connect_tracepoint
    if (after == TCP_SYN_SENT)
        connect_began((void *)sk);
#endif
#ifdef WITH_connect_done
#ifdef WITH_connect_sys_exit
    if (after == TCP_SYN_SENT)
        connect_called(sk);
#endif
    if (can_end(before, after))
        connect_over(sk, before, after);
#endif
    return 0;
}
