// A fork bomb within a limit: bomb PROCESSES SECONDS (0: the limit is somebody else's). Every process forks a few times and ends,
// or at the first refusal; the first one goes on while there is time, and prints how many forks were done, and how many refused.

#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define EACH 3 // children of a process before it ends

struct counts {
    long forked, refused;
};

static volatile struct counts *counts;
static double end;

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

static void bomb(int each)
{
    for (int n = 0; n < each && now() < end;) {
        pid_t child = fork();
        if (child == 0) {
            bomb(EACH);
            _exit(0);
        }
        if (child > 0) {
            __sync_fetch_and_add(&counts->forked, 1);
            n++;
        } else {
            __sync_fetch_and_add(&counts->refused, 1);
            if (each == EACH)
                return;
            usleep(1000);
        }
        while (waitpid(-1, NULL, WNOHANG) > 0)
            ;
    }
}

int main(int argc, char **argv)
{
    if (argc != 3)
        return 2;
    struct rlimit limit = {atoi(argv[1]), atoi(argv[1])};
    counts = mmap(NULL, sizeof *counts, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (counts == MAP_FAILED || (limit.rlim_cur && setrlimit(RLIMIT_NPROC, &limit)) || prctl(PR_SET_CHILD_SUBREAPER, 1))
        return 3;
    end = now() + atof(argv[2]);
    bomb(1 << 30);
    while (wait(NULL) > 0)
        ;
    printf("%ld %ld\n", counts->forked, counts->refused);
    return 0;
}
