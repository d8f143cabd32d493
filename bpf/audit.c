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

static __always_inline void record_send(struct books *book, struct settings *set, void *task, void *leader,
                                        struct identity *self, void *skb)
{
    struct kind_books *kind = &book->kinds[KIND_audit];
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
    u64 id = sequence, parts = size <= ROOM_audit ? 1 : 1 + (size + PAYLOAD - 1) / PAYLOAD;
    struct payload_audit *head = &chunk->audit;
    fill_common(&chunk->common, set, task, leader, self);
    bpf_probe_read_kernel(&head->type, sizeof(head->type), data + RECORD_TYPE);
    head->audit_time = 0;
    head->serial = 0;
    head->records_count = 1;
    head->records.of = head->records.have = size;
    chunk->id = id;
    chunk->part = 0;
    chunk->parts = parts;
    chunk->kind = KIND_audit;
    chunk->flags = chunk->faults = 0;
    chunk->size = parts == 1 ? size : 0;
    if (parts == 1)
        bpf_probe_read_kernel(head->room, bound(size, ROOM_audit), data + RECORD_HEADER);
    chunk_submit(chunk);

    for (u32 part = 1; part < RECORD_PARTS; part++) {
        if (part >= parts)
            break;
        chunk = chunk_reserve(book, space, 1, &sequence);
        if (!chunk)
            break; // Linux 6.1 follows every way through a loop that goes on
        u64 at = (part - 1) * PAYLOAD;
        u64 left = bound(size - at, PAYLOAD);
        chunk->id = id;
        chunk->part = part;
        chunk->parts = parts;
        chunk->kind = KIND_audit;
        chunk->flags = chunk->faults = 0;
        chunk->size = left;
        bpf_probe_read_kernel(chunk->data, left, data + RECORD_HEADER + at);
        chunk_submit(chunk);
    }
}

PROGRAM(on_audit_record)
{
    u32 row = RECORDS_ROW, own = AUDIT_ROW, zero = 0;
    struct books *book = books.lookup(&row), *events = books.lookup(&own);
    struct settings *set = settings.lookup(&zero);
    void *buffer = (void *)ctx->args[0];
    if (!book || !events || !set || !buffer)
        return 0;
    void *task = (void *)bpf_get_current_task_btf(), *leader = leader_of(task);
    struct identity_key key;
    key_of(&key, leader);
    struct identity *self = identities.lookup(&key);
    if (self && self->flags & TEST) { // one record, one event
        count(events->kinds[KIND_audit].attempted);
        count(events->kinds[KIND_audit].filtered_test);
        return 0;
    }
    void *skb = (void *)READ(audit_buffer, skb, buffer);
    u64 left = READ_IF(audit_buffer, skb_list__qlen, buffer, 1); // newer kernels have some that only accompany it
    for (u32 i = 0; i < COMPANY; i++) {
        if (!skb || i >= left)
            break;
        record_send(book, set, task, leader, self, skb);
        skb = (void *)READ(sk_buff, next, skb);
    }
    return 0;
}
#endif
