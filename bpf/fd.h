// The file behind a descriptor of the current task; 0: there is none (any more).
static __always_inline u64 file_of(void *task, u32 fd)
{
    u64 file = 0, table = READ(files_struct, fdt, LOAD(task_struct, files, task));
    if (fd < READ(fdtable, max_fds, table))
        bpf_probe_read_kernel(&file, sizeof(file), (void *)(READ(fdtable, fd, table) + sizeof(file) * fd));
    return file;
}
