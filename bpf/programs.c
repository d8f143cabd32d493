// The whole BPF side, as one unit for bcc. The loader puts the generated part before it (kernel/source.py): the structs of the
// schemas, KIND_ and PROMISE_ numbers, tables of tail calls, and the offsets that READ and AT ask for. It also cuts out what
// stands between #ifdef WITH_KIND, WITH_KIND_SURFACE or WITH_family_FAMILY and its #endif where no such kind, or not that surface
// of it, was chosen. Files that are not named here come last: a new event's file need not be, if all of it stands in #ifdefs.

#define PROGRAM(name) int name(struct bpf_raw_tracepoint_args *ctx)

// What the function of a fexit hook returned, and an argument of any hook's function by its name: kernels differ in how many there
// are.
#define RETURNED(function) ctx->args[PARAMETERS_##function]
#define ARGUMENT(function, name) ctx->args[PARAMETER_##function##__##name]

// The same of a `const void *`, which programs cannot load before Linux 6.16 (1271a40eeafa).
#define UNTYPED(function, name) ({                                                                \
    u64 value_ = 0;                                                                               \
    bpf_get_func_arg(ctx, PARAMETER_##function##__##name, &value_);                               \
    value_;                                                                                       \
})

#include "read.h"
#include "chunk.h"
#include "budget.h"
#include "identity.h"
#include "entry.h"
#include "event.h"
#include "call.h"
#include "path.h"
#include "stream.h"
#include "exec.h"
#include "slot.h"
#include "texts.h"
#include "exec.c"
#include "fork.c"
#include "exit.c"
#ifdef WITH_sys_exit
#include "fd.h"
#include "sys_exit.c"
#endif
#ifdef WITH_exec_failed
#include "exec_failed.c"
#endif
#ifdef WITH_family_namespace
#include "namespace.c"
#include "cgroup.c"
#endif
#ifdef WITH_family_memory
#include "file.h"
#include "memory.h"
#ifdef WITH_mmap_lsm
#include "mapping.h"
#endif
#ifdef WITH_mprotect
#ifndef WITH_mprotect_sys_exit
#include "mapping.h"
#endif
#endif
#include "memory.c"
#endif
#ifdef WITH_family_module
#include "module.c"
#endif
#ifdef WITH_family_kernel
#include "bpf.c"
#include "kernel_text.c"
#endif
#ifdef WITH_family_network
#include "socket.h"
#include "sun.h"
#include "bind.c"
#include "listen.c"
#include "accept.c"
#include "connect_done.c"
#include "connect.c"
#ifdef WITH_sock_state
#include "sock_state.c"
#endif
#endif
