/* A disk that fails on demand: preloaded, it makes chosen calls on chosen files end with an error.

   fail_calls("pwrite", "segments/", ENOSPC, 3, 10): after 3 such calls that work, 10 that do not (-1: all).
   A later call of it replaces the former; a NULL name ends it. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static char name[32], part[256];
static int error_number, skip, count, failed;

void fail_calls(const char *call, const char *of_path, int number, int after, int times)
{
    count = 0;
    failed = 0;
    if (!call) return;
    snprintf(name, sizeof name, "%s", call);
    snprintf(part, sizeof part, "%s", of_path);
    error_number = number;
    skip = after;
    __atomic_store_n(&count, times, __ATOMIC_SEQ_CST);
}

int failed_calls(void) { return failed; }

static int fails_at(const char *call, const char *path)
{
    if (!__atomic_load_n(&count, __ATOMIC_SEQ_CST) || strcmp(call, name) || !strstr(path, part)) return 0;
    if (skip > 0) { skip--; return 0; }
    if (count > 0) count--;
    failed++;
    errno = error_number;
    return 1;
}

static int fails(const char *call, int fd)
{
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return fails_at(call, path);
}

#define REAL(type, function) static type real; if (!real) real = (type)dlsym(RTLD_NEXT, function)

typedef int (*open_call)(const char *, int, ...);
typedef ssize_t (*read_call)(int, void *, size_t, off_t);
typedef ssize_t (*write_call)(int, const void *, size_t, off_t);
typedef int (*fd_call)(int);
typedef int (*path_call)(const char *);
typedef int (*size_call)(int, off_t);

int open64(const char *path, int flags, ...)
{
    REAL(open_call, "open64");
    va_list rest;
    va_start(rest, flags);
    int mode = va_arg(rest, int);
    va_end(rest);
    return fails_at("open", path) ? -1 : real(path, flags, mode);
}

ssize_t pread64(int fd, void *buffer, size_t bytes, off_t offset)
{
    REAL(read_call, "pread64");
    return fails("pread", fd) ? -1 : real(fd, buffer, bytes, offset);
}

ssize_t pwrite64(int fd, const void *buffer, size_t bytes, off_t offset)
{
    REAL(write_call, "pwrite64");
    return fails("pwrite", fd) ? -1 : real(fd, buffer, bytes, offset);
}

int fdatasync(int fd)
{
    REAL(fd_call, "fdatasync");
    return fails("fdatasync", fd) ? -1 : real(fd);
}

int unlink(const char *path)
{
    REAL(path_call, "unlink");
    return fails_at("unlink", path) ? -1 : real(path);
}

int ftruncate64(int fd, off_t bytes)
{
    REAL(size_call, "ftruncate64");
    return fails("ftruncate", fd) ? -1 : real(fd, bytes);
}
