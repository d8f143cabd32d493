// cgroup: a control group was made.

#ifdef WITH_cgroup_tracepoint
#define CGROUP_PATH 1024 // the kernel's own buffer for this path, with its NUL; a longer path is cut there

PROGRAM(cgroup_made)
{
    struct event event;
    void *cgroup = (void *)ctx->args[0];
    struct payload_cgroup *head = slot_begin(&event, KIND_cgroup);
    if (!head)
        return 0;
    head->cgroup_id = READ(kernfs_node, id, READ(cgroup, kn, cgroup));
    head->hierarchy = READ(cgroup_root, hierarchy_id, READ(cgroup, root, cgroup));
    text_added(&event, &head->path, bpf_probe_read_kernel_str(text_end(event.slot), CGROUP_PATH, (void *)ctx->args[1]));
    if (head->path.of == CGROUP_PATH - 1)
        head->path.of = UNKNOWN;
    texts_send(&event, ROOM_cgroup);
    return 0;
}
#endif
