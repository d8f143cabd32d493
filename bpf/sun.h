// Unix sockets: their names, which the heads of socket.h have as promises; and addresses as a caller gave them.

// The names of a unix socket and its peer, one behind the other.
struct sun_names {
    u8 bytes[PAYLOAD + SUN_REST];
    u32 size;
    u32 cap;
    u32 faults;
    struct promise of[2]; // as in the schemas: local_path, remote_path
};
#define LOCAL 0
#define REMOTE 1

#define probe_read(to, size, from, user) \
    ((user) ? bpf_probe_read_user(to, size, from) : bpf_probe_read_kernel(to, size, from))
#define probe_read_str(to, size, from, user) \
    ((user) ? bpf_probe_read_user_str(to, size, from) : bpf_probe_read_kernel_str(to, size, from))

// A name of `length` bytes. An abstract one (it begins with a NUL) is that long; a path ends at its first NUL.
static __always_inline void sun_add(struct sun_names *names, int which, const void *name, u32 length, int user)
{
    u8 first = 0;
    u64 at = bound(names->size, SUN_PATH), size = bound(length, SUN_PATH);
    int failed = probe_read(&first, sizeof(first), name, user);
    if (!failed && first) {
        int n = probe_read_str(names->bytes + at, size + 1, name, user);
        size = n > 0 ? n - 1 : 0;
        failed = n < 0;
    } else if (!failed) {
        failed = probe_read(names->bytes + at, size, name, user);
    }
    if (failed) {
        names->of[which].of = UNKNOWN;
        names->faults |= 1 << which;
        return;
    }
    names->of[which].of = size;
    names->of[which].have = smaller(size, names->cap);
    names->size = at + names->of[which].have;
}

// The name that a unix socket was bound to, by itself or by its listening one.
static __always_inline void sun_of(struct sun_names *names, int which, u64 sk)
{
    u64 address = sk ? READ(unix_sock, addr, sk) : 0;
    if (!address)
        return;
    u32 length = READ(unix_address, len, address);
    if (length > sizeof(u16))
        sun_add(names, which, AT(unix_address, name, address) + sizeof(u16), length - sizeof(u16), 0);
}

// The family of an address as a caller gave it: a struct sockaddr of `length` bytes, in the kernel's memory or the user's.
static __always_inline u16 family_asked(const void *address, u32 length, int user)
{
    u16 family = AF_UNSPEC;
    if (length >= sizeof(family))
        probe_read(&family, sizeof(family), address, user);
    return family;
}

static __always_inline void fill_asked(struct ip *ip, u16 *port, struct sun_names *names, int which, const void *address,
                                       u32 length, int user)
{
    u16 family = family_asked(address, length, user), big_endian = 0;
    if (family == AF_UNIX && length > sizeof(family))
        sun_add(names, which, address + sizeof(family), length - sizeof(family), user);
    if ((family != AF_INET || length < SOCKADDR_IN) && (family != AF_INET6 || length < SOCKADDR_IN6))
        return;
    probe_read(&big_endian, sizeof(big_endian), address + 2, user);
    *port = __builtin_bswap16(big_endian);
    if (family == AF_INET) {
        ip->version = 4;
        probe_read(ip->bytes, 4, address + 4, user);
    } else {
        ip->version = 6;
        probe_read(ip->bytes, sizeof(ip->bytes), address + 8, user);
    }
}

static __always_inline void sun_part(struct event *event, u64 id, u16 number, u32 part, u32 parts, const u8 *bytes,
                                       u32 room, u32 size)
{
    u64 sequence;
    struct chunk *chunk = chunk_reserve(event->book, rings.lookup(&event->ring), 1, &sequence);
    if (!chunk)
        return;
    chunk->id = id;
    chunk->part = part;
    chunk->parts = parts;
    chunk->kind = number;
    chunk->size = size;
    chunk->flags = chunk->faults = 0;
    bpf_probe_read_kernel(chunk->data, room, bytes);
    chunk_submit(chunk);
}

// Send a head whose promises begin at `promises`, with no names.
static __always_inline void nameless_send(struct chunk *chunk, struct promise *promises)
{
    __builtin_memset(promises, 0, 2 * sizeof(*promises));
    chunk_submit(chunk);
}

// Send a head whose promises begin at `promises`; `space` bytes of `room` behind them take what names there are, or parts do.
static __always_inline void sun_send(struct event *event, struct chunk *chunk, struct promise *promises, u8 *room,
                                       u32 space, struct sun_names *names)
{
    promises[LOCAL] = names->of[LOCAL];
    promises[REMOTE] = names->of[REMOTE];
    chunk->faults = names->faults;
    u32 size = names->size;
    if (size <= space) {
        bpf_probe_read_kernel(room, space, names->bytes);
        chunk->size = size;
        chunk_submit(chunk);
        return;
    }
    u64 id = chunk->id;
    u16 number = chunk->kind;
    u32 parts = size > PAYLOAD ? 3 : 2;
    chunk->parts = parts;
    chunk_submit(chunk);
    sun_part(event, id, number, 1, parts, names->bytes, PAYLOAD, smaller(size, PAYLOAD));
    if (parts == 3)
        sun_part(event, id, number, 2, parts, names->bytes + PAYLOAD, SUN_REST, size - PAYLOAD);
}
