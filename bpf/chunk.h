// The chunk writer: the one place where chunks are made. docs/wire-format.md specifies the bytes.
//
// A chunk takes its sequence number before it tries to reserve space and its time after it (I1). So every
// chunk that found no space is a gap in the numbers, and for each ring, always:
//     producer position / 256 + drops = sequence - start
// Numbers, drops and the counts of events live in `books`, one row per ring, mapped by the pipeline; two rows behind them are
// for rings that the pipeline fills itself, and one for a ring that only the pipeline reads (audit.c).
//
// Scratch memory belongs to one program on one CPU: the kernel never runs a program again on a CPU where it is
// already running (it counts such a run as a recursion miss, and we book it). LSM programs are the exception: see slot.h.

struct kind_books {
    u64 attempted;      // events that a hook saw, those filtered included
    u64 lost_full;      // their head found no space in the ring
    u64 lost_call;      // a tail call before the head fell through
    u64 lost_slot;      // no scratch memory: too many runs overlapped
    u64 lost_budget;    // their group had taken its share of a ring that is nearly full (budget.h)
    u64 expired;        // joins of two hooks whose second half never came
    u64 filtered_self;  // caused by the pipeline itself (I8)
    u64 filtered_test;  // caused by the loader's self-test
    u64 filtered_uid;
    u64 filtered_cgroup;
    u64 filtered_kind;  // not among the events asked for
};

struct books {
    u64 sequence;       // chunk attempts, from `start` on
    u64 start;          // microseconds since boot when the ring was made
    u64 drops;          // attempts that found no space, or no ring
    u64 no_ring;        // of those: no ring for this CPU
    u64 hidden;         // ids given to execs that a filter hid or the budget refused
    u64 identity_full;  // processes that found no place in `identities`
    u64 cut_calls;      // events cut short because a tail call fell through
    u64 joins;          // open joins of two hooks; 0 when nothing is under way
    u64 ask;            // up to this number nobody needs to ask how full the ring is (budget.h)
    u64 followed;       // in row 0: connects of all CPUs that a connect_done will follow, or more (connect_done.c)
    struct kind_books kinds[KINDS];
};

// What can change while programs stay attached. One row, written by the loader.
struct settings {
    u64 kinds;          // bit n: events of kind n are asked for
    u64 reserve;        // 1/1024ths of a CPU's ring that are kept for some (budget.h)
    u64 share;          // 1/1024ths of what is free of these that one group may have; 0: all of it
    u32 environment;    // 0: the environment is not read
    u32 by_uid;         // 1: only uids in `uids`
    u32 by_cgroup;      // 1: only cgroups in `cgroups`
    u32 cgroup_known;   // 0: version-1 hierarchies, the id that the kernel gives means nothing
    u32 cap_path, cap_argv, cap_environment;
    u32 memory_all;     // mappings that cannot be executed too
};

BPF_RINGBUF_OUTPUT(ring_model, 1);
#define RECORDS RINGS // the place of that ring in `rings`
#define RECORDS_ROW (RINGS + 2)
BPF_ARRAY_OF_MAPS(rings, "ring_model", RINGS + 1);
BPF_F_TABLE("array", u32, struct books, books, RINGS + 3, 1U << 10 /* BPF_F_MMAPABLE */);
BPF_ARRAY(settings, struct settings, 1);

#define CUT 1
#define CAPPED 2
#define STRIDE (sizeof(struct chunk) + 8) // with the kernel's own header
#define EVENT_ID(ring, sequence) ((u64)(ring) << 52 | (sequence))

#define count(counter) __sync_fetch_and_add(&(counter), 1)

// An id that no chunk has, for an exec that nobody will hear of.
static __always_inline u64 hidden_id(struct books *book, u32 ring)
{
    u64 hidden = __sync_fetch_and_add(&book->hidden, 1);
    return HIDDEN | EVENT_ID(ring, hidden);
}

// Room for one chunk in a ring, numbered and timed. NULL: no ring, no space, or it may not have it; the number is used up and the
// drop counted.
static __always_inline struct chunk *chunk_reserve(struct books *book, void *space, int may, u64 *sequence)
{
    *sequence = __sync_fetch_and_add(&book->sequence, 1);
    if (!space)
        count(book->no_ring);
    struct chunk *chunk = space && may ? bpf_ringbuf_reserve(space, sizeof(struct chunk), 0) : 0;
    if (!chunk) {
        count(book->drops);
        return 0;
    }
    chunk->sequence = *sequence;
    chunk->time = bpf_ktime_get_boot_ns();
    return chunk;
}

#define chunk_submit(chunk) bpf_ringbuf_submit(chunk, 0)
