// namespace: unshare, setns, and clone (also as fork, vfork and clone3) with flags for new namespaces.
//
// Of pid and time namespaces these calls change those of future children (/proc/PID/ns/pid_for_children), and so these are told.
// What a process had before its call stands in the task's storage, from the call's beginning to its end.

#ifdef WITH_namespace
#ifndef WITH_namespace_perf

#define CLONE_NAMESPACES 0x7e020080 // CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET, NEWTIME
#define CALL_CLONE 1
#define CALL_UNSHARE 2
#define CALL_SETNS 3

struct namespaces {
    u32 cgroup, ipc, mnt, net, pid, time, user, uts; // as the fields of the head stand
};

static __always_inline void namespaces_of(struct namespaces *found, void *task)
{
    u64 proxy = READ(task_struct, nsproxy, task);
    found->cgroup = READ(cgroup_namespace, ns__inum, READ(nsproxy, cgroup_ns, proxy));
    found->ipc = READ(ipc_namespace, ns__inum, READ(nsproxy, ipc_ns, proxy));
    found->mnt = READ(mnt_namespace, ns__inum, READ(nsproxy, mnt_ns, proxy));
    found->net = READ(net, ns__inum, READ(nsproxy, net_ns, proxy));
    found->pid = READ(pid_namespace, ns__inum, READ(nsproxy, pid_ns_for_children, proxy));
    found->time = READ(time_namespace, ns__inum, READ(nsproxy, time_ns_for_children, proxy));
    found->uts = READ(uts_namespace, ns__inum, READ(nsproxy, uts_ns, proxy));
    found->user = READ(user_namespace, ns__inum, READ(cred, user_ns, READ(task_struct, cred, task)));
}

// `before` NULL: not known. `after` is of `task`; NULL: nothing changed.
static __always_inline int namespace_event(u32 call, u64 flags, long result, const struct namespaces *before, void *task)
{
    struct event event;
    if (!event_begin(&event, KIND_namespace))
        return 0;
    struct chunk *chunk = event_reserve(&event, KIND_namespace);
    if (!chunk)
        return 0;
    struct payload_namespace *head = &chunk->namespace;
    struct namespaces *after = (struct namespaces *)&head->after_cgroup, *old = (struct namespaces *)&head->before_cgroup;
    head->flags = flags;
    head->call = call;
    head->errno = result < 0 ? -result : 0;
    head->child_pid = 0;
    if (before)
        *old = *before;
    else
        *old = (struct namespaces){};
    if (call == CALL_CLONE && result >= 0)
        head->child_pid = READ(task_struct, tgid, task);
    namespaces_of(after, task);
    chunk_submit(chunk);
    return 0;
}

PROGRAM(namespace_cloned)
{
    struct namespaces before;
    u64 flags = ctx->args[1] & CLONE_NAMESPACES;
    if (!flags)
        return 0;
    namespaces_of(&before, (void *)bpf_get_current_task_btf());
    return namespace_event(CALL_CLONE, flags, 0, &before, (void *)ctx->args[0]);
}

// The end of unshare or setns.
static __always_inline int namespace_called(struct bpf_raw_tracepoint_args *ctx, u32 call, const struct namespaces *before)
{
    void *task = (void *)bpf_get_current_task_btf(), *regs = (void *)ctx->args[0];
    u64 flags = call == CALL_SETNS ? (u32)second_argument(task, regs) : first_argument(task, regs) & CLONE_NAMESPACES;
    if (call == CALL_UNSHARE && !flags)
        return 0;
    return namespace_event(call, flags, ctx->args[1], before, task);
}

#ifdef WITH_namespace_fexit
struct namespace_call {
    u32 begun;
    struct namespaces before;
};

BPF_TASK_STORAGE(namespace_calls, struct namespace_call);

PROGRAM(namespace_begun)
{
    struct namespace_call *call =
        namespace_calls.task_storage_get(bpf_get_current_task_btf(), 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
    if (call) {
        namespaces_of(&call->before, (void *)bpf_get_current_task_btf());
        call->begun = 1;
    }
    return 0;
}

// The kernel may skip the run at a call's beginning: what an earlier call left is not this one's.
static __always_inline int namespace_ended(struct bpf_raw_tracepoint_args *ctx, u32 number)
{
    struct namespace_call *call = namespace_calls.task_storage_get(bpf_get_current_task_btf(), 0, 0);
    if (!call || !call->begun)
        return namespace_called(ctx, number, 0);
    call->begun = 0;
    return namespace_called(ctx, number, &call->before);
}

PROGRAM(namespace_unshared)
{
    return namespace_ended(ctx, CALL_UNSHARE);
}

PROGRAM(namespace_set)
{
    return namespace_ended(ctx, CALL_SETNS);
}

// A clone that failed: there was no new task.
PROGRAM(namespace_clone_failed)
{
    struct namespaces before;
    int result = RETURNED(kernel_clone);
    if (result >= 0)
        return 0;
    u64 flags = READ(kernel_clone_args, flags, ARGUMENT(kernel_clone, args)) & CLONE_NAMESPACES;
    void *task = (void *)bpf_get_current_task_btf();
    if (!flags)
        return 0;
    namespaces_of(&before, task);
    return namespace_event(CALL_CLONE, flags, result, &before, task);
}
#endif

#ifdef WITH_namespace_sys_exit
PROGRAM(namespace_unshare_exit)
{
    return namespace_called(ctx, CALL_UNSHARE, 0);
}

PROGRAM(namespace_setns_exit)
{
    return namespace_called(ctx, CALL_SETNS, 0);
}
#endif

#endif
#endif
