// What is asked of every mapping first.

#define PROT_EXEC 4
#define PROT_ALL 7 // VM_READ, VM_WRITE and VM_EXEC have the same numbers

static __always_inline int is_executable(u64 prot)
{
    u32 zero = 0;
    if (prot & PROT_EXEC)
        return 1;
    struct settings *set = settings.lookup(&zero);
    return set && set->memory_all;
}
