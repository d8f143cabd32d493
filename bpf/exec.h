// What exec and exec_failed have in common: the head's fields, and the scratch memory.

#define STRING_ROOM 8192 // more than PATH_MAX: a name that execveat makes is "/dev/fd/N/" and a path

// Fields of the head that come from the task and its executable. Up to its promises, exec_failed's head is exec's.
static __always_inline void fill_exec(struct payload_exec *head, void *task)
{
    void *cred = (void *)LOAD(task_struct, cred, task);
    void *file = (void *)LOAD(mm_struct, exe_file, LOAD(task_struct, mm, task));
    void *fs = (void *)LOAD(task_struct, fs, task);
    void *proxy = (void *)LOAD(task_struct, nsproxy, task);
    void *pid = (void *)LOAD(task_struct, thread_pid, task);

    u64 inode = LOAD(file, f_inode, file);
    u64 super = LOAD(inode, i_sb, inode);
    head->inode = LOAD(inode, i_ino, inode);
    head->device = stat_device(LOAD(super_block, s_dev, super));

    head->euid = LOAD(cred, euid, cred);
    head->egid = LOAD(cred, egid, cred);
    head->loginuid = LOAD_IF(task_struct, loginuid, task, 0xffffffff);
    head->session = LOAD_IF(task_struct, sessionid, task, 0xffffffff);

    head->cgroup_ns = LOAD(cgroup_namespace, ns__inum, LOAD(nsproxy, cgroup_ns, proxy));
    head->ipc_ns = LOAD(ipc_namespace, ns__inum, LOAD(nsproxy, ipc_ns, proxy));
    head->mnt_ns = LOAD(mnt_namespace, ns__inum, LOAD(nsproxy, mnt_ns, proxy));
    head->net_ns = LOAD(net, ns__inum, LOAD(nsproxy, net_ns, proxy));
    head->time_ns = LOAD(time_namespace, ns__inum, LOAD(nsproxy, time_ns, proxy));
    head->uts_ns = LOAD(uts_namespace, ns__inum, LOAD(nsproxy, uts_ns, proxy));
    head->user_ns = LOAD(user_namespace, ns__inum, LOAD(cred, user_ns, cred));
    u32 level = LOAD(pid, level, pid);
    u64 pid_ns = READ(upid, ns, AT(pid, numbers, pid) + (level & 31) * SIZE_upid);
    head->pid_ns = READ(pid_namespace, ns__inum, pid_ns);

    u64 dentry = LOAD(file, f_path__dentry, file);
    u64 vfsmount = LOAD(file, f_path__mnt, file);
    int is_top = LOAD(dentry, d_parent, dentry) == dentry; // of a file system, or without a place (see nameless)
    head->memfd = is_top && LOAD(vfsmount, mnt_root, vfsmount) != dentry &&
                  LOAD(vfsmount, mnt_flags, vfsmount) & MNT_INTERNAL && LOAD(super_block, s_magic, super) == TMPFS_MAGIC;
    head->deleted = !is_top && !LOAD(dentry, d_hash__pprev, dentry);
    head->chrooted = below_root(fs);
}

// A string at the end of what was read on: its bytes stay up to the cap, the NUL goes. `limit` is the buffer's last place
// for one.
static __always_inline void append_string(char *buffer, u32 *back, u32 limit, const void *string, int user, u32 cap,
                                          struct promise *promise)
{
    u64 at = bound(*back, limit);
    int n = user ? bpf_probe_read_user_str(buffer + at, STRING_ROOM, string)
                 : bpf_probe_read_kernel_str(buffer + at, STRING_ROOM, string);
    u32 length = n > 1 ? n - 1 : 0; // an empty string is 0 or 1, as kernels count it
    promise->of = n < 0 ? UNKNOWN : length;
    promise->have = smaller(length, cap);
    *back = at + promise->have;
}

// The two walks, working directory first: it stands behind the executable. They begin in the hook's program and, where
// they take long, go on in others.
#define EXEC_PATHS (MIDDLE + NAME_ROOM) // bytes of a buffer that they may touch
#define WALK_CWD 0
#define WALK_EXECUTABLE 1

static __always_inline void walk_cwd(struct walk *walk, char *buffer, void *task, u32 cap)
{
    void *fs = (void *)LOAD(task_struct, fs, task);
    walk_begin(walk, buffer, EXEC_PATHS, LOAD(fs_struct, pwd__dentry, fs), LOAD(fs_struct, pwd__mnt, fs), MIDDLE, cap);
}

static __always_inline void walk_executable(struct walk *walk, char *buffer, void *task, u32 cap)
{
    void *file = (void *)LOAD(mm_struct, exe_file, LOAD(task_struct, mm, task));
    walk_begin(walk, buffer, EXEC_PATHS, LOAD(file, f_path__dentry, file), LOAD(file, f_path__mnt, file), walk->at, cap);
}
