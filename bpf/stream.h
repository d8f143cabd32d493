// The data of an event's promises, sent after its head as parts 1, 2, …: first what lies in scratch memory (paths, and
// as much of the arguments as fills up its last chunk), then the process's own memory.
//
// Cursors live in map memory and are read again at each step: as locals they make the verifier follow every path.
// What a failed tail call or an unreadable page leaves out is said in a last chunk (CAPPED, CUT), never in silence.

#define STREAM_STEPS 850 // chunks per program; a tail call goes on: 16 of them carry 2.8 MiB

struct stream {
    u64 id;
    u64 user;       // where the process's memory goes on
    u64 next;       // where it goes on after `user_left` bytes (argv was capped, the environment follows)
    u32 at;         // where scratch memory goes on
    u32 local_left; // bytes; a multiple of a chunk unless nothing follows
    u32 user_left;
    u32 next_left;
    u32 part, parts;
    u32 granted;    // parts for which there is space, the head among them
    u16 kind;
    char straddle[2 * PAYLOAD];
};

// Send the head of an event whose data `stream` has in hand: all of it inside the head when it fits, else more follows.
// The event's id is in stream->id, also when the head was lost (and booked), or refused: then no chunk has it. An exec's own id is
// its exec id.
#define HEAD_LOST 0
#define HEAD_ALONE 1
#define HEAD_AND_MORE 2

static __always_inline int head_send(struct stream *stream, struct settings *set, struct books *book,
                                     struct kind_books *kind, u32 ring, void *head, char *buffer, u32 buffer_size, u32 room,
                                     u16 faults)
{
    u32 bytes = stream->local_left + stream->user_left + stream->next_left;
    stream->parts = bytes <= room ? 1 : 1 + (bytes + PAYLOAD - 1) / PAYLOAD;
    stream->part = 1;

    u32 granted;
    u64 id;
    struct chunk *chunk = head_room(set, book, kind, ring, stream->kind, stream->parts, &granted, &id);
    stream->granted = granted;
    if (!chunk) { // asked at once: Linux 6.1 does not know any more that it was asked before
        stream->id = id ? id : hidden_id(book, ring);
        return HEAD_LOST;
    }
    stream->id = id;
    bpf_probe_read_kernel(chunk->data, PAYLOAD, head);
    if (stream->kind == KIND_exec)
        chunk->common.exec_id = id;
    chunk->faults = faults;
    chunk->size = stream->parts == 1 ? bytes : 0;
    if (stream->parts == 1)
        bpf_probe_read_kernel(chunk->data + PAYLOAD - room, room, buffer + bound(stream->at, buffer_size - PAYLOAD));
    chunk_submit(chunk);
    return stream->parts == 1 ? HEAD_ALONE : HEAD_AND_MORE;
}

// A chunk that belongs to the stream's event, its header filled. NULL: no space, or not for it (a drop, and a hole in the event).
static __always_inline struct chunk *part_reserve(struct stream *stream, struct books *book, u32 ring)
{
    u64 sequence;
    struct chunk *chunk = chunk_reserve(book, rings.lookup(&ring), stream->part < stream->granted, &sequence);
    if (!chunk)
        return 0;
    chunk->id = stream->id;
    chunk->part = stream->part;
    chunk->parts = stream->parts;
    chunk->kind = stream->kind;
    chunk->size = 0;
    chunk->flags = 0;
    chunk->faults = 0;
    return chunk;
}

// End the event here and say why.
static __always_inline void stream_cut(struct stream *stream, struct books *book, u32 ring, u16 why)
{
    stream->parts = stream->part + 1;
    struct chunk *chunk = part_reserve(stream, book, ring);
    stream->part++;
    if (!chunk)
        return;
    chunk->flags = why;
    chunk_submit(chunk);
}

// Send one part of what lies in scratch memory: 0 goes on, 1 is at its end. Cursors move first, whether there is space for the chunk
// or not. (What lies where is sent by loops of their own: one for all costs the verifier three times as much.)
static __always_inline int local_step(struct stream *stream, char *buffer, u32 buffer_size, struct books *book, u32 ring)
{
    if (!stream->local_left)
        return 1;
    u64 at = stream->at, size = bound(stream->local_left, PAYLOAD);
    stream->at += size;
    stream->local_left -= size;
    struct chunk *chunk = part_reserve(stream, book, ring);
    stream->part++;
    if (!chunk)
        return 0;
    chunk->size = size;
    bpf_probe_read_kernel(chunk->data, PAYLOAD, buffer + bound(at, buffer_size - PAYLOAD));
    chunk_submit(chunk);
    return 0;
}

// The same of the process's own memory: 1 also at the end of one range, when the chunk that goes on with the next is to be sent.
static __always_inline int user_step(struct stream *stream, struct books *book, u32 ring)
{
    if (stream->part >= stream->parts || (stream->user_left < PAYLOAD && stream->next_left))
        return 1;
    u64 user = stream->user, size = bound(stream->user_left, PAYLOAD);
    stream->user += size;
    stream->user_left -= size;
    struct chunk *chunk = part_reserve(stream, book, ring);
    stream->part++;
    if (!chunk)
        return 0;
    chunk->size = size;
    if (!bpf_probe_read_user(chunk->data, size, (void *)user)) {
        chunk_submit(chunk);
        return 0;
    }
    chunk->size = 0;
    chunk->flags = CUT;
    stream->parts = chunk->parts = stream->part;
    chunk_submit(chunk);
    return 1;
}

// The end of one user range and the beginning of the next, in one chunk.
static __always_inline void straddle(struct stream *stream, struct books *book, u32 ring)
{
    u64 first = bound(stream->user_left, PAYLOAD);
    u64 second = bound(smaller(PAYLOAD - first, stream->next_left), PAYLOAD);
    int failed = bpf_probe_read_user(stream->straddle, first, (void *)stream->user);
    failed |= bpf_probe_read_user(stream->straddle + first, second, (void *)stream->next);
    stream->user = stream->next + second;
    stream->user_left = stream->next_left - second;
    stream->next_left = 0;
    if (failed) {
        stream_cut(stream, book, ring, CUT);
        return;
    }
    struct chunk *chunk = part_reserve(stream, book, ring);
    stream->part++;
    if (!chunk)
        return;
    chunk->size = first + second;
    bpf_probe_read_kernel(chunk->data, PAYLOAD, stream->straddle);
    chunk_submit(chunk);
}
