// Whose chunks a CPU's ring takes when it is nearly full, so that a flood of one cannot push out what others do.
//
// A part of each ring, its last eighth by default, is kept for exec, fork and exit: when a ring is full up to there, any
// other chunk finds no space. Of what is still free of the kept part, one group may have a share, by default a half. A group
// is a cgroup; where ids of cgroups mean nothing (version 1) an audit session, or a user outside of any. No process leaves
// its group by forking. The more floods have taken, the less each may take, so they end by themselves: one with a third of the
// kept part, two with a quarter each, four with a sixth each; a group that has nothing there yet always finds room. Parts of
// an exec's data stop at half of what its head may: heads go first, and an exec whose parts are refused is there, unsettled.
//
// What a group has taken counts until all of it was read, by positions and not by time: so the bound holds however long nobody
// reads, and is gone when the ring is read. While a ring is not that full nothing is counted, and hardly anything asked: who asks
// how full it is learns how many numbers can go by until it could be (`ask`).
//
// An event asks once, for all of its chunks, before its head has a number. The budget's refusal is a lost event with a counter
// of its own, and no gap.
//
// Measured (tests/faults/test_flood.py, long form): rings of 1 MiB that nobody reads, filled by floods; then 30 programs of
// another group. How many of their execs come, and how many of these whole:
//
//     kept, share         one flood of execs      four
//     nothing                0                    0
//     1/8, without bound     0                    0
//     1/16, 1/2             30, 15 whole          8,  3 whole
//     1/8, 1/4              30, 21 whole         25, 11 whole
//     1/8, 1/2              30, all whole        21,  9 whole
//     1/8, all              30, all whole         9,  5 whole
//     1/4, 1/2              30, all whole        30, 20 whole
//
// An eighth of the default ring is 16 times what it is there. Who may make cgroups of his own can be many floods.

#define NO_SESSION 0xffffffff
#define KEPT(number) ((number) == KIND_exec || (number) == KIND_fork || (number) == KIND_exit)
#define PART(of, part) ((of) * (part) >> 10)

struct group {
    u64 id;
    u64 what;
};
#define GROUP_CGROUP 0
#define GROUP_SESSION 1
#define GROUP_USER 2

struct budget {
    u64 taken; // chunks in the kept part
    u64 end;   // position behind the last of them
};

BPF_TABLE("lru_percpu_hash", struct group, struct budget, budgets, 4096); // a ring belongs to a CPU

static __always_inline void group_of(struct group *group, struct settings *set)
{
    if (set->cgroup_known) {
        group->id = bpf_get_current_cgroup_id();
        group->what = GROUP_CGROUP;
        return;
    }
    group->id = LOAD_IF(task_struct, sessionid, bpf_get_current_task_btf(), NO_SESSION);
    group->what = GROUP_SESSION;
    if (group->id == NO_SESSION) {
        group->id = (u32)bpf_get_current_uid_gid();
        group->what = GROUP_USER;
    }
}

// How many of an event's chunks the current group may have in the kept part, of which `free` bytes are left; `open` of them have
// their place before it.
static __always_inline u32 budget_take(struct settings *set, void *space, u64 free, u32 open, u32 parts)
{
    u32 head = !open, wanted = parts - open;
    struct group group;
    struct budget none = {};
    group_of(&group, set);
    struct budget *budget = budgets.lookup_or_try_init(&group, &none);
    if (!budget || !set->share)
        return wanted;
    u64 share = PART(free, set->share);
    u64 taken = bpf_ringbuf_query(space, BPF_RB_CONS_POS) < budget->end ? budget->taken : 0;
    if (head && taken * STRIDE >= share)
        return 0;
    u64 most = share / 2 / STRIDE;
    u64 granted = head;
    if (taken + head < most)
        granted += smaller(most - taken - head, wanted - head);
    budget->taken = taken + granted;
    budget->end = bpf_ringbuf_query(space, BPF_RB_PROD_POS) + parts * STRIDE;
    return granted;
}

// How many of an event's chunks may go into a ring.
static __always_inline u32 grant(struct settings *set, struct books *book, void *space, u16 number, u32 parts)
{
    u64 sequence = book->sequence;
    if (sequence + parts <= book->ask)
        return parts;
    u64 size = bpf_ringbuf_query(space, BPF_RB_RING_SIZE), filled = bpf_ringbuf_query(space, BPF_RB_AVAIL_DATA);
    u64 anyones = size - PART(size, set->reserve);
    u64 open = filled < anyones ? (anyones - filled) / STRIDE : 0;
    book->ask = sequence + open;
    if (parts <= open)
        return parts;
    if (!KEPT(number))
        return open;
    return open + budget_take(set, space, size - filled, open, parts);
}

// Room for the head of an event of `parts` chunks, of which `granted` may be sent. NULL: the event is lost, and booked. Its `id`
// is 0 when it has taken no number.
static __always_inline struct chunk *head_room(struct settings *set, struct books *book, struct kind_books *kind, u32 ring,
                                               u16 number, u32 parts, u32 *granted, u64 *id)
{
    void *space = rings.lookup(&ring);
    *granted = space ? grant(set, book, space, number, parts) : 0;
    if (KEPT(number) && space && !*granted) {
        *id = 0;
        count(kind->lost_budget);
        return 0;
    }
    u64 sequence;
    struct chunk *chunk = chunk_reserve(book, space, *granted, &sequence);
    *id = EVENT_ID(ring, sequence);
    if (!chunk) {
        count(kind->lost_full);
        return 0;
    }
    chunk->id = *id;
    chunk->part = 0;
    chunk->parts = parts;
    chunk->kind = number;
    chunk->size = 0;
    chunk->flags = 0;
    chunk->faults = 0;
    return chunk;
}

// The same for an event without data beyond its head.
static __always_inline struct chunk *head_reserve(struct settings *set, struct books *book, struct kind_books *kind, u32 ring,
                                                  u16 number)
{
    u32 granted;
    u64 id;
    return head_room(set, book, kind, ring, number, 1, &granted, &id);
}
