/* Loaded before libc (LD_PRELOAD): counts the file operations below one folder, and makes one of them go wrong.
 *
 * A process tells it the folder with `watch` and what is to happen with `arm`; without that it changes nothing. It stands below
 * Python, PyTorch and Pillow, so it sees every byte that any of them writes. */
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
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { NOTHING, KILL, KILL_HALFWAY, FULL, FAIL, SIGNAL };
#define MOST_FILES 4096
#define MOST_OPERATIONS 65536

static char folder[PATH_MAX];
static size_t folder_length;
static int action, at, number;
static atomic_int count;
static atomic_int disk_is_full;
static char is_watched[MOST_FILES];
static char kinds[MOST_OPERATIONS + 1];

void watch(const char *path) {
    strncpy(folder, path, sizeof folder - 1);
    folder_length = strlen(folder);
}

/* `what` happens at operation `which`, counted from 0; `value` is a signal's or an error's number. */
void arm(int what, int which, int value) {
    action = what, at = which, number = value;
    count = 0;
}

int operations(void) { return count; }
const char *kinds_of_operations(void) { return kinds; }

static int below_folder(int base, const char *path) {
    char place[PATH_MAX], link[64];
    if (!folder_length) return 0;
    if (path[0] == '/') return !strncmp(path, folder, folder_length);
    if (base == AT_FDCWD) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", base);
    ssize_t length = readlink(link, place, sizeof place - 1);
    if (length < 0) return 0;
    place[length] = 0;
    return !strncmp(place, folder, folder_length);
}

static int file_is_watched(int file) { return file >= 0 && file < MOST_FILES && is_watched[file]; }
static void die(void) { kill(getpid(), SIGKILL); pause(); }

/* Counts an operation; true if it is the one that goes wrong. A kill before it happens here. */
static int is_due(char kind) {
    int now = atomic_fetch_add(&count, 1);
    if (now < MOST_OPERATIONS) kinds[now] = kind;
    if (action == NOTHING || now != at) return 0;
    if (action == KILL) die();
    if (action == SIGNAL) kill(getpid(), number);
    if (action == FULL) disk_is_full = 1;
    return action != SIGNAL;
}

#define REAL(name) ((__typeof__(&name))real(#name))
static void *real(const char *name) { return dlsym(RTLD_NEXT, name); }
#define LATER(name) static __typeof__(&name) next_##name; if (!next_##name) next_##name = REAL(name)

/* An operation that makes or changes an entry of a folder. */
#define ENTRY(kind, watched, takes_space, call)                        \
    if (!(watched)) return call;                                       \
    int due = is_due(kind);                                            \
    if ((due && action == FAIL) || (disk_is_full && (takes_space))) {  \
        errno = due && action == FAIL ? number : ENOSPC;               \
        return -1;                                                     \
    }                                                                  \
    __typeof__(call) result = call;                                    \
    if (due && action == KILL_HALFWAY) die();                          \
    return result

static int opened(int file, int watched) {
    if (file >= 0 && file < MOST_FILES) is_watched[file] = watched;
    return file;
}

#define OPEN(name, base, arguments, call, declaration)                              \
    int name declaration {                                                          \
        LATER(name);                                                                \
        mode_t mode = 0;                                                            \
        if (flags & (O_CREAT | O_TMPFILE)) {                                        \
            va_list rest;                                                           \
            va_start(rest, flags);                                                  \
            mode = va_arg(rest, mode_t);                                            \
            va_end(rest);                                                           \
        }                                                                           \
        if (!(flags & (O_WRONLY | O_RDWR)) || !below_folder(base, path)) return opened(call, 0); \
        int due = is_due('o');                                                      \
        if (due && action == FAIL) { errno = number; return -1; }                   \
        if (disk_is_full && (flags & O_CREAT) && faccessat(base, path, F_OK, 0)) { errno = ENOSPC; return -1; } \
        int file = opened(call, 1);                                                 \
        if (due && action == KILL_HALFWAY) die();                                   \
        return file;                                                                \
    }
OPEN(open, AT_FDCWD, (path, flags), next_open(path, flags, mode), (const char *path, int flags, ...))
OPEN(open64, AT_FDCWD, (path, flags), next_open64(path, flags, mode), (const char *path, int flags, ...))
OPEN(openat, base, (base, path, flags), next_openat(base, path, flags, mode), (int base, const char *path, int flags, ...))
OPEN(openat64, base, (base, path, flags), next_openat64(base, path, flags, mode), (int base, const char *path, int flags, ...))

int close(int file) {
    LATER(close);
    if (file >= 0 && file < MOST_FILES) is_watched[file] = 0;
    return next_close(file);
}

ssize_t write(int file, const void *bytes, size_t size) {
    LATER(write);
    if (!file_is_watched(file) || !size) return next_write(file, bytes, size);
    int was_full = disk_is_full, due = is_due('w');
    if (due && action == FAIL) { errno = number; return -1; }
    if (was_full) { errno = ENOSPC; return -1; }
    if (due && size > 1) size /= 2; /* the rest does not fit, or is not written any more */
    ssize_t written = next_write(file, bytes, size);
    if (due && action == KILL_HALFWAY) die();
    return written;
}

ssize_t writev(int file, const struct iovec *parts, int parts_count) {
    LATER(writev);
    if (!file_is_watched(file) || !parts_count) return next_writev(file, parts, parts_count);
    return write(file, parts[0].iov_base, parts[0].iov_len);
}

int fsync(int file) { LATER(fsync); ENTRY('s', file_is_watched(file), 0, next_fsync(file)); }
int fdatasync(int file) { LATER(fdatasync); ENTRY('s', file_is_watched(file), 0, next_fdatasync(file)); }
int ftruncate(int file, off_t size) { LATER(ftruncate); ENTRY('t', file_is_watched(file), 0, next_ftruncate(file, size)); }
int rename(const char *a, const char *b) { LATER(rename); ENTRY('r', below_folder(AT_FDCWD, b), 0, next_rename(a, b)); }
int renameat(int p, const char *a, int q, const char *b) {
    LATER(renameat);
    ENTRY('r', below_folder(q, b), 0, next_renameat(p, a, q, b));
}
int unlink(const char *path) { LATER(unlink); ENTRY('u', below_folder(AT_FDCWD, path), 0, next_unlink(path)); }
int unlinkat(int base, const char *path, int flags) {
    LATER(unlinkat);
    ENTRY('u', below_folder(base, path), 0, next_unlinkat(base, path, flags));
}
int rmdir(const char *path) { LATER(rmdir); ENTRY('u', below_folder(AT_FDCWD, path), 0, next_rmdir(path)); }
int link(const char *a, const char *b) { LATER(link); ENTRY('l', below_folder(AT_FDCWD, b), 1, next_link(a, b)); }
int linkat(int p, const char *a, int q, const char *b, int flags) {
    LATER(linkat);
    ENTRY('l', below_folder(q, b), 1, next_linkat(p, a, q, b, flags));
}
int mkdir(const char *path, mode_t mode) { LATER(mkdir); ENTRY('m', below_folder(AT_FDCWD, path), 1, next_mkdir(path, mode)); }
