/* bcc includes this before all else. With it, and the empty files beside it, bcc needs no kernel headers: the BPF
 * interface comes from bcc's own copy, the layout of kernel structures from the running kernel's BTF (read.h). */
#define CONFIG_BPF_SYSCALL 1
#define PAGE_SIZE 4096
#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + (c))
#define LINUX_VERSION_CODE KERNEL_VERSION(6, 1, 0) /* a choice among bcc's macros; no kernel checks it */
