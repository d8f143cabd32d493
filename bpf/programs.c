// The whole BPF side, as one unit for bcc. The loader puts the generated part before it (kernel/source.py): the structs of the
// schemas, KIND_ and PROMISE_ numbers, tables of tail calls, and the offsets that READ and AT ask for. It also cuts out what
// stands between #ifdef WITH_KIND or WITH_KIND_SURFACE and its #endif where this kind or this surface of it was not chosen.

#define PROGRAM(name) int name(struct bpf_raw_tracepoint_args *ctx)

// What the function of a fexit hook returned, and an argument of any hook's function by its name: kernels differ in how many there
// are.
#define RETURNED(function) ctx->args[PARAMETERS_##function]
#define ARGUMENT(function, name) ctx->args[PARAMETER_##function##__##name]

#include "read.h"
#include "chunk.h"
#include "identity.h"
#include "event.h"
#include "path.h"
#include "stream.h"
#include "exec.h"
#include "slot.h"
#include "exec.c"
#include "fork.c"
#include "exit.c"
#ifdef WITH_sys_exit
#include "sys_exit.c"
#endif
#ifdef WITH_exec_failed
#include "exec_failed.c"
#endif
