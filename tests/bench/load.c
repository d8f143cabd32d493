// Loads for the benchmarks. load NAME [PROGRAM [ARG…]]: for each count that it reads, does it that often and prints the
// nanoseconds of one. NAME: call, file, map, connection, or fork or vfork (without a PROGRAM the child only ends).

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1e9 + time.tv_nsec;
}

static void call(void)
{
    syscall(SYS_getppid);
}

static void file(void)
{
    close(open("/dev/null", O_RDONLY));
}

// A file that can be mapped to be executed: this program's own.
static void map(void)
{
    static int self = -1;
    if (self < 0)
        self = open("/proc/self/exe", O_RDONLY);
    void *at = mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE, self, 0);
    if (at == MAP_FAILED || munmap(at, 4096)) {
        perror("map");
        exit(1);
    }
}

// A connection over loopback and its end, both sides; reset, so that no port stays taken.
static void connection(void)
{
    static int listener = -1;
    static struct sockaddr_in address = {.sin_family = AF_INET};
    struct linger reset = {1, 0};
    if (listener < 0) {
        socklen_t length = sizeof(address);
        listener = socket(AF_INET, SOCK_STREAM, 0);
        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        if (bind(listener, (void *)&address, length) || listen(listener, 8) ||
            getsockname(listener, (void *)&address, &length)) {
            perror("listen");
            exit(1);
        }
    }
    int one = socket(AF_INET, SOCK_STREAM, 0), other;
    setsockopt(one, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
    if (connect(one, (void *)&address, sizeof(address)) || (other = accept(listener, NULL, NULL)) < 0) {
        perror("connection");
        exit(1);
    }
    close(one);
    close(other);
}

static void cycle(int with_vfork, char **program)
{
    pid_t child = with_vfork ? vfork() : fork();
    if (!child) {
        if (!program[0])
            _exit(0);
        execve(program[0], program, environ);
        _exit(127);
    }
    int status;
    if (child < 0 || waitpid(child, &status, 0) < 0 || status) {
        perror("cycle");
        exit(1);
    }
}

static void repeat(const char *name, long times, char **program)
{
    for (long i = 0; i < times; i++) {
        if (!strcmp(name, "call"))
            call();
        else if (!strcmp(name, "file"))
            file();
        else if (!strcmp(name, "map"))
            map();
        else if (!strcmp(name, "connection"))
            connection();
        else
            cycle(!strcmp(name, "vfork"), program);
    }
}

int main(int count, char **argument)
{
    long times;
    if (count < 2)
        return 2;
    while (scanf("%ld", &times) == 1) {
        double begin = now();
        repeat(argument[1], times, argument + 2);
        printf("%.1f\n", (now() - begin) / times);
        fflush(stdout);
    }
    return 0;
}
