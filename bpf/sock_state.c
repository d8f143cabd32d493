// A TCP socket's state changes: once for each, whoever looks. A connection changes it six times on a host that has both its ends,
// and a program of its own for each kind made that three times as dear.

PROGRAM(on_sock_state)
{
    u64 sk = ctx->args[0];
    int before = ctx->args[1], after = ctx->args[2];
    if (after == TCP_LISTEN) {
#ifdef WITH_listen_tracepoint
        listen_began((void *)sk);
#endif
    } else if (after == TCP_SYN_SENT) {
#ifdef WITH_connect_tracepoint
        connect_began((void *)sk);
#endif
#ifdef WITH_connect_done
#ifdef WITH_connect_sys_exit
        connect_called(sk);
#endif
    } else if (after != TCP_SYN_RECV) {
        connect_over(sk, before, after);
#endif
    }
    return 0;
}
