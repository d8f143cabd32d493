// audit: each record that the kernel's audit system has finished, before any socket has to have room for it.
//
// Records, not events: the pipeline joins those of one serial (pipeline/sources/serials.py), and writes the events into a ring
// of its own. Until then a record waits in one ring for all CPUs, so that records stay in order: its head is that of an `audit`
// event with one record, and the process that wrote it. A record lost is a drop of that ring.

#ifdef WITH_audit_fexit
#define RECORD_HEADER 16  // the netlink header before the text
#define RECORD_TYPE 4     // where the type is in it
#define RECORD_PARTS 48   // 9,776 bytes; the kernel's longest record has 8,970
#define COMPANY 4         // records that can come together

// The rest of a record, a part at a time: 1 at its end. Cursors in map memory move first, so that they are read again at the next
// step: as locals they make the verifier of Linux 6.1 follow every path.
static __always_inline int record_step(struct stream *stream, struct books *book, void *space, void *data)
{
    u64 sequence, at = stream->at, left = bound(stream->local_left, PAYLOAD);
    if (!left)
        return 1;
    stream->at += left;
    stream->local_left -= left;
    u16 part = stream->part++;
    struct chunk *chunk = chunk_reserve(book, space, 1, &sequence);
    if (!chunk)
        return 1;
    chunk->id = stream->id;
    chunk->part = part;
    chunk->parts = stream->parts;
    chunk->kind = KIND_audit;
    chunk->flags = chunk->faults = 0;
    chunk->size = left;
    bpf_probe_read_kernel(chunk->data, left, data + at);
    chunk_submit(chunk);
    return 0;
}

static __always_inline void record_send(struct event *event, void *skb)
{
    struct books *book = event->book;
    struct kind_books *kind = event->kind;
    struct stream *stream = &event->slot->stream;
    void *data = (void *)READ(sk_buff, data, skb);
    u64 size = READ(sk_buff, len, skb) - RECORD_HEADER, sequence;
    u32 ring = RECORDS;
    void *space = rings.lookup(&ring);
    count(kind->attempted);
    struct chunk *chunk = chunk_reserve(book, space, 1, &sequence);
    if (!chunk) {
        count(kind->lost_full);
        return;
    }
    size = bound(size, (RECORD_PARTS - 1) * PAYLOAD);
    struct payload_audit *head = &chunk->audit;
    fill_common(&chunk->common, event->set, event->task, event->leader, event->self);
    bpf_probe_read_kernel(&head->type, sizeof(head->type), data + RECORD_TYPE);
    head->audit_time = 0;
    head->serial = 0;
    head->records_count = 1;
    head->records.of = head->records.have = size;
    stream->id = chunk->id = sequence;
    stream->part = 1;
    stream->parts = size <= ROOM_audit ? 1 : 1 + (size + PAYLOAD - 1) / PAYLOAD;
    stream->at = RECORD_HEADER;
    stream->local_left = size <= ROOM_audit ? 0 : size;
    chunk->part = 0;
    chunk->parts = stream->parts;
    chunk->kind = KIND_audit;
    chunk->flags = chunk->faults = 0;
    chunk->size = stream->local_left ? 0 : size;
    if (!stream->local_left)
        bpf_probe_read_kernel(head->room, bound(size, ROOM_audit), data + RECORD_HEADER);
    chunk_submit(chunk);
    for (u32 part = 1; part < RECORD_PARTS; part++)
        if (record_step(stream, book, space, data))
            break;
}

PROGRAM(on_audit_record)
{
    u32 row = RECORDS_ROW, zero = 0;
    void *buffer = (void *)ctx->args[0];
    struct event event = {.ring = bpf_get_smp_processor_id()};
    struct books *mine = books.lookup(&event.ring);
    event.book = books.lookup(&row);
    event.set = settings.lookup(&zero);
    if (!event.book || !event.set || !mine || !buffer)
        return 0;
    event.kind = &event.book->kinds[KIND_audit];
    event.task = (void *)bpf_get_current_task_btf();
    event.leader = leader_of(event.task);
    struct identity_key key;
    key_of(&key, event.leader);
    event.self = identities.lookup(&key);
    if (event_flags(&event) & TEST) { // one record, one event; in this CPU's row, because the pipeline writes audit's own
        count(mine->kinds[KIND_audit].attempted);
        count(mine->kinds[KIND_audit].filtered_test);
        return 0;
    }
    void *skb = (void *)READ(audit_buffer, skb, buffer);
    u64 left = READ_IF(audit_buffer, skb_list__qlen, buffer, 1); // newer kernels have some that only accompany it
    event.slot = slot_take(event.kind, event.ring);
    if (!event.slot)
        return 0;
    for (u32 i = 0; i < COMPANY; i++) {
        if (!skb || i >= left)
            break;
        record_send(&event, skb);
        skb = (void *)READ(sk_buff, next, skb);
    }
    slot_give(event.slot);
    return 0;
}
#endif
