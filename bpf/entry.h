// The entry: the program that a hook's link holds, from the first attach to the detach. It goes on to its slot, where the loader
// puts one generation's program after the other (kernel/handover.py): each run of the hook meets the old one or the new one, whole.
// Generated: entry_KIND for each kind, and entry_before for hooks that make no events themselves, or those of several kinds
// (kernel/source.py).

BPF_PROG_ARRAY(entry_slot, 1); // each hook has its own in this one's place

// `number`: the kind of event that is lost where the slot is empty; 0: of none
static __always_inline int enter(struct bpf_raw_tracepoint_args *ctx, u32 number)
{
    entry_slot.call(ctx, 0);
    u32 ring = bpf_get_smp_processor_id();
    struct books *book = books.lookup(&ring);
    if (!book)
        return 0;
    if (number) {
        count(book->kinds[number].attempted);
        count(book->kinds[number].lost_call);
    } else {
        count(book->cut_calls);
    }
    return 0;
}
