/* Counts the system calls by which a process changes (or reads) files below one folder, and at the n-th of them
 * sends the process a signal, fails the call, or writes half of it and kills. Loaded by LD_PRELOAD; quiet until
 * `fault_arm` is called. What it saw stands in a page that forked children share with their parent. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

enum { CREATE = 1, WRITE = 2, FSYNC = 4, CLOSE = 8, RENAME = 16, MKDIR = 32, UNLINK = 64, RMDIR = 128, LINK = 256, UTIME = 512, OPEN = 1024, READ = 2048 };
enum { COUNT, SIGNAL, FAIL, TORN };
enum { GO, REFUSE, HALF };

struct report {
    atomic_long seen;  /* calls counted */
    atomic_int fired;  /* times acted */
    char what[16];     /* the call at which it acted first */
    char path[1024];
};

static char root[PATH_MAX];
static size_t root_length;
static unsigned counted;
static long at;
static int action, value, persistent, unlocked, plain;
static struct report *report;

/* A page of its own for what the calling process and its children will see. */
struct report *fault_report(void) {
    report = mmap(NULL, sizeof *report, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    return report;
}

/* From now on count calls of the kinds in `mask` below `folder`; at the n-th (0: never) act. */
void fault_arm(const char *folder, unsigned mask, long n, int act, int number, int forever) {
    snprintf(root, sizeof root, "%s/", folder);
    root_length = strlen(root);
    at = n, action = act, value = number, persistent = forever;
    atomic_store(&report->seen, 0);
    atomic_store(&report->fired, 0);
    report->what[0] = report->path[0] = 0;
    counted = mask;
}

void fault_disarm(void) { counted = 0; }

/* Let flock succeed without locking anything, as some network file systems do. */
void fault_unlock(void) { unlocked = 1; }

/* Let renameat2 fail as on a file system that cannot exchange two names. */
void fault_plain(void) { plain = 1; }

static int below(const char *path) { return strncmp(path, root, root_length) == 0; }

static int of_handle(int handle, char *out) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", handle);
    ssize_t length = readlink(link, out, PATH_MAX - 1);
    out[length < 0 ? 0 : length] = 0;
    return length > 0;
}

static void of_name(int folder, const char *name, char *out) {
    char place[PATH_MAX];
    if (name[0] == '/') {
        snprintf(out, PATH_MAX, "%s", name);
        return;
    }
    if (folder == AT_FDCWD) {
        if (!getcwd(place, sizeof place)) place[0] = 0;
    } else {
        of_handle(folder, place);
    }
    if (snprintf(out, PATH_MAX, "%s/%s", place, name) >= PATH_MAX) out[0] = 0;
}

static int decide(unsigned kind, const char *what, const char *path) {
    if (!(counted & kind) || !below(path)) return GO;
    long number = atomic_fetch_add(&report->seen, 1) + 1;
    if (action == COUNT || !at || number < at || (number > at && !persistent)) return GO;
    if (atomic_fetch_add(&report->fired, 1) == 0) {
        snprintf(report->what, sizeof report->what, "%s", what);
        snprintf(report->path, sizeof report->path, "%s", path + root_length);
    }
    if (action == TORN) return HALF;
    if (action == SIGNAL) {
        kill(getpid(), value);
        return GO;
    }
    errno = value;
    return REFUSE;
}

static int at_name(unsigned kind, const char *what, int folder, const char *name) {
    char path[PATH_MAX];
    if (!(counted & kind) || !name) return GO;
    int before = errno;
    of_name(folder, name, path);
    errno = before;
    return decide(kind, what, path);
}

static int at_handle(unsigned kind, const char *what, int handle) {
    char path[PATH_MAX];
    if (!(counted & kind)) return GO;
    int before = errno, known = of_handle(handle, path);
    errno = before;
    return known ? decide(kind, what, path) : GO;
}

#define REAL(type, name, ...) static type (*real)(__VA_ARGS__); if (!real) real = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)

static unsigned opening(int flags) { return flags & (O_CREAT | O_WRONLY | O_RDWR) ? CREATE : OPEN; }

#define OPENING(name)                                                             \
    int name(const char *path, int flags, ...) {                                  \
        va_list rest; va_start(rest, flags);                                      \
        mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0; va_end(rest);   \
        REAL(int, name, const char *, int, ...);                                  \
        if (at_name(opening(flags), "open", AT_FDCWD, path) == REFUSE) return -1; \
        return real(path, flags, mode);                                           \
    }
OPENING(open)
OPENING(open64)

#define OPENING_AT(name)                                                        \
    int name(int folder, const char *path, int flags, ...) {                    \
        va_list rest; va_start(rest, flags);                                    \
        mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0; va_end(rest); \
        REAL(int, name, int, const char *, int, ...);                           \
        if (at_name(opening(flags), "open", folder, path) == REFUSE) return -1; \
        return real(folder, path, flags, mode);                                 \
    }
OPENING_AT(openat)
OPENING_AT(openat64)

ssize_t write(int handle, const void *data, size_t size) {
    REAL(ssize_t, write, int, const void *, size_t);
    switch (at_handle(WRITE, "write", handle)) {
    case REFUSE: return -1;
    case HALF:
        real(handle, data, size / 2);
        kill(getpid(), SIGKILL);
    }
    return real(handle, data, size);
}

ssize_t read(int handle, void *data, size_t size) {
    REAL(ssize_t, read, int, void *, size_t);
    return at_handle(READ, "read", handle) == REFUSE ? -1 : real(handle, data, size);
}

#define READING(name)                                                                                       \
    ssize_t name(int handle, void *data, size_t size, off_t place) {                                        \
        REAL(ssize_t, name, int, void *, size_t, off_t);                                                    \
        return at_handle(READ, "pread", handle) == REFUSE ? -1 : real(handle, data, size, place);           \
    }
READING(pread)
READING(pread64)

#define MAPPING(name)                                                                                        \
    void *name(void *place, size_t size, int mode, int flags, int handle, off_t offset) {                    \
        REAL(void *, name, void *, size_t, int, int, int, off_t);                                            \
        if (handle >= 0 && counted && at_handle(READ, "mmap", handle) == REFUSE) return MAP_FAILED;          \
        return real(place, size, mode, flags, handle, offset);                                               \
    }
MAPPING(mmap)
MAPPING(mmap64)

#define SYNCING(name)                                                                   \
    int name(int handle) {                                                              \
        REAL(int, name, int);                                                           \
        return at_handle(FSYNC, "fsync", handle) == REFUSE ? -1 : real(handle);         \
    }
SYNCING(fsync)
SYNCING(fdatasync)

int close(int handle) {
    REAL(int, close, int);
    if (counted & CLOSE && (fcntl(handle, F_GETFL) & O_ACCMODE) != O_RDONLY && at_handle(CLOSE, "close", handle) == REFUSE) {
        real(handle);
        errno = value;
        return -1;
    }
    return real(handle);
}

int rename(const char *old, const char *new) {
    REAL(int, rename, const char *, const char *);
    return at_name(RENAME, "rename", AT_FDCWD, new) == REFUSE ? -1 : real(old, new);
}

int renameat(int a, const char *old, int b, const char *new) {
    REAL(int, renameat, int, const char *, int, const char *);
    return at_name(RENAME, "rename", b, new) == REFUSE ? -1 : real(a, old, b, new);
}

int renameat2(int a, const char *old, int b, const char *new, unsigned flags) {
    REAL(int, renameat2, int, const char *, int, const char *, unsigned);
    if (plain && flags) {
        errno = EINVAL;
        return -1;
    }
    return at_name(RENAME, "renameat2", b, new) == REFUSE ? -1 : real(a, old, b, new, flags);
}

int mkdir(const char *path, mode_t mode) {
    REAL(int, mkdir, const char *, mode_t);
    return at_name(MKDIR, "mkdir", AT_FDCWD, path) == REFUSE ? -1 : real(path, mode);
}

int mkdirat(int folder, const char *path, mode_t mode) {
    REAL(int, mkdirat, int, const char *, mode_t);
    return at_name(MKDIR, "mkdir", folder, path) == REFUSE ? -1 : real(folder, path, mode);
}

int unlink(const char *path) {
    REAL(int, unlink, const char *);
    return at_name(UNLINK, "unlink", AT_FDCWD, path) == REFUSE ? -1 : real(path);
}

int unlinkat(int folder, const char *path, int flags) {
    REAL(int, unlinkat, int, const char *, int);
    int folders = flags & AT_REMOVEDIR;
    return at_name(folders ? RMDIR : UNLINK, folders ? "rmdir" : "unlink", folder, path) == REFUSE ? -1 : real(folder, path, flags);
}

int rmdir(const char *path) {
    REAL(int, rmdir, const char *);
    return at_name(RMDIR, "rmdir", AT_FDCWD, path) == REFUSE ? -1 : real(path);
}

int link(const char *old, const char *new) {
    REAL(int, link, const char *, const char *);
    return at_name(LINK, "link", AT_FDCWD, new) == REFUSE ? -1 : real(old, new);
}

int linkat(int a, const char *old, int b, const char *new, int flags) {
    REAL(int, linkat, int, const char *, int, const char *, int);
    return at_name(LINK, "link", b, new) == REFUSE ? -1 : real(a, old, b, new, flags);
}

int utimensat(int folder, const char *path, const struct timespec times[2], int flags) {
    REAL(int, utimensat, int, const char *, const struct timespec *, int);
    return at_name(UTIME, "utimensat", folder, path) == REFUSE ? -1 : real(folder, path, times, flags);
}

int flock(int handle, int operation) {
    REAL(int, flock, int, int);
    return unlocked ? 0 : real(handle, operation);
}
