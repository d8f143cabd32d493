// Sockets: what the heads of bind, listen, accept, connect and connect_done have in common (up to its promises each begins as
// bind's does), from a struct socket and its struct sock. Everything is read by READ, so that programs of all types can use it.

#define AF_UNSPEC 0
#define AF_UNIX 1
#define AF_INET 2
#define AF_INET6 10
#define SOCK_STREAM 1
#define SOCK_RAW 3
#define IPPROTO_TCP 6
#define TCP_ESTABLISHED 1
#define TCP_SYN_SENT 2
#define TCP_SYN_RECV 3
#define TCP_CLOSE 7
#define TCP_LISTEN 10
#define SUN_PATH 108 // bytes of a unix socket's name, at most
#define SUN_REST 16  // room for what of two such names does not fit into one chunk
#define SOCKADDR_IN 16  // bytes: what the kernel wants at least
#define SOCKADDR_IN6 24
#define EINTR 4
#define EAGAIN 11
#define RESTART_FIRST 512 // ERESTARTSYS, …: interrupted; the kernel calls again, or says EINTR
#define RESTART_LAST 516

static __always_inline int is_interrupted(long result)
{
    return result <= -RESTART_FIRST && result >= -RESTART_LAST;
}

static __always_inline u32 error_of(long result)
{
    return is_interrupted(result) ? EINTR : result < 0 ? -result : 0;
}

// The beginning of a struct sock, where most of what is told of it stands.
struct sock_begin {
    u8 bytes[OFFSET_sock_common__skc_net__net + sizeof(u64)];
};

// A socket to be told of. Where the verifier knows its pointers all is loaded from there; elsewhere from a copy, made by one read.
// (Which is apart, or the compiler keeps `seen` in memory, and no longer knows what `is_known` is.)
struct seen {
    void *socket, *sk;
    const void *common; // the struct sock, or the copy of its beginning
    int is_known;
};

static __always_inline int is_told(struct seen *seen)
{
    u16 family = LOAD(sock_common, skc_family, seen->common);
    return family == AF_INET || family == AF_INET6 || family == AF_UNIX;
}

// Zero: it is of a family that is not told.
static __always_inline int see(struct seen *seen, struct sock_begin *begin, void *socket, void *sk)
{
    seen->socket = socket;
    seen->sk = sk;
    seen->common = begin->bytes;
    seen->is_known = 0;
    READ_BEGIN(begin->bytes, sk);
    return is_told(seen);
}

// The same of a struct socket that the verifier knows: an argument of the hook's function.
static __always_inline int see_known(struct seen *seen, void *socket)
{
    seen->socket = socket;
    seen->sk = (void *)LOAD(socket, sk, socket);
    seen->common = seen->sk;
    seen->is_known = 1;
    return is_told(seen);
}

// As /proc/PID/fd and ss show it; inside of the kernel there are sockets without a file.
static __always_inline u64 inode_of(struct seen *seen)
{
    void *file = seen->is_known ? (void *)LOAD(socket, file, seen->socket) : 0;
    if (file)
        return LOAD(inode, i_ino, LOAD(file, f_inode, file));
    return READ(socket_alloc, vfs_inode__i_ino, AROUND(socket_alloc, socket, seen->socket));
}

// What of a socket never changes.
struct socket_kind {
    u64 socket;
    u32 net_ns;
    u16 family, type, protocol;
};

static __always_inline void kind_of(struct socket_kind *kind, struct seen *seen)
{
    u64 net = LOAD(sock_common, skc_net__net, seen->common);
    kind->socket = inode_of(seen);
    kind->net_ns = GET(net, ns__inum, net, seen->is_known);
    kind->family = LOAD(sock_common, skc_family, seen->common);
    kind->type = GET(sock, sk_type, seen->sk, seen->is_known);
    kind->protocol = GET(sock, sk_protocol, seen->sk, seen->is_known);
}

// The same as a head says it.
static __always_inline void kind_told(struct socket_kind *kind, struct payload_bind *head)
{
    kind->socket = head->socket;
    kind->net_ns = head->net_ns;
    kind->family = head->family;
    kind->type = head->type;
    kind->protocol = head->protocol;
}

// Everything but the two ends.
static __always_inline void fill_socket(struct payload_bind *head, struct socket_kind *kind, u32 error)
{
    head->socket = kind->socket;
    head->net_ns = kind->net_ns;
    head->family = kind->family;
    head->type = kind->type;
    head->protocol = kind->protocol;
    head->errno = error;
    __builtin_memset(&head->local_address, 0, sizeof(head->local_address));
    __builtin_memset(&head->remote_address, 0, sizeof(head->remote_address));
    head->local_port = head->remote_port = 0;
}

// The two ends as the kernel has them: what getsockname and getpeername say. (A raw socket's port is its protocol: none.)
static __always_inline void fill_local(struct payload_bind *head, struct seen *seen)
{
    struct ip *ip = &head->local_address;
    if (head->type != SOCK_RAW)
        head->local_port = head->errno ? __builtin_bswap16(READ(inet_sock, inet_sport, seen->sk))
                                       : LOAD(sock_common, skc_num, seen->common); // given back when a connect fails
    if (head->family == AF_INET) {
        ip->version = 4;
        *(u32 *)ip->bytes = LOAD(sock_common, skc_rcv_saddr, seen->common);
    } else {
        ip->version = 6;
        bpf_probe_read_kernel(ip->bytes, sizeof(ip->bytes), AT(sock_common, skc_v6_rcv_saddr, seen->sk));
    }
}

static __always_inline void fill_remote(struct payload_bind *head, struct seen *seen)
{
    struct ip *ip = &head->remote_address;
    if (head->type != SOCK_RAW)
        head->remote_port = __builtin_bswap16(LOAD(sock_common, skc_dport, seen->common));
    if (head->family == AF_INET) {
        ip->version = 4;
        *(u32 *)ip->bytes = LOAD(sock_common, skc_daddr, seen->common);
    } else {
        ip->version = 6;
        bpf_probe_read_kernel(ip->bytes, sizeof(ip->bytes), AT(sock_common, skc_v6_daddr, seen->sk));
    }
}

#ifdef WITH_sys_exit

#define S_IFMT 0170000
#define S_IFSOCK 0140000

// The arguments of a call about a socket, from where they still are at its end.
struct call {
    void *task;
    u32 fd;
    u64 address; // or the backlog
    u32 length;
    long result;
};

static __always_inline void call_read(struct call *call, void *regs, long result)
{
    call->task = (void *)bpf_get_current_task_btf();
    call->result = result;
    call->length = READ(pt_regs, dx, regs);
    if (is_compat(call->task)) {
        call->fd = READ(pt_regs, bx, regs);
        call->address = (u32)READ(pt_regs, cx, regs);
    } else {
        call->fd = READ(pt_regs, di, regs);
        call->address = READ(pt_regs, si, regs);
    }
}

// The socket behind a descriptor; NULL: it is none, or closed by now.
static __always_inline void *socket_of(void *task, u32 fd)
{
    u64 file = file_of(task, fd);
    if ((READ(inode, i_mode, READ(file, f_inode, file)) & S_IFMT) != S_IFSOCK)
        return 0;
    u64 socket = READ(file, private_data, file);
    return READ(socket, file, socket) == file ? (void *)socket : 0; // not so: a unix socket's name, opened by O_PATH
}

#endif
