// The whole BPF side, as one unit for bcc. The loader puts the generated part before it (kernel/source.py): the structs of the
// schemas, KIND_ and PROMISE_ numbers, and the offsets that READ and AT ask for.

#define PROGRAM(name) int name(struct bpf_raw_tracepoint_args *ctx)

#include "read.h"
#include "chunk.h"
#include "identity.h"
#include "path.h"
#include "stream.h"
#include "exec.h"
#include "exec.c"
#include "fork.c"
#include "exit.c"
#ifdef WITH_exec_failed
#include "exec_failed.c"
#endif
