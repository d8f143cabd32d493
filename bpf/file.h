// What events say of a file: where user space sees it, its inode and device, whether it has a name; and its path, in a slot.

#define FILE_STEPS 8 // components that the first program walks, unrolled for Linux 6.1 (see walk_short)

// In Linux 6.5 bit 25; from 6.14 on bit 24, and 25 says that nobody is to be notified, which may hold for any file.
#define FMODE_BACKING (3 << 24)
#define MNT_NS_INTERNAL ((u64)-22)

struct place {
    u64 dentry, vfsmount, inode; // 0: no file
};

// A file of an overlay is mapped through a file of a file system below it. Since Linux 6.7 (def3ae83da02) that one's path leads
// through a mount of the overlay's own, and the path that user space sees stands behind it, in a struct backing_file.
static __always_inline int is_backing(const struct place *place, u64 file)
{
    return READ(file, f_mode, file) & FMODE_BACKING && !nameless(place->dentry, place->vfsmount) &&
           READ(mount, mnt_ns, AROUND(mount, mnt, place->vfsmount)) == MNT_NS_INTERNAL;
}

static __always_inline void place_of(struct place *place, u64 file)
{
    place->dentry = READ(file, f_path__dentry, file);
    place->vfsmount = READ(file, f_path__mnt, file);
    if (HAVE_backing_file__user_path__dentry && is_backing(place, file)) {
        place->dentry = READ_IF(backing_file, user_path__dentry, file, 0);
        place->vfsmount = READ_IF(backing_file, user_path__mnt, file, 0);
    }
    place->inode = READ(dentry, d_inode, place->dentry);
}

// Was the file's memory given to something else since? While a program runs, none of it can be.
static __always_inline int is_gone(const struct place *place)
{
    return READ(dentry, d_inode, place->dentry) != place->inode;
}

static __always_inline int is_memfd(const struct place *place)
{
    char name[6] = {};
    if (nameless(place->dentry, place->vfsmount))
        bpf_probe_read_kernel(name, sizeof(name), (void *)READ(dentry, d_name__name, place->dentry));
    return name[0] == 'm' && name[1] == 'e' && name[2] == 'm' && name[3] == 'f' && name[4] == 'd' && name[5] == ':';
}

static __always_inline int is_deleted(const struct place *place)
{
    return !READ(dentry, d_hash__pprev, place->dentry) && READ(dentry, d_parent, place->dentry) != place->dentry;
}

static __always_inline u32 file_device(u64 inode)
{
    return stat_device(READ(super_block, s_dev, READ(inode, i_sb, inode)));
}

// Walk a file's path into the event's slot. 0: there is more; the first walk of a part goes on.
static __always_inline int file_path(struct event *event, const struct place *place, struct promise *promise)
{
    struct slot *slot = event->slot;
    walk_from(&slot->walk, place->dentry, place->vfsmount, READ(vfsmount, mnt_root, place->vfsmount), SLOT_MIDDLE,
              event->set->cap_path);
#pragma unroll
    for (int i = 0; i < FILE_STEPS; i++)
        if (walk_ended(&slot->walk, slot->buffer, SLOT_BUFFER, promise))
            return 1;
    return 0;
}
