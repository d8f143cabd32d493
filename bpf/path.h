// The path of a file by its dentries and mounts, from leaf to root, read component by component.
//
// bpf_d_path is not allowed in raw tracepoints. The walk writes backwards, so that a path ends where the one that
// was walked before begins. Its state is in map memory: the verifier would drown in it on the stack. `size` is the buffer's.

#define PATH_ROOM 65536
#define NAME_ROOM 256
#define MIDDLE (2 * PATH_ROOM + 2 * NAME_ROOM) // of exec's buffers: paths are walked back from here, strings read on
#define TYPED_STEPS 12     // components that are walked by plain loads
#define SHORT_STEPS 4      // steps after them that the first program takes: crossing a mount or two, and the end
#define WALK_STEPS 250     // steps of every further program; a tail call goes on
#define WALK_CALLS 12      // of the kernel's 33 tail calls: paths of 3,000 components; the stream needs 16
#define MNT_INTERNAL 0x4000
#define TMPFS_MAGIC 0x01021994

struct walk {
    u64 dentry, mount, vfsmount;
    u64 root;    // of the mount
    u32 at;      // where the path begins in the buffer
    u32 end;     // where it ends
    u32 floor;   // where it must not go on
    u32 of;      // its true length, stored or not
    u32 capped;  // what did not fit was only counted
    u32 calls;   // tail calls taken for walks of this event
};

// Put a name before what is there; with a slash unless `bare`.
static __always_inline void prepend(struct walk *walk, char *buffer, u32 size, u32 bytes, u64 name, int bare)
{
    u64 length = bound(bytes, NAME_ROOM - 1);
    u32 slash = bare ? 0 : 1;
    walk->of += length + slash;
    if (walk->capped || walk->at < walk->floor + length + slash) {
        walk->capped = 1;
        return;
    }
    u64 at = bound(walk->at - length, size - NAME_ROOM);
    bpf_probe_read_kernel(buffer + at, length, (void *)name);
    if (!bare) {
        at = bound(at - 1, size - NAME_ROOM);
        buffer[at] = '/';
    }
    walk->at = at;
}

// Begin at a dentry and its mount, whose root is `root`; the path is to end at `end`.
static __always_inline void walk_from(struct walk *walk, u64 dentry, u64 vfsmount, u64 root, u32 end, u32 cap)
{
    walk->at = walk->end = end;
    walk->floor = end - smaller(cap, PATH_ROOM);
    walk->of = walk->capped = 0;
    walk->dentry = dentry;
    walk->vfsmount = vfsmount;
    walk->mount = (u64)AROUND(mount, mnt, vfsmount);
    walk->root = root;
}

// The same, and go as far as typed pointers lead: up to the root of the mount. `dentry` and `vfsmount`
// are pointers that the verifier knows, so that a component costs one probe read, of its name.
static __always_inline void walk_begin(struct walk *walk, char *buffer, u32 size, u64 dentry, u64 vfsmount, u32 end, u32 cap)
{
    u64 root = LOAD(vfsmount, mnt_root, vfsmount);
    walk_from(walk, dentry, vfsmount, root, end, cap);
#pragma unroll
    for (int i = 0; i < TYPED_STEPS; i++) {
        u64 parent = LOAD(dentry, d_parent, dentry);
        if (dentry == root || dentry == parent)
            break;
        prepend(walk, buffer, size, LOAD(dentry, d_name__len, dentry), LOAD(dentry, d_name__name, dentry), 0);
        dentry = parent;
    }
    walk->dentry = dentry;
}

// A file without a place in any directory (memfd, pipe): it is its own parent, and not the root of its mount.
static __always_inline int nameless(u64 dentry, u64 vfsmount)
{
    return READ(dentry, d_parent, dentry) == dentry && READ(vfsmount, mnt_root, vfsmount) != dentry;
}

// One step towards the root; 0 when the walk is at its end.
static __always_inline int walk_step(struct walk *walk, char *buffer, u32 size)
{
    u64 dentry = walk->dentry, mount = walk->mount;
    if (dentry == walk->root) {
        u64 above = READ(mount, mnt_parent, mount);
        if (above == mount)
            return 0;
        walk->dentry = READ(mount, mnt_mountpoint, mount);
        walk->mount = above;
        walk->vfsmount = (u64)AT(mount, mnt, above);
        walk->root = READ(vfsmount, mnt_root, walk->vfsmount);
        return 1;
    }
    u64 parent = READ(dentry, d_parent, dentry);
    int bare = parent == dentry; // a file without a place
    if (bare && walk->of)
        return 0;
    prepend(walk, buffer, size, READ(dentry, d_name__len, dentry), READ(dentry, d_name__name, dentry), bare);
    if (bare)
        return 0;
    walk->dentry = parent;
    return 1;
}

// The root itself has no component.
static __always_inline void walk_end(struct walk *walk, char *buffer, u32 size)
{
    if (walk->of)
        return;
    u64 at = bound(walk->at - 1, size - NAME_ROOM);
    buffer[at] = '/';
    walk->at = at;
    walk->of = 1;
}

// One step of a walk: 1 when it is at its end, and its length in `promise`.
static __always_inline int walk_ended(struct walk *walk, char *buffer, u32 size, struct promise *promise)
{
    if (walk_step(walk, buffer, size))
        return 0;
    walk_end(walk, buffer, size);
    promise->of = walk->of;
    promise->have = walk->end - walk->at;
    return 1;
}

// The kernel allows no more tail calls for walks: capped, and how long the path would have been is not known.
static __always_inline void walk_give_up(struct books *book, struct walk *walk, struct promise *promise)
{
    count(book->cut_calls);
    promise->of = UNKNOWN;
    promise->have = walk->end - walk->at;
}

// Most walks end here. (Linux 6.1 takes no loop that falls through into its head, and so clang lays out some: unrolled.)
static __always_inline int walk_short(struct walk *walk, char *buffer, u32 size, struct promise *promise)
{
#pragma unroll
    for (int i = 0; i < SHORT_STEPS; i++)
        if (walk_ended(walk, buffer, size, promise))
            return 1;
    return 0;
}

static __always_inline int walk_on(struct walk *walk, char *buffer, u32 size, struct promise *promise)
{
    for (int i = 0; i < WALK_STEPS; i++)
        if (walk_ended(walk, buffer, size, promise))
            return 1;
    return 0;
}

// A device's number as stat(2) shows it.
static __always_inline u32 stat_device(u32 device)
{
    u32 major = device >> 20, minor = device & 0xfffff;
    return (minor & 0xff) | major << 8 | (minor & ~0xff) << 12;
}

// Is the root of a process somewhere else than at the root of its mount namespace? A mount on top of the root is the root.
static __always_inline u8 below_root(void *fs)
{
    u64 dentry = LOAD(fs_struct, root__dentry, fs);
    u64 vfsmount = LOAD(fs_struct, root__mnt, fs);
    u64 top = LOAD(vfsmount, mnt_root, vfsmount);
#pragma unroll
    for (int i = 0; i < 8; i++) {
        if (dentry != top)
            return 1;
        u64 mount = (u64)AROUND(mount, mnt, vfsmount);
        u64 above = READ(mount, mnt_parent, mount);
        if (above == mount)
            return 0;
        dentry = READ(mount, mnt_mountpoint, mount);
        vfsmount = (u64)AT(mount, mnt, above);
        top = READ(vfsmount, mnt_root, vfsmount);
    }
    return 0;
}
