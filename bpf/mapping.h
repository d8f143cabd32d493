// Calls whose beginning, LSM hook and end are joined (memory.c): what is known of one stands in the task's storage from where it
// begins to where it ends.

#ifndef MAPPING
#define MAPPING
#define READ_IMPLIES_EXEC 0x400000

struct mapping {
    struct place place;
    u32 kind; // 0: no call is under way
    u32 told; // the LSM hook was there
    u32 prot, old_prot;
    u32 flags;
};

BPF_TASK_STORAGE(mappings, struct mapping);

// Before the LSM hook has said how it takes effect.
static __always_inline int may_be_executable(u64 prot)
{
    return is_executable(prot) || LOAD(task_struct, personality, bpf_get_current_task_btf()) & READ_IMPLIES_EXEC;
}

static __always_inline void mapping_closed(struct mapping *mapping, struct books *book)
{
    mapping->kind = 0;
    __sync_fetch_and_add(&book->joins, -1);
}

// A call whose end never came: the kernel skipped that run.
static __always_inline void mapping_expired(struct mapping *mapping, struct books *book)
{
    struct kind_books *kind = &book->kinds[bound(mapping->kind, KINDS - 1)];
    count(kind->attempted);
    count(kind->expired);
    mapping_closed(mapping, book);
}

static __always_inline void mapping_open(u32 kind)
{
    u32 ring = bpf_get_smp_processor_id();
    struct books *book = books.lookup(&ring);
    struct mapping *mapping = mappings.task_storage_get(bpf_get_current_task_btf(), 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
    if (!book || !mapping)
        return;
    if (mapping->kind)
        mapping_expired(mapping, book);
    mapping->kind = kind;
    mapping->told = 0;
    count(book->joins);
}

// The current task's call of this kind. NULL: there is none that anybody wants to know of.
static __always_inline struct mapping *mapping_now(u32 kind)
{
    struct mapping *mapping = mappings.task_storage_get(bpf_get_current_task_btf(), 0, 0);
    struct mapping *found = mapping && mapping->kind == kind ? mapping : 0;
    asm volatile("" : "+r"(found)); // or it is the kind that is tested later, of which the verifier knows nothing
    return found;
}

// What an LSM hook knows of it.
static __always_inline void mapping_tell(struct mapping *mapping, u64 prot, u64 file)
{
    mapping->told = 1;
    mapping->prot = prot;
    mapping->place.dentry = 0;
    if (file)
        place_of(&mapping->place, file);
}

// The same at its end. NULL: the LSM hook was not there.
static __always_inline struct mapping *mapping_close(u32 kind)
{
    u32 ring = bpf_get_smp_processor_id();
    struct books *book = books.lookup(&ring);
    struct mapping *mapping = mapping_now(kind);
    if (!book || !mapping)
        return 0;
    mapping_closed(mapping, book);
    return mapping->told ? mapping : 0;
}

PROGRAM(mapping_task_ended)
{
    u32 ring = bpf_get_smp_processor_id();
    struct books *book = books.lookup(&ring);
    struct mapping *mapping = mappings.task_storage_get(bpf_get_current_task_btf(), 0, 0);
    if (book && mapping && mapping->kind)
        mapping_expired(mapping, book);
    return 0;
}
#endif
