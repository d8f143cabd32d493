// Who caused an event, and whether anyone asked for it.
//
// `identities` says for each process which exec's program it runs, keyed by what user space also knows: pid and start in
// ticks of 10 ms, which is what /proc shows. A process gets its entry from fork, exec, or the loader's look at
// /proc (which never overwrites), and loses it when its last thread ends.

#define TICK 10000000ULL // ns

#define OURS 1  // caused by the pipeline
#define TEST 2  // caused by the loader

struct identity_key {
    u64 start; // ticks since boot
    u64 pid;
};

struct identity {
    u64 exec_id; // 0: unknown
    u64 flags;   // OURS, TEST; children inherit them
    u64 ended;   // threads that spoke of its exit
};

BPF_F_TABLE("hash", struct identity_key, struct identity, identities, PROCESSES, BPF_F_NO_PREALLOC);
BPF_TABLE("hash", u32, u8, uids, 1024);
BPF_TABLE("hash", u64, u8, cgroups, 1024);

// The leader of a task that the verifier knows: the current one, or one that was loaded from it.
static __always_inline void *leader_of(void *task)
{
    return (void *)LOAD(task_struct, group_leader, task);
}

static __always_inline void key_of(struct identity_key *key, void *leader)
{
    key->pid = LOAD(task_struct, tgid, leader);
    key->start = LOAD(task_struct, start_boottime, leader) / TICK;
}

static __always_inline void remember(struct books *book, struct identity_key *key, u64 exec_id, u64 flags)
{
    struct identity identity = {.exec_id = exec_id, .flags = flags};
    if (identities.update(key, &identity))
        count(book->identity_full);
}

// The current process runs another program. Its entry stays: to have the kernel make another and free this one takes longer.
static __always_inline void remember_exec(struct books *book, struct identity_key *key, u64 exec_id, u64 flags)
{
    struct identity *self = identities.lookup(key);
    if (self)
        self->exec_id = exec_id;
    else
        remember(book, key, exec_id, flags);
}

// A process's pid in its own namespace, which is `level` deep.
static __always_inline u32 ns_pid(void *pid, u32 level, u32 tgid)
{
    return level ? READ(upid, nr, AT(pid, numbers, pid) + (level & 31) * SIZE_upid) : tgid;
}

static __always_inline u32 ns_pid_of(void *leader, u32 tgid)
{
    void *pid = (void *)LOAD(task_struct, thread_pid, leader);
    return ns_pid(pid, LOAD(pid, level, pid), tgid);
}

// The same of a task that the verifier does not know.
static __always_inline u32 ns_pid_of_child(void *child, u32 tgid)
{
    void *pid = (void *)READ(task_struct, thread_pid, child);
    return ns_pid(pid, READ(pid, level, pid), tgid);
}

static __always_inline u64 cgroup_of(struct settings *set)
{
    return set->cgroup_known ? bpf_get_current_cgroup_id() : 0;
}

// Is this event of the current process wanted? If not, its reason is booked.
static __always_inline int wanted(struct settings *set, struct kind_books *kind, u16 number, u64 flags)
{
    if (flags & TEST) {
        count(kind->filtered_test);
        return 0;
    }
    if (flags & OURS) {
        count(kind->filtered_self);
        return 0;
    }
    if (!(set->kinds >> number & 1)) {
        count(kind->filtered_kind);
        return 0;
    }
    if (set->by_uid) {
        u32 uid = bpf_get_current_uid_gid();
        if (!uids.lookup(&uid)) {
            count(kind->filtered_uid);
            return 0;
        }
    }
    if (set->by_cgroup) {
        u64 cgroup = cgroup_of(set);
        if (!cgroups.lookup(&cgroup)) {
            count(kind->filtered_cgroup);
            return 0;
        }
    }
    return 1;
}

// A task's name. The helper that copies it takes ten times as long.
static __always_inline void comm_of(u64 *comm, void *task)
{
    void *from = AT(task_struct, comm, task);
    asm volatile("%0 = *(u64 *)(%2 + 0)\n %1 = *(u64 *)(%2 + 8)" : "=&r"(comm[0]), "=&r"(comm[1]) : "r"(from));
}

// The common block of every head: `task` is the thread, `leader` its process.
static __always_inline void fill_common(struct payload_common *head, struct settings *set, void *task, void *leader,
                                        struct identity *self)
{
    void *parent = leader_of((void *)LOAD(task_struct, real_parent, leader));
    void *cred = (void *)LOAD(task_struct, cred, task);
    struct identity_key key;
    struct identity *found;

    head->exec_id = self ? self->exec_id : 0;
    head->start = LOAD(task_struct, start_boottime, leader);
    head->pid = LOAD(task_struct, tgid, leader);
    head->tid = LOAD(task_struct, pid, task);
    head->ns_pid = ns_pid_of(leader, head->pid);
    head->uid = LOAD(cred, uid, cred);
    head->gid = LOAD(cred, gid, cred);
    head->cgroup = cgroup_of(set);
    comm_of((u64 *)head->comm, task);

    key_of(&key, parent);
    found = identities.lookup(&key);
    head->parent_exec_id = found ? found->exec_id : 0;
    head->parent_start = LOAD(task_struct, start_boottime, parent);
    head->parent_pid = key.pid;
}

// What perf and audit records say of a process is its pid alone, and it may have ended when they are read. So what is known of it
// is kept by pid, beyond its end, until the place is wanted. What changed since its last exec without having been seen is marked
// as unknown when it ends: 0, NOBODY, NAMELESS. (kernel/who.py reads this.)
#ifdef WITH_pids
#define NOBODY 0xffffffff
#define NAMELESS 0xff00 // the first bytes of a comm: an empty one ends there
#define CLONE_PARENT 0x8000
#define CLONE_INTO_CGROUP 0x200000000ULL

struct known {
    u64 start;
    u64 exec_id, exec_time;     // what it runs, and since when
    u64 before_id, before_time; // what it ran before
    u64 parent_start, cgroup, flags, ended;
    u32 parent_pid, ns_pid, uid, gid, before_uid, before_gid;
    u64 comm[2];
};

BPF_TABLE("lru_hash", u32, struct known, pids, 16384);

static __always_inline void know_parent(struct known *known, void *parent)
{
    known->parent_start = READ(task_struct, start_boottime, parent);
    known->parent_pid = READ(task_struct, tgid, parent);
}

static __always_inline void know_current(struct known *known)
{
    u32 zero = 0;
    struct settings *set = settings.lookup(&zero);
    u64 owner = bpf_get_current_uid_gid();
    known->uid = owner;
    known->gid = owner >> 32;
    known->cgroup = set ? cgroup_of(set) : 0;
    bpf_get_current_comm(known->comm, sizeof(known->comm));
}

// A new process, made by the current one.
static __always_inline void know_child(struct identity *self, void *leader, void *child, struct identity_key *key, u64 start,
                                       u64 clone)
{
    u32 pid = key->pid;
    struct known known = {.start = start, .exec_time = start};
    know_current(&known);
    if (clone & CLONE_INTO_CGROUP)
        known.cgroup = 0;
    if (self) {
        known.exec_id = self->exec_id;
        known.flags = self->flags;
    }
    known.ns_pid = ns_pid_of_child(child, pid);
    u64 parent = (u64)leader;
    if (clone & CLONE_PARENT)
        parent = READ(task_struct, group_leader, READ(task_struct, real_parent, leader));
    know_parent(&known, (void *)parent);
    pids.update(&pid, &known);
}

// The current process runs another program from now on.
static __always_inline void know_exec(u64 exec_id, u64 flags)
{
    void *leader = leader_of((void *)bpf_get_current_task_btf());
    u32 pid = LOAD(task_struct, tgid, leader);
    u64 start = LOAD(task_struct, start_boottime, leader);
    struct known known = {.start = start, .before_uid = NOBODY, .before_gid = NOBODY};
    struct known *old = pids.lookup(&pid);
    if (old && old->start == start) {
        known.before_id = old->exec_id;
        known.before_time = old->exec_time;
        known.before_uid = old->uid;
        known.before_gid = old->gid;
    }
    know_current(&known);
    known.ns_pid = ns_pid_of(leader, pid);
    know_parent(&known, leader_of((void *)LOAD(task_struct, real_parent, leader)));
    known.exec_id = exec_id;
    known.exec_time = bpf_ktime_get_boot_ns();
    known.flags = flags;
    pids.update(&pid, &known);
}

// The current process ends.
static __always_inline void know_end(void *leader)
{
    u32 pid = LOAD(task_struct, tgid, leader);
    struct known now = {}, *known = pids.lookup(&pid);
    if (!known || known->start != LOAD(task_struct, start_boottime, leader))
        return;
    know_current(&now);
    know_parent(&now, leader_of((void *)LOAD(task_struct, real_parent, leader)));
    bpf_probe_read_kernel(now.comm, sizeof(now.comm), AT(task_struct, comm, leader));
    if (known->uid != now.uid)
        known->uid = NOBODY;
    if (known->gid != now.gid)
        known->gid = NOBODY;
    if (known->cgroup != now.cgroup)
        known->cgroup = 0;
    if (known->parent_pid != now.parent_pid || known->parent_start != now.parent_start)
        known->parent_pid = 0;
    if (known->comm[0] != now.comm[0] || known->comm[1] != now.comm[1]) {
        known->comm[0] = NAMELESS;
        known->comm[1] = 0;
    }
    known->ended = bpf_ktime_get_boot_ns();
}
#else
#define know_child(...)
#define know_exec(...)
#define know_end(...)
#endif
