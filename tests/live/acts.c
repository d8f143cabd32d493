// What a test has to do and Python cannot: threads that exec, leaders that end first, 32-bit calls, descriptors, storms.
// acts NAME [ARG…]; without a name it does nothing, which is what most programs here are executed for.

#define _GNU_SOURCE
#include <errno.h>
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;
static char **rest;

static void die(const char *what)
{
    perror(what);
    _exit(99);
}

static void nap(int ms)
{
    struct timespec time = {ms / 1000, ms % 1000 * 1000000L};
    nanosleep(&time, NULL);
}

static void in_thread(void *(*run)(void *))
{
    pthread_t thread;
    if (pthread_create(&thread, NULL, run, NULL))
        die("pthread_create");
}

// A thread that is not the leader replaces the program.
static void *exec_rest(void *unused)
{
    execv(rest[0], rest);
    die("execv");
    return unused;
}

static int thread_exec(void)
{
    in_thread(exec_rest);
    pause();
    return 1;
}

// The leader ends first, with 3; 50 ms later the last thread ends with 7.
static void *last_thread(void *unused)
{
    nap(50);
    syscall(SYS_exit, 7);
    return unused;
}

static int leader_first(void)
{
    in_thread(last_thread);
    syscall(SYS_exit, 3);
    return 1;
}

static void *group_exit(void *unused)
{
    _exit(41);
    return unused;
}

static int threads(void)
{
    for (int i = 0; i < 8; i++)
        in_thread(last_thread);
    nap(20);
    in_thread(group_exit);
    pause();
    return 1;
}

static long call_32(int number, uint32_t a, uint32_t b, uint32_t c, uint32_t d, uint32_t e)
{
    long result;
    asm volatile("int $0x80" : "=a"(result)
                 : "a"(number), "b"(a), "c"(b), "d"(c), "S"(d), "D"(e) : "memory", "r8", "r9", "r10", "r11");
    return (int)result;
}

// A 32-bit caller: strings and pointers below 4 GiB. rest[0] is the path, the others are argv; the environment is A=32.
static int exec_32(void)
{
    char *low = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
    if (low == MAP_FAILED)
        die("mmap");
    uint32_t *argv = (uint32_t *)low, *env = argv + 64;
    char *next = (char *)(env + 2);
    int n = 0;
    uint32_t path = 0;
    for (char **arg = rest; *arg; arg++) {
        if (arg == rest)
            path = (uint32_t)(uintptr_t)next;
        else
            argv[n++] = (uint32_t)(uintptr_t)next;
        next = stpcpy(next, *arg) + 1;
    }
    env[0] = (uint32_t)(uintptr_t)next;
    strcpy(next, "A=32");
    return -call_32(11, path, (uint32_t)(uintptr_t)argv, (uint32_t)(uintptr_t)env, 0, 0);
}

// Map the third page and a bit of file rest[0] by 32-bit calls, and make a page of memory executable; write both addresses to
// descriptor 9.
static int map_32(void)
{
    uint64_t last = 2; // pages: the sixth argument, in ebp
    long address = 192; // mmap2
    int file = open(rest[0], O_RDONLY);
    char *low = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
    if (file < 0 || low == MAP_FAILED)
        die("map-32");
    asm volatile("xchg %%rbp, %1\n int $0x80\n xchg %%rbp, %1"
                 : "+a"(address), "+r"(last)
                 : "b"(0), "c"(4096 + 7), "d"(PROT_READ | PROT_EXEC), "S"(MAP_PRIVATE), "D"(file)
                 : "memory", "r8", "r9", "r10", "r11");
    if (call_32(125, (uint32_t)(uintptr_t)low, 4096, PROT_READ | PROT_EXEC, 0, 0))
        die("mprotect");
    dprintf(9, "%u %lu\n", (uint32_t)address, (unsigned long)low);
    return (int)address > -4096 && (int)address < 0;
}

// Copy rest[0] into a memfd called rest[1] and execute that with the other arguments.
static int memfd(void)
{
    char buffer[1 << 16];
    int from = open(rest[0], O_RDONLY | O_CLOEXEC), to = memfd_create(rest[1], MFD_CLOEXEC);
    if (from < 0 || to < 0)
        die("memfd");
    for (ssize_t n; (n = read(from, buffer, sizeof buffer)) > 0;)
        if (write(to, buffer, n) != n)
            die("write");
    fexecve(to, rest + 2, environ);
    die("fexecve");
    return 1;
}

// execveat(rest[0] as a folder, rest[1], …)
static int at(void)
{
    int folder = open(rest[0], O_PATH | O_DIRECTORY | O_CLOEXEC);
    syscall(SYS_execveat, folder, rest[1], rest + 2, environ, 0);
    return errno;
}

static int vfork_exec(void)
{
    int status = 0;
    pid_t child = vfork();
    if (child == 0) {
        execv(rest[0], rest);
        _exit(99);
    }
    waitpid(child, &status, 0);
    return child < 0;
}

// A child that is the user rest[0] executes the rest.
static int as(void)
{
    int status = 0;
    pid_t child = fork();
    if (child == 0) {
        if (setresuid(atoi(rest[0]), atoi(rest[0]), atoi(rest[0])))
            die("setresuid");
        execv(rest[1], rest + 1);
        _exit(99);
    }
    waitpid(child, &status, 0);
    return status;
}

// Burn CPU time, in two threads, for about rest[0] milliseconds each.
static void *burn(void *unused)
{
    struct timespec now;
    long wanted = atol(rest[0]) * 1000000L;
    do
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    while (now.tv_sec * 1000000000L + now.tv_nsec < wanted);
    return unused;
}

// The other is joined before the kernel has added up what it took: that is done when /proc lists one thread alone.
static int work(void)
{
    pthread_t thread;
    struct stat threads;
    if (pthread_create(&thread, NULL, burn, NULL))
        die("pthread_create");
    burn(NULL);
    pthread_join(thread, NULL);
    while (!stat("/proc/self/task", &threads) && threads.st_nlink > 2 + 1)
        sched_yield();
    return 0;
}

static void stay_on(int cpu)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    if (sched_setaffinity(0, sizeof set, &set))
        die("sched_setaffinity");
}

// One process executes itself rest[0] times, each time on another CPU than before; in between it forks a child.
static int hop(void)
{
    char left[16], *again[] = {"hop", "hop", left, rest[1], NULL};
    int n = atoi(rest[0]), status;
    stay_on(n % atoi(rest[1]));
    pid_t child = fork();
    if (child == 0)
        _exit(n & 127);
    waitpid(child, &status, 0);
    if (n == 0)
        return 0;
    snprintf(left, sizeof left, "%d", n - 1);
    execv("/proc/self/exe", again);
    die("execv");
    return 1;
}

// On CPU rest[0], execute rest[1] programs that do nothing, marked rest[2] and numbered; print how many were executed.
// With rest[3], wait between them for as many µs.
static int storm(void)
{
    char number[16], *quiet[] = {"storm", "", rest[2], number, NULL};
    int n = atoi(rest[1]), status;
    volatile int executed = 0; // a vfork may come back twice
    int pause = rest[3] ? atoi(rest[3]) : 0;
    stay_on(atoi(rest[0]));
    for (int i = 0; i < n; i++) {
        snprintf(number, sizeof number, "%d", i);
        pid_t child = vfork();
        if (child == 0) {
            execv("/proc/self/exe", quiet);
            _exit(99);
        }
        if (child < 0 || waitpid(child, &status, 0) != child || status)
            die("storm");
        executed++;
        if (pause)
            usleep(pause);
    }
    printf("%d\n", executed);
    return 0;
}

// Execute rest[0] with strings of our own stack: where they lie, the new program's strings come to lie.
static int of_stack(void)
{
    execve(rest[0], rest, environ);
    return errno;
}

// Wait until standard input ends.
static int stay(void)
{
    char byte;
    while (read(0, &byte, 1) > 0)
        ;
    return 0;
}

// The leader ends; another thread waits until standard input ends.
static void *wait_for_input(void *unused)
{
    stay();
    _exit(0);
    return unused;
}

static int headless(void)
{
    in_thread(wait_for_input);
    syscall(SYS_exit, 0);
    return 1;
}

// Load module file rest[0] with parameters rest[1] and flags rest[2] by a 32-bit call; print the result, which is -errno.
static int finit_32(void)
{
    char *low = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
    int file = open(rest[0], O_RDONLY);
    if (file < 0 || low == MAP_FAILED)
        die("finit-32");
    strcpy(low, rest[1]);
    printf("%ld\n", call_32(350, file, (uint32_t)(uintptr_t)low, atoi(rest[2]), 0, 0));
    return 0;
}

static int die_by(void)
{
    raise(atoi(rest[0]));
    return 1;
}

// Connect to port rest[0] of loopback by io_uring (with rest[1]: by a worker thread of the kernel's), or by a 32-bit call; print
// the socket's inode number and the result, which is -errno.
static int say(int fd, int result)
{
    struct stat found;
    fstat(fd, &found);
    printf("%lu %d\n", (unsigned long)found.st_ino, result);
    return 0;
}

static int uring_connect(void)
{
    struct sockaddr_in to = {AF_INET, htons(atoi(rest[0])), {htonl(INADDR_LOOPBACK)}, {0}};
    struct io_uring_params p = {0};
    int fd = socket(AF_INET, SOCK_STREAM, 0), ring = syscall(SYS_io_uring_setup, 1, &p);
    if (ring < 0)
        return errno;
    char *sq = mmap(NULL, p.sq_off.array + 64, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQ_RING);
    char *cq = mmap(NULL, p.cq_off.cqes + 64, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_CQ_RING);
    struct io_uring_sqe *sqe = mmap(NULL, sizeof *sqe, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQES);
    if (sq == MAP_FAILED || cq == MAP_FAILED || sqe == MAP_FAILED)
        die("mmap");
    *sqe = (struct io_uring_sqe){.opcode = IORING_OP_CONNECT, .fd = fd, .addr = (uintptr_t)&to, .off = sizeof to};
    sqe->flags = rest[1] ? IOSQE_ASYNC : 0;
    ((unsigned *)(sq + p.sq_off.array))[0] = 0;
    __atomic_store_n((unsigned *)(sq + p.sq_off.tail), 1, __ATOMIC_RELEASE);
    if (syscall(SYS_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) < 0)
        die("io_uring_enter");
    return say(fd, ((struct io_uring_cqe *)(cq + p.cq_off.cqes))->res);
}

static int connect_32(void)
{
    struct sockaddr_in *to = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    *to = (struct sockaddr_in){AF_INET, htons(atoi(rest[0])), {htonl(INADDR_LOOPBACK)}, {0}};
    return say(fd, call_32(362, fd, (uint32_t)(uintptr_t)to, sizeof *to, 0, 0));
}

static const struct { const char *name; int (*run)(void); } ACTS[] = {
    {"thread-exec", thread_exec}, {"leader-first", leader_first}, {"threads", threads}, {"exec-32", exec_32},
    {"map-32", map_32}, {"finit-32", finit_32},
    {"memfd", memfd}, {"at", at}, {"vfork", vfork_exec}, {"work", work}, {"hop", hop}, {"storm", storm},
    {"stay", stay}, {"headless", headless}, {"die", die_by}, {"of-stack", of_stack}, {"as", as},
    {"uring-connect", uring_connect}, {"connect-32", connect_32},
};

int main(int argc, char **argv)
{
    if (argc < 2)
        return 0;
    rest = argv + 2;
    for (size_t i = 0; i < sizeof ACTS / sizeof *ACTS; i++)
        if (!strcmp(argv[1], ACTS[i].name))
            return ACTS[i].run();
    return 0;
}
