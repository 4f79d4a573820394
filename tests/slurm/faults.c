/* Preloaded into the ranks: the limits of a node that was set up for InfiniBand, which a container cannot raise, and
 * faults of one node: a clock that is off, and a disk whose fsync is slow.
 *
 * FAULT_NODE names the node (SLURMD_NODENAME); FAULT_CLOCK_S is added to the wall clock; FAULT_FSYNC_S is slept in
 * fsync. Everything else is passed on.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static double fault(const char *name) {
    const char *here = getenv("SLURMD_NODENAME"), *there = getenv("FAULT_NODE"), *value = getenv(name);
    return here && there && value && !strcmp(here, there) ? atof(value) : 0;
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int status = real(clock, time);
    if (status == 0 && clock == CLOCK_REALTIME) time->tv_sec += (time_t)fault("FAULT_CLOCK_S");
    return status;
}

static int limits(const char *name, int resource, struct rlimit *limit) {
    int (*real)(int, struct rlimit *) = (int (*)(int, struct rlimit *))dlsym(RTLD_NEXT, name);
    int status = real(resource, limit);
    if (resource == RLIMIT_MEMLOCK) limit->rlim_cur = limit->rlim_max = RLIM_INFINITY;
    if (resource == RLIMIT_NOFILE) limit->rlim_max = 1048576;
    return status;
}

/* Python calls the second one; on 64-bit machines both fill the same struct. */
int getrlimit(__rlimit_resource_t resource, struct rlimit *limit) { return limits("getrlimit", resource, limit); }
int getrlimit64(__rlimit_resource_t resource, struct rlimit64 *limit) {
    return limits("getrlimit64", resource, (struct rlimit *)limit);
}

int fsync(int file) {
    static int (*real)(int);
    if (!real) real = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
    usleep((useconds_t)(1e6 * fault("FAULT_FSYNC_S")));
    return real(file);
}
