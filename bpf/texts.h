// Short texts of the kernel's as an event's data: appended in a slot, in the order of the schema's promises, and sent at once,
// without tail calls. A slot has room for a few names and, as the last, one longer text.

#define NAME_MOST 512   // bytes of a name with its NUL: what the kernel allows a symbol
#define NAMES_MOST 1024 // of names together
#define LONG_MOST (SLOT_STRINGS - NAMES_MOST)
#define TEXT_STEPS 48   // chunks

#define text_end(slot) ((slot)->buffer + bound((slot)->back, SLOT_MIDDLE + NAMES_MOST))

// What a helper of the kernel's put at the end, of at most `most` bytes with its NUL; `n` is its answer.
static __always_inline void text_added(struct event *event, struct promise *promise, int n)
{
    promise->of = n > 1 ? n - 1 : 0;
    promise->have = smaller(promise->of, event->set->cap_path);
    event->slot->back += promise->have;
}

// A string; where there is none: nothing.
static __always_inline void name_add(struct event *event, struct promise *promise, const void *name)
{
    text_added(event, promise, bpf_probe_read_kernel_str(text_end(event->slot), NAME_MOST, name));
}

// The longer text, from the process's own memory; `place` is its promise's.
static __always_inline void user_text_add(struct event *event, struct promise *promise, u32 place, const void *text)
{
    char beyond = 0;
    int n = bpf_probe_read_user_str(text_end(event->slot), LONG_MOST, text);
    text_added(event, promise, n);
    if (n < 0) {
        event->slot->faults |= 1 << place;
        promise->of = UNKNOWN;
    } else if (n == LONG_MOST && !bpf_probe_read_user(&beyond, 1, text + LONG_MOST - 1) && beyond) {
        promise->of = UNKNOWN; // it is longer
    }
}

// Bytes; `most` is a constant.
static __always_inline void bytes_add(struct event *event, struct promise *promise, const void *from, u32 size, u32 most)
{
    u64 length = bound(size, most);
    bpf_probe_read_kernel(text_end(event->slot), length, from);
    promise->of = size;
    promise->have = length;
    event->slot->back += length;
}

struct format {
    char text[8];
};

// For bpf_snprintf, which takes a format only from where nobody can write any more: the loader fills it in and freezes it.
BPF_F_TABLE("array", u32, struct format, formats, 1, 1U << 7 /* BPF_F_RDONLY_PROG */);

// What the kernel calls an address, how far behind that name's start it is, and the name's size.
static __always_inline void symbol_add(struct event *event, struct promise *promise, u64 address)
{
    u32 zero = 0;
    struct format *format = formats.lookup(&zero);
    int n = format ? bpf_snprintf(text_end(event->slot), NAME_MOST, format->text, &address, sizeof(address)) : 0;
    text_added(event, promise, n);
}

static __always_inline void texts_send(struct event *event, u32 room)
{
    struct slot *slot = event->slot;
    if (slot_send(event, room) == HEAD_AND_MORE)
        for (int i = 0; i < TEXT_STEPS; i++)
            if (local_step(&slot->stream, slot->buffer, SLOT_BUFFER, event->book, event->ring))
                break;
    slot_give(slot);
}
