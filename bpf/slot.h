// Scratch memory for programs that can be preempted: those of LSM hooks, fentry and fexit. Another task's run on the same CPU
// may come between, so what belongs to the CPU alone is not theirs alone. Each CPU has a few slots; a program takes one and gives
// it back. A slot that was taken says whose it is, so that a part behind a tail call finds it again.

#define SLOTS 4 // runs that can overlap on one CPU; one more is a lost event, booked (lost_slot)

struct slot {
    u64 owner; // task; 0: free
    struct walk walk;
    struct stream stream;
    u32 faults;
    u32 back;
    u8 head[PAYLOAD];
    char buffer[MIDDLE + STRING_ROOM + PAYLOAD];
};

BPF_ARRAY(slots, struct slot, RINGS * SLOTS);

// A free slot of this CPU, now the current task's. NULL: all are taken, the event is lost and booked.
static __always_inline struct slot *slot_take(struct kind_books *kind, u32 ring)
{
#pragma unroll
    for (int i = 0; i < SLOTS; i++) {
        u32 index = ring * SLOTS + i;
        struct slot *slot = slots.lookup(&index);
        if (slot && !__sync_val_compare_and_swap(&slot->owner, 0, bpf_get_current_task()))
            return slot;
    }
    count(kind->lost_slot);
    return 0;
}

// The slot that the current task took.
static __always_inline struct slot *slot_mine(u32 ring)
{
#pragma unroll
    for (int i = 0; i < SLOTS; i++) {
        u32 index = ring * SLOTS + i;
        struct slot *slot = slots.lookup(&index);
        if (slot && slot->owner == bpf_get_current_task())
            return slot;
    }
    return 0;
}

static __always_inline void slot_give(struct slot *slot)
{
    slot->owner = 0;
}
