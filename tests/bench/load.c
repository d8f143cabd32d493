// Loads for the benchmarks. load NAME COUNT [PROGRAM [ARG…]]: does it COUNT times, prints the nanoseconds of one.

#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
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

static void cycle(int with_vfork, char **program)
{
    pid_t child = with_vfork ? vfork() : fork();
    if (!child) {
        execve(program[0], program, environ);
        _exit(127);
    }
    int status;
    if (child < 0 || waitpid(child, &status, 0) < 0 || status) {
        perror("cycle");
        exit(1);
    }
}

int main(int count, char **argument)
{
    if (count < 3)
        return 2;
    const char *name = argument[1];
    long times = atol(argument[2]);
    double begin = now();
    for (long i = 0; i < times; i++) {
        if (!strcmp(name, "call"))
            call();
        else if (!strcmp(name, "file"))
            file();
        else
            cycle(!strcmp(name, "vfork"), argument + 3);
    }
    printf("%.1f\n", (now() - begin) / times);
    return 0;
}
