// How most programs begin: an event of the current process is counted, and its head reserved if anybody asked for it.

struct slot;

struct event {
    struct settings *set;
    struct books *book;
    struct kind_books *kind;
    struct identity *self;
    void *task, *leader;
    u32 ring;
    struct slot *slot; // of those that need one
};

// 0: there are no books.
static __always_inline int event_begin(struct event *event, u16 number)
{
    u32 zero = 0;
    event->ring = bpf_get_smp_processor_id();
    event->book = books.lookup(&event->ring);
    event->set = settings.lookup(&zero);
    if (!event->book || !event->set)
        return 0;
    event->kind = &event->book->kinds[number];
    count(event->kind->attempted);
    event->task = (void *)bpf_get_current_task_btf();
    event->leader = leader_of(event->task);
    struct identity_key key;
    key_of(&key, event->leader);
    event->self = identities.lookup(&key);
    return 1;
}

static __always_inline u64 event_flags(struct event *event)
{
    return event->self ? event->self->flags : 0;
}

// The head, its common block filled; NULL: not wanted or no space, which is booked.
static __always_inline struct chunk *event_reserve(struct event *event, u16 number)
{
    if (!wanted(event->set, event->kind, number, event_flags(event)))
        return 0;
    struct chunk *chunk = head_reserve(event->set, event->book, event->kind, event->ring, number);
    if (chunk)
        fill_common(&chunk->common, event->set, event->task, event->leader, event->self);
    return chunk;
}
