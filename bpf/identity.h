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

// A process's pid in its own namespace.
static __always_inline u32 ns_pid_of(void *leader, u32 tgid)
{
    void *pid = (void *)READ(task_struct, thread_pid, leader);
    u32 level = READ(pid, level, pid);
    if (!level)
        return tgid;
    return READ(upid, nr, AT(pid, numbers, pid) + (level & 31) * SIZE_upid);
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
    bpf_get_current_comm(head->comm, sizeof(head->comm));

    key_of(&key, parent);
    found = identities.lookup(&key);
    head->parent_exec_id = found ? found->exec_id : 0;
    head->parent_start = LOAD(task_struct, start_boottime, parent);
    head->parent_pid = key.pid;
}
