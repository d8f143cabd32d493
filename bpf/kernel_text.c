// kernel_text: the kernel's own code was changed. ksymbol: code that was made at run time got a name, or lost it.

#ifdef WITH_kernel_text_fexit
#define POKE_MOST 64 // a change is an instruction or two

PROGRAM(text_poked)
{
    struct event event;
    struct payload_kernel_text *head = slot_begin(&event, KIND_kernel_text);
    if (!head)
        return 0;
    u64 old = UNTYPED(perf_event_text_poke, old_bytes), new = UNTYPED(perf_event_text_poke, new_bytes);
    u64 old_size = UNTYPED(perf_event_text_poke, old_len), new_size = UNTYPED(perf_event_text_poke, new_len);
    head->address = UNTYPED(perf_event_text_poke, addr);
    head->length = new_size;
    symbol_add(&event, &head->symbol, head->address);
    bytes_add(&event, &head->old, (void *)old, old_size, POKE_MOST);
    bytes_add(&event, &head->new, (void *)new, new_size, POKE_MOST);
    texts_send(&event, ROOM_kernel_text);
    return 0;
}
#endif

#ifdef WITH_ksymbol_fexit
#define KSYMBOL_BPF 1 // enum perf_record_ksymbol_type

static __always_inline void ksymbol_send(u64 address, u64 length, u16 type, u8 unregister, const void *name)
{
    struct event event;
    struct payload_ksymbol *head = slot_begin(&event, KIND_ksymbol);
    if (!head)
        return;
    head->address = address;
    head->length = length;
    head->type = type;
    head->unregister = unregister;
    name_add(&event, &head->name, name);
    texts_send(&event, ROOM_ksymbol);
}

static __always_inline void ksymbol_bpf(void *symbol, u8 unregister)
{
    u64 start = READ(bpf_ksym, start, symbol);
    ksymbol_send(start, READ(bpf_ksym, end, symbol) - start, KSYMBOL_BPF, unregister, AT(bpf_ksym, name, symbol));
}

// perf hears of BPF's only while somebody listens to it, so these are taken where they are made …
PROGRAM(ksymbol_added)
{
    ksymbol_bpf((void *)ARGUMENT(bpf_ksym_add, ksym), 0);
    return 0;
}

PROGRAM(ksymbol_removed)
{
    void *symbol = (void *)ARGUMENT(bpf_ksym_del, ksym);
    u64 next = READ(bpf_ksym, lnode__next, symbol);
    if (next && next != (u64)AT(bpf_ksym, lnode, symbol)) // else it was never added
        ksymbol_bpf(symbol, 1);
    return 0;
}

// … and all others here.
PROGRAM(ksymbol_told)
{
    u16 type = ARGUMENT(perf_event_ksymbol, ksym_type);
    if (type != KSYMBOL_BPF)
        ksymbol_send(ARGUMENT(perf_event_ksymbol, addr), (u32)ARGUMENT(perf_event_ksymbol, len), type,
                     ARGUMENT(perf_event_ksymbol, unregister) & 1, (void *)ARGUMENT(perf_event_ksymbol, sym));
    return 0;
}
#endif
