/* Makes every fsync and fdatasync of a process take longer, to measure what a slower disk would do.
 * Preloaded into the benchmark and into each server that it starts; see slow_disk.py. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <time.h>

static void wait_longer(void)
{
    int saved = errno;
    const char *text = getenv("LOGMARK_BENCH_SYNC_US");
    long microseconds = text == NULL ? 0 : strtol(text, NULL, 10);
    struct timespec left = {microseconds / 1000000, microseconds % 1000000 * 1000};

    while (nanosleep(&left, &left) == -1 && errno == EINTR) {
    }
    errno = saved;
}

static int sync_then_wait(const char *name, int fd)
{
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    int result = real(fd);

    wait_longer();
    return result;
}

int fsync(int fd)
{
    return sync_then_wait("fsync", fd);
}

int fdatasync(int fd)
{
    return sync_then_wait("fdatasync", fd);
}
