// Reading the kernel's structures.
//
// READ(type, field, pointer) is the value of ((struct type *)pointer)->field, by a read that cannot fault; a nested
// field is written outer__inner. The loader finds every READ and AT in these sources, looks the field up in the
// running kernel's BTF, and defines OFFSET_type__field and TYPE_type__field: there are no copies of kernel structs
// that could be laid out wrongly. FIELD_type__field, put into a register just before the read, lets the loader
// check each read of the compiled program against BTF (kernel/offsets.py); what is added to
// the pointer after it is the offset.

// By their own names, bcc would read all of /proc/kallsyms at each call of these in the sources, to learn whether the
// kernel has them (every kernel with BTF does): half of the time that compiling takes. The program is the same.
static int (*read_user)(void *to, u32 size, const void *from) = (void *)BPF_FUNC_probe_read_user;
static int (*read_user_string)(void *to, u32 size, const void *from) = (void *)BPF_FUNC_probe_read_user_str;
#define bpf_probe_read_user read_user
#define bpf_probe_read_user_str read_user_string

#define READ(type, field, pointer) ({                                                             \
    TYPE_##type##__##field value_ = 0;                                                            \
    const void *from_ = (const void *)(pointer);                                                  \
    u64 tag_;                                                                                     \
    asm volatile("%0 = %2" : "=r"(tag_), "+r"(from_) : "i"(FIELD_##type##__##field));             \
    bpf_probe_read_kernel(&value_, sizeof(value_), from_ + OFFSET_##type##__##field);             \
    value_;                                                                                       \
})

// The same by a plain load, for pointers that the verifier knows: bpf_get_current_task_btf() and whatever is loaded from it (the
// verifier turns it into a load that cannot fault), or a copy of our own, as READ_BEGIN makes. It costs a tenth of a READ.
#define LOAD(type, field, pointer) ({                                                             \
    u64 value_;                                                                                   \
    asm volatile("%0 = %2\n %0 = *(" WIDTH_##type##__##field " *)(%1 + %3)"                       \
                 : "=&r"(value_)                                                                  \
                 : "r"(pointer), "i"(FIELD_##type##__##field | LOADED), "i"(OFFSET_##type##__##field)); \
    value_;                                                                                       \
})

// By a LOAD where the pointer is one that the verifier knows, which is a constant for each program.
#define GET(type, field, pointer, is_known) ((is_known) ? LOAD(type, field, pointer) : READ(type, field, pointer))

// The first bytes of a struct, as many as `copy` has: one read for all fields there.
#define READ_BEGIN(copy, pointer) bpf_probe_read_kernel(copy, sizeof(copy), pointer)

// A field that some kernels lack. (HAVE_type__field says whether this one does.)
#define LOAD_IF(type, field, pointer, otherwise) (HAVE_##type##__##field ? LOAD(type, field, pointer) : (otherwise))

#define READ_IF(type, field, pointer, otherwise) (HAVE_##type##__##field ? READ(type, field, pointer) : (otherwise))

// The address of a field that is itself a struct or an array, and back from such an address to the struct around it.
#define AT(type, field, pointer) MOVE(pointer, FIELD_##type##__##field, OFFSET_##type##__##field)
#define AROUND(type, field, pointer) MOVE(pointer, FIELD_##type##__##field, -OFFSET_##type##__##field)
#define MOVE(pointer, tag, distance) ({                                                           \
    const void *at_ = (const void *)(pointer);                                                    \
    u64 tag_;                                                                                     \
    asm volatile("%0 = %2\n %1 += %3" : "=&r"(tag_), "+r"(at_) : "i"((tag) | MOVED), "i"(distance)); \
    (void *)at_;                                                                                  \
})

static __always_inline u64 smaller(u64 a, u64 b)
{
    return a < b ? a : b;
}

// A length that every verifier believes, in two instructions of its own: Linux 6.1 does not see that a branch is dead
// when the constant stands on the left, which is how compilers like to write a minimum.
#define bound(length, limit) ({                                                                   \
    u64 length_ = (length);                                                                       \
    asm volatile("if %0 <= %1 goto +1\n %0 = %1" : "+r"(length_) : "i"(limit));                   \
    length_;                                                                                      \
})
