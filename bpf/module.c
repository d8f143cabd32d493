// module_load, module_unload, module_request.
//
// A load is put together from what several hooks see, in the task's own storage: which file was read, what the image calls
// itself, where the module came to lie. It ends when load_module returns, or, where that was never reached (a file that cannot
// be read or decompressed), with the system call.

// Where a module lies: until Linux 6.4 (ac3b43283923) in one piece, then in one per use, of which the first four stay.
static __always_inline u64 module_base(void *module)
{
    return READ_IF(module, core_layout__base, module, READ_IF(module, mem__0__base, module, 0));
}

// As lsmod has it.
static __always_inline u32 module_size(void *module)
{
    return READ_IF(module, core_layout__size, module,
                   READ_IF(module, mem__0__size, module, 0) + READ_IF(module, mem__1__size, module, 0) +
                       READ_IF(module, mem__2__size, module, 0) + READ_IF(module, mem__3__size, module, 0));
}

#ifdef WITH_module_load_tracepoint
PROGRAM(module_seen)
{
    void *module = (void *)ctx->args[0];
    struct event event;
    struct payload_module_load *head = slot_begin(&event, KIND_module_load);
    if (!head)
        return 0;
    head->base = module_base(module);
    head->size = module_size(module);
    head->taints = READ(module, taints, module);
    head->sig_ok = READ_IF(module, sig_ok, module, 255);
    head->inode = head->device = head->errno = 0;
    head->path.of = head->path.have = head->parameters.of = head->parameters.have = 0;
    name_add(&event, &head->name, AT(module, name, module));
    name_add(&event, &head->srcversion, (void *)READ(module, srcversion, module));
    texts_send(&event, ROOM_module_load);
    return 0;
}
#endif

#ifdef WITH_module_load
#ifndef WITH_module_load_tracepoint
#define MODULE_NAME 64 // a name or srcversion with its NUL; the kernel allows names less
#define MODULE_PATH 4096 // bytes of the file's path that are kept
#define MODULE_STEPS 256
#define MODULE_SECTIONS 256 // of an image, among which its name is looked for
#define READING_MODULE 2 // enum kernel_read_file_id
#define READING_COMPRESSED 7
#define NR_finit_module 313
#define NR_finit_module_32 350

struct module_join {
    u32 call;  // its number
    u32 begun; // load_module was called
    u32 device;
    u64 inode;
    u64 base;
    u32 size, taints;
    struct promise path;
    struct walk walk;
    char name[MODULE_NAME];
    char srcversion[MODULE_NAME];
    char text[MODULE_PATH + NAME_ROOM]; // the path, at its end
};

BPF_TASK_STORAGE(module_joins, struct module_join);

static __always_inline struct module_join *module_joined(u64 flags)
{
    return module_joins.task_storage_get((void *)bpf_get_current_task_btf(), 0, flags);
}

static __always_inline u32 current_call(void)
{
    return READ(pt_regs, orig_ax, bpf_task_pt_regs((void *)bpf_get_current_task_btf()));
}

static __always_inline void module_close(struct books *book)
{
    module_joins.task_storage_delete((void *)bpf_get_current_task_btf());
    __sync_fetch_and_add(&book->joins, -1);
}

// A load whose end never came: the kernel skipped that run.
static __always_inline void module_expired(struct books *book)
{
    count(book->kinds[KIND_module_load].attempted);
    count(book->kinds[KIND_module_load].expired);
    module_close(book);
}

// The current call's join; NULL: there is none. One that another call left open would lend this one its file.
static __always_inline struct module_join *module_now(struct books *book)
{
    struct module_join *join = module_joined(0);
    if (!join || join->call == current_call())
        return join;
    module_expired(book);
    return 0;
}

// The same, begun if there is none. NULL: no memory.
static __always_inline struct module_join *module_open(struct books *book)
{
    struct module_join *join = module_now(book);
    if (join)
        return join;
    join = module_joined(1); // create
    if (join) {
        join->call = current_call();
        join->taints = UNKNOWN;
        count(book->joins);
    }
    return join;
}

// The file that an image is read from: the first that is seen of a call.
PROGRAM(module_file)
{
#ifdef WITH_module_load_lsm
    u32 id = ARGUMENT(bpf_lsm_kernel_read_file, id);
#else
    u32 id = ARGUMENT(kernel_read_file, id);
#endif
    void *file = (void *)ctx->args[0];
    u32 ring = bpf_get_smp_processor_id(), zero = 0;
    struct books *book = books.lookup(&ring);
    struct settings *set = settings.lookup(&zero);
    if ((id != READING_MODULE && id != READING_COMPRESSED) || !book || !set || !file)
        return 0;
    if (module_joined(0))
        module_expired(book);
    struct module_join *join = module_open(book);
    if (!join)
        return 0;
    u64 inode = LOAD(file, f_inode, file);
    join->inode = LOAD(inode, i_ino, inode);
    join->device = stat_device(LOAD(super_block, s_dev, LOAD(inode, i_sb, inode)));
    walk_begin(&join->walk, join->text, sizeof(join->text), LOAD(file, f_path__dentry, file), LOAD(file, f_path__mnt, file),
               MODULE_PATH, smaller(set->cap_path, MODULE_PATH));
    for (int i = 0; i < MODULE_STEPS; i++)
        if (walk_ended(&join->walk, join->text, sizeof(join->text), &join->path))
            return 0;
    walk_give_up(book, &join->walk, &join->path);
    return 0;
}

// What an image calls itself, in its section .gnu.linkonce.this_module: its struct module. Nothing of it was checked yet.
static __always_inline void image_name(char *name, void *image)
{
    void *sections = image + READ(elf64_hdr, e_shoff, image);
    u32 number = READ(elf64_hdr, e_shnum, image), strings = READ(elf64_hdr, e_shstrndx, image);
    void *names = image + READ(elf64_shdr, sh_offset, sections + strings * SIZE_elf64_shdr);
    for (u32 i = 0; i < MODULE_SECTIONS; i++) {
        void *section = sections + i * SIZE_elf64_shdr;
        u64 text[4] = {};
        if (i >= number)
            return;
        bpf_probe_read_kernel(text, 26, names + READ(elf64_shdr, sh_name, section));
        if (text[0] == 0x6e696c2e756e672eULL && text[1] == 0x68742e65636e6f6bULL && text[2] == 0x6c75646f6d5f7369ULL &&
            text[3] == 0x65) {
            image += READ(elf64_shdr, sh_offset, section);
            bpf_probe_read_kernel_str(name, MODULE_NAME, AT(module, name, image));
            return;
        }
    }
}

PROGRAM(module_begins)
{
    u32 ring = bpf_get_smp_processor_id();
    struct books *book = books.lookup(&ring);
    if (!book)
        return 0;
    struct module_join *join = module_joined(0);
    if (join && join->begun) // a call has one image
        module_expired(book);
    join = module_open(book);
    if (!join)
        return 0;
    join->begun = 1;
    image_name(join->name, (void *)READ(load_info, hdr, ARGUMENT(load_module, info)));
    return 0;
}

// It has its place and its final name; its own start comes next, and can fail.
PROGRAM(module_placed)
{
    void *module = (void *)ctx->args[0];
    u32 ring = bpf_get_smp_processor_id();
    struct books *book = books.lookup(&ring);
    struct module_join *join = book ? module_now(book) : 0;
    if (!join)
        return 0;
    join->base = module_base(module);
    join->size = module_size(module);
    join->taints = READ(module, taints, module);
    bpf_probe_read_kernel_str(join->name, MODULE_NAME, AT(module, name, module));
    bpf_probe_read_kernel_str(join->srcversion, MODULE_NAME, (void *)READ(module, srcversion, module));
    return 0;
}

// Does the current call name a file? Then there is a path, known or not. (Of the calls that load modules, no two share a number.)
static __always_inline int is_from_file(void)
{
    u32 number = current_call();
    return number == NR_finit_module || number == NR_finit_module_32;
}

// The end of a load: `result` and `parameters` as the call has them; `sig_ok` 255: not known.
static __always_inline void module_end(int result, u8 sig_ok, const void *parameters)
{
    struct event event;
    struct payload_module_load *head = slot_begin(&event, KIND_module_load);
    struct module_join *join = event.book ? module_open(event.book) : 0;
    if (head && join) {
        u64 have = bound(join->path.have, MODULE_PATH);
        head->errno = result < 0 ? -result : 0;
        head->sig_ok = sig_ok;
        head->base = join->base;
        head->size = join->size;
        head->taints = join->taints;
        head->inode = join->inode;
        head->device = join->device;
        head->path = join->path;
        event.slot->walk.at = SLOT_MIDDLE - have;
        bpf_probe_read_kernel(event.slot->buffer + bound(SLOT_MIDDLE - have, SLOT_MIDDLE), have,
                              join->text + bound(join->walk.at, MODULE_PATH));
        if (!join->inode && is_from_file()) { // the hook of the file found no memory, or was not there yet
            head->path.of = UNKNOWN;
            event.slot->faults |= 1 << PROMISE_module_load_path;
        }
        name_add(&event, &head->name, join->name);
        name_add(&event, &head->srcversion, join->srcversion);
        user_text_add(&event, &head->parameters, PROMISE_module_load_parameters, parameters);
        texts_send(&event, ROOM_module_load);
    } else if (head) {
        count(event.kind->lost_slot);
        slot_give(event.slot);
    }
    if (join)
        module_close(event.book);
}

PROGRAM(module_loaded)
{
    u8 sig_ok = READ_IF(load_info, sig_ok, ARGUMENT(load_module, info), 255);
    module_end(RETURNED(load_module), sig_ok, (void *)ARGUMENT(load_module, uargs));
    return 0;
}

// Of 64-bit and 32-bit calls.
PROGRAM(module_unread)
{
    u32 ring = bpf_get_smp_processor_id();
    struct books *book = books.lookup(&ring);
    void *task = (void *)bpf_get_current_task_btf();
    if (book && module_now(book))
        module_end(RETURNED(__x64_sys_finit_module), 255, (void *)second_argument(task, (void *)ctx->args[0]));
    return 0;
}

PROGRAM(module_task_ended)
{
    u32 ring = bpf_get_smp_processor_id();
    struct books *book = books.lookup(&ring);
    if (book && module_joined(0))
        module_expired(book);
    return 0;
}
#endif
#endif

#ifdef WITH_module_unload
PROGRAM(module_freed)
{
    void *module = (void *)ctx->args[0];
    struct event event;
    struct payload_module_unload *head = slot_begin(&event, KIND_module_unload);
    if (!head)
        return 0;
    head->base = module_base(module);
    head->size = module_size(module);
    head->taints = READ(module, taints, module);
    name_add(&event, &head->name, AT(module, name, module));
    name_add(&event, &head->srcversion, (void *)READ(module, srcversion, module));
    texts_send(&event, ROOM_module_unload);
    return 0;
}
#endif

#ifdef WITH_module_request
PROGRAM(module_requested)
{
    struct event event;
    struct payload_module_request *head = slot_begin(&event, KIND_module_request);
    if (!head)
        return 0;
    name_add(&event, &head->name, (void *)ctx->args[0]);
    texts_send(&event, ROOM_module_request);
    return 0;
}
#endif
