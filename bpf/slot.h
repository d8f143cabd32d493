// Scratch memory for programs that can be preempted: those of LSM hooks, fentry and fexit. Another task's run on the same CPU
// may come between, so what belongs to the CPU alone is not theirs alone. Each CPU has a few slots; a program takes one and gives
// it back. A slot that was taken says whose it is, so that a part behind a tail call finds it again.

#define SLOTS 4 // runs that can overlap on one CPU; one more is a lost event, booked (lost_slot)
#define SLOT_MIDDLE (PATH_ROOM + NAME_ROOM) // of a buffer: one path is walked back from here, strings read on
#define SLOT_STRINGS 5120
#define SLOT_BUFFER (SLOT_MIDDLE + SLOT_STRINGS + PAYLOAD)
#define SLOT_STEPS (SLOT_BUFFER / PAYLOAD + 1) // chunks

struct slot {
    u64 owner; // task; 0: free
    struct walk walk;
    struct stream stream;
    u32 streaming; // the head is sent, its data follows
    u32 faults;
    u32 back;
    u8 head[PAYLOAD];
    char buffer[SLOT_BUFFER];
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

// Count an event of the current process and begin it in a slot. NULL: not wanted, or lost; it is booked. Otherwise the payload to
// be filled, its common block done.
static __always_inline void *slot_begin(struct event *event, u16 number)
{
    if (!event_begin(event, number) || !wanted(event->set, event->kind, number, event_flags(event)))
        return 0;
    struct slot *slot = event->slot = slot_take(event->kind, event->ring);
    if (!slot)
        return 0;
    slot->back = slot->walk.at = SLOT_MIDDLE;
    slot->walk.calls = slot->streaming = slot->faults = 0;
    slot->stream.kind = number;
    fill_common((struct payload_common *)slot->head, event->set, event->task, event->leader, event->self);
    return slot->head;
}

// Send what the slot has: a path that was walked, and strings behind it.
static __always_inline int slot_send(struct event *event, u32 room)
{
    struct slot *slot = event->slot;
    struct stream *stream = &slot->stream;
    stream->at = slot->walk.at;
    stream->local_left = slot->back - slot->walk.at;
    stream->user_left = stream->next_left = 0;
    return head_send(stream, event->set, event->book, event->kind, event->ring, slot->head, slot->buffer, SLOT_BUFFER, room,
                     slot->faults);
}

// What a part behind a tail call goes on with: the slot's payload.
static __always_inline void *slot_again(struct event *event, u16 number)
{
    u32 zero = 0;
    event->ring = bpf_get_smp_processor_id();
    event->book = books.lookup(&event->ring);
    event->set = settings.lookup(&zero);
    event->slot = slot_mine(event->ring);
    if (!event->book || !event->set || !event->slot)
        return 0;
    event->kind = &event->book->kinds[number];
    return event->slot->head;
}

// Send the head. 0: that was all, the slot is given back; 1: a part has to send what follows.
static __always_inline int slot_finish(struct event *event, u32 room)
{
    struct slot *slot = event->slot;
    slot->streaming = slot_send(event, room) == HEAD_AND_MORE;
    if (slot->streaming)
        return 1;
    slot_give(slot);
    return 0;
}

// What a part does each time that it is called: walk on, and send the head at the path's end; or send what follows. 1: it has to
// be called again.
static __always_inline int slot_on(struct event *event, struct promise *path, u32 room)
{
    struct slot *slot = event->slot;
    if (slot->streaming) {
        for (int i = 0; i < SLOT_STEPS; i++)
            if (local_step(&slot->stream, slot->buffer, SLOT_BUFFER, event->book, event->ring))
                break;
        slot_give(slot);
        return 0;
    }
    if (!walk_on(&slot->walk, slot->buffer, SLOT_BUFFER, path)) {
        if (++slot->walk.calls < WALK_CALLS)
            return 1;
        walk_give_up(event->book, &slot->walk, path);
    }
    return slot_finish(event, room);
}

// The call of the part fell through.
static __always_inline void slot_fell(struct event *event)
{
    struct slot *slot = event->slot;
    if (slot->streaming) {
        count(event->book->cut_calls);
        stream_cut(&slot->stream, event->book, event->ring, CAPPED);
    } else {
        count(event->kind->lost_call);
    }
    slot_give(slot);
}
