// mmap, mprotect: memory that can be executed, or becomes so; with `memory.all` any.
//
// The first look is at the protection that is asked for: nearly all calls end there. The LSM hooks know the protection as it takes
// effect (READ_IMPLIES_EXEC) and what is there before; the end of the call knows address and result. In between it stands in the
// task's storage: where the call begins it is opened, where it ends closed.

#define MAP_ANONYMOUS 0x20
#define SHM_EXEC 0x8000
#define PAGE_BITS 12
#define MAX_ERRNO 4095

// Send a head, all of it but the file filled. (Up to that, mprotect's is mmap's.) 1: a part goes on.
static __always_inline int mapping_send(struct event *event, struct payload_mmap *head, struct promise *path,
                                        const struct place *place, u32 room)
{
    head->inode = head->device = head->memfd = head->deleted = 0;
    path->of = path->have = 0;
    if (place->dentry && is_gone(place)) {
        path->of = UNKNOWN;
        event->slot->faults = 1;
    } else if (place->dentry) {
        head->inode = READ(inode, i_ino, place->inode);
        head->device = file_device(place->inode);
        head->memfd = is_memfd(place);
        head->deleted = is_deleted(place);
        if (!file_path(event, place, path))
            return 1;
    }
    return slot_finish(event, room);
}

#ifdef WITH_mmap
#ifndef WITH_mmap_perf
static __always_inline int mmap_send(struct event *event, u64 result, u64 length, u64 prot, u64 flags, u64 offset,
                                     const struct place *place)
{
    struct payload_mmap *head = slot_begin(event, KIND_mmap);
    if (!head)
        return 0;
    int failed = result >= (u64)-MAX_ERRNO;
    head->address = failed ? 0 : result;
    head->length = length;
    head->prot = prot & PROT_ALL;
    head->errno = failed ? -result : 0;
    head->offset = offset;
    head->flags = flags;
    return mapping_send(event, head, &head->path, place, ROOM_mmap);
}

static __always_inline void mmap_call(struct bpf_raw_tracepoint_args *ctx, struct event *event)
{
    calls_mmap.call(ctx, CALL_mmap_on);
    slot_fell(event);
}

PROGRAM(mmap_on)
{
    struct event event;
    struct payload_mmap *head = slot_again(&event, KIND_mmap);
    if (head && slot_on(&event, &head->path, ROOM_mmap))
        mmap_call(ctx, &event);
    return 0;
}
#endif

#ifdef WITH_mmap_lsm
PROGRAM(mmap_begun)
{
    if (may_be_executable(ARGUMENT(vm_mmap_pgoff, prot)))
        mapping_open(KIND_mmap);
    return 0;
}

PROGRAM(shmat_begun)
{
    if (may_be_executable(ARGUMENT(do_shmat, shmflg) & SHM_EXEC ? PROT_EXEC : 0))
        mapping_open(KIND_mmap);
    return 0;
}

PROGRAM(mmap_told)
{
    u64 file = ctx->args[0], prot = ctx->args[2], flags = ctx->args[3];
    if (!is_executable(prot))
        return 0;
    struct mapping *mapping = mapping_now(KIND_mmap);
    if (!mapping)
        return 0;
    mapping->flags = flags;
    mapping_tell(mapping, prot, file);
    return 0;
}

// What another security module refused was not told of.
PROGRAM(mmap_done)
{
    u64 file = ARGUMENT(vm_mmap_pgoff, file), prot = ARGUMENT(vm_mmap_pgoff, prot);
    if (!may_be_executable(prot))
        return 0;
    struct mapping *mapping = mapping_close(KIND_mmap);
    struct place place = {};
    if (mapping) {
        prot = mapping->prot;
        place = mapping->place;
    } else if (!is_executable(prot)) {
        return 0;
    } else if (file) {
        place_of(&place, file);
    }
    struct event event;
    if (mmap_send(&event, RETURNED(vm_mmap_pgoff), ARGUMENT(vm_mmap_pgoff, len), prot, ARGUMENT(vm_mmap_pgoff, flag),
                  ARGUMENT(vm_mmap_pgoff, pgoff) << PAGE_BITS, &place))
        mmap_call(ctx, &event);
    return 0;
}

// System V shared memory is mapped without mmap(2). Its path is a name alone: no part is needed, nor could be called from here (what
// shares a table of calls has to be for functions of one signature).
PROGRAM(shmat_done)
{
    struct mapping *mapping = mapping_close(KIND_mmap);
    if (!mapping)
        return 0;
    u64 result = RETURNED(do_shmat);
    if (!result)
        bpf_probe_read_kernel(&result, sizeof(result), (void *)ARGUMENT(do_shmat, raddr));
    struct place place = mapping->place;
    struct event event;
    if (mmap_send(&event, result, READ(inode, i_size, place.inode), mapping->prot, mapping->flags, 0, &place))
        slot_fell(&event);
    return 0;
}
#endif

#ifdef WITH_mmap_fexit
PROGRAM(mmap_done)
{
    u64 file = ARGUMENT(vm_mmap_pgoff, file), prot = ARGUMENT(vm_mmap_pgoff, prot);
    if (!is_executable(prot))
        return 0;
    struct place place = {};
    if (file)
        place_of(&place, file);
    struct event event;
    if (mmap_send(&event, RETURNED(vm_mmap_pgoff), ARGUMENT(vm_mmap_pgoff, len), prot, ARGUMENT(vm_mmap_pgoff, flag),
                  ARGUMENT(vm_mmap_pgoff, pgoff) << PAGE_BITS, &place))
        mmap_call(ctx, &event);
    return 0;
}
#endif

#ifdef WITH_mmap_sys_exit
PROGRAM(mmap_exit)
{
    void *regs = (void *)ctx->args[0], *task = (void *)bpf_get_current_task_btf();
    u64 prot = READ(pt_regs, dx, regs), length, flags, fd, offset;
    if (!is_executable(prot))
        return 0;
    if (is_compat(task)) {
        length = (u32)READ(pt_regs, cx, regs);
        flags = (u32)READ(pt_regs, si, regs);
        fd = READ(pt_regs, di, regs);
        offset = (u64)(u32)READ(pt_regs, bp, regs) << PAGE_BITS;
    } else {
        length = READ(pt_regs, si, regs);
        flags = READ(pt_regs, r10, regs);
        fd = READ(pt_regs, r8, regs);
        offset = READ(pt_regs, r9, regs);
    }
    u64 file = flags & MAP_ANONYMOUS ? 0 : file_of(task, fd);
    struct place place = {};
    if (file)
        place_of(&place, file);
    struct event event;
    if (mmap_send(&event, ctx->args[1], length, prot, flags, offset, &place))
        mmap_call(ctx, &event);
    return 0;
}
#endif
#endif

#ifdef WITH_mprotect
static __always_inline void mprotect_send(struct bpf_raw_tracepoint_args *ctx, u64 address, u64 length, u64 prot, u32 old_prot,
                                          long result, const struct place *place)
{
    struct event event;
    struct payload_mprotect *head = slot_begin(&event, KIND_mprotect);
    if (!head)
        return;
    head->address = address;
    head->length = length;
    head->prot = prot & PROT_ALL;
    head->errno = -result;
    head->old_prot = old_prot;
    if (mapping_send(&event, (struct payload_mmap *)head, &head->path, place, ROOM_mprotect)) {
        calls_mprotect.call(ctx, CALL_mprotect_on);
        slot_fell(&event);
    }
}

PROGRAM(mprotect_on)
{
    struct event event;
    struct payload_mprotect *head = slot_again(&event, KIND_mprotect);
    if (head && slot_on(&event, &head->path, ROOM_mprotect)) {
        calls_mprotect.call(ctx, CALL_mprotect_on);
        slot_fell(&event);
    }
    return 0;
}

#ifndef WITH_mprotect_sys_exit
PROGRAM(mprotect_begun)
{
    if (may_be_executable(ARGUMENT(do_mprotect_pkey, prot)))
        mapping_open(KIND_mprotect);
    return 0;
}

// Once for each mapping that the call goes over; the first counts that becomes executable. It serves the LSM hook, and fentry of
// the function that asks all security modules.
PROGRAM(mprotect_told)
{
    void *vma = (void *)ctx->args[0];
    u64 prot = ctx->args[2], old_prot = LOAD(vm_area_struct, vm_flags, vma) & PROT_ALL;
    if (!is_executable(prot & ~old_prot))
        return 0;
    struct mapping *mapping = mapping_now(KIND_mprotect);
    if (!mapping || mapping->told)
        return 0;
    mapping->old_prot = old_prot;
    mapping_tell(mapping, prot, LOAD(vm_area_struct, vm_file, vma));
    return 0;
}

// A call that failed before any mapping was looked at was not told of; nor was one that made nothing executable.
PROGRAM(mprotect_done)
{
    u64 prot = ARGUMENT(do_mprotect_pkey, prot);
    if (!may_be_executable(prot))
        return 0;
    struct mapping *mapping = mapping_close(KIND_mprotect);
    struct place place = {};
    u32 old_prot = UNKNOWN;
    int result = RETURNED(do_mprotect_pkey);
    if (mapping) {
        prot = mapping->prot;
        old_prot = mapping->old_prot;
        place = mapping->place;
    } else if (!result || !is_executable(prot)) {
        return 0;
    }
    mprotect_send(ctx, ARGUMENT(do_mprotect_pkey, start), ARGUMENT(do_mprotect_pkey, len), prot, old_prot, result, &place);
    return 0;
}
#endif

#ifdef WITH_mprotect_sys_exit
PROGRAM(mprotect_exit)
{
    void *regs = (void *)ctx->args[0];
    struct place nothing = {};
    u64 prot = READ(pt_regs, dx, regs);
    if (!is_executable(prot))
        return 0;
    if (is_compat((void *)bpf_get_current_task_btf()))
        mprotect_send(ctx, (u32)READ(pt_regs, bx, regs), (u32)READ(pt_regs, cx, regs), prot, UNKNOWN, ctx->args[1], &nothing);
    else
        mprotect_send(ctx, READ(pt_regs, di, regs), READ(pt_regs, si, regs), prot, UNKNOWN, ctx->args[1], &nothing);
    return 0;
}
#endif
#endif
