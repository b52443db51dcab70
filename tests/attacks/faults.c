/* Faults of the operating system, by order: loaded with LD_PRELOAD, it stands between a process and
   the C library and lets chosen calls on chosen paths fail, or kills the process at one.

   FAULT_DIR      only paths below this directory count; without it nothing does
   FAULT_MATCH    and only those that hold this text
   FAULT_CALLS    calls that count: open,look,read,write,sync,rename,link,mkdir,unlink, with commas
                  ("open" is one that may write, "look" one that only reads)
   FAULT_KIND     an errno by name, KILL (before the call), KILLED (after it), SHORT (the first writes
                  half, the others meet ENOSPC); empty: none
   FAULT_AT       the how-manieth call that counts is the first to meet it (from 1)
   FAULT_TIMES    how many calls meet it; 0: all
   FAULT_SECONDS  or all calls of so many seconds from the first one on, then also those of
   FAULT_WIDE     (as FAULT_CALLS), whatever their path holds
   FAULT_STATE    file of 64 bytes: calls, faults and the time of the first, shared by all processes
   FAULT_TRACE    file that gets a line "call path" for each call that counts  */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

struct state {
  volatile long calls, faults;
  volatile double since;
};

static struct state own, *shared = &own;
static char directory[PATH_MAX], match[256], calls[256], wide[256], kind[32];
static long at, times;
static double seconds;
static int armed, trace = -1;
static __thread int inside;

static const struct { const char *name; int number; } ERRORS[] = {
    {"ENOSPC", ENOSPC}, {"EIO", EIO},       {"EROFS", EROFS}, {"EACCES", EACCES},
    {"EMFILE", EMFILE}, {"EDQUOT", EDQUOT}, {"ENOENT", ENOENT}, {"ESTALE", ESTALE}};

static const char *setting(const char *name) {
  const char *value = getenv(name);
  return value ? value : "";
}

/* Read the settings again; also called by name from a process that was forked. */
void fault_arm(void) {
  const char *file;
  armed = 0;
  snprintf(directory, sizeof directory, "%s", setting("FAULT_DIR"));
  snprintf(match, sizeof match, "%s", setting("FAULT_MATCH"));
  snprintf(calls, sizeof calls, ",%s,", setting("FAULT_CALLS"));
  snprintf(wide, sizeof wide, ",%s,", setting("FAULT_WIDE"));
  snprintf(kind, sizeof kind, "%s", setting("FAULT_KIND"));
  at = atol(setting("FAULT_AT"));
  times = *setting("FAULT_TIMES") ? atol(setting("FAULT_TIMES")) : 1;
  seconds = atof(setting("FAULT_SECONDS"));
  file = setting("FAULT_STATE");
  if (*file) {
    int fd = (int)syscall(SYS_openat, AT_FDCWD, file, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd >= 0) {
      void *map;
      if (syscall(SYS_ftruncate, fd, 64)) {}
      map = mmap(NULL, 64, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
      if (map != MAP_FAILED) shared = map;
      syscall(SYS_close, fd);
    }
  }
  file = setting("FAULT_TRACE");
  if (*file)
    trace = (int)syscall(SYS_openat, AT_FDCWD, file, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  armed = *directory != 0;
}

__attribute__((constructor)) static void start(void) { fault_arm(); }

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_REALTIME, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Let this call meet the fault; 0 where it is made all the same. */
static int fault(const char *call, int *after) {
  long k;
  __sync_add_and_fetch(&shared->faults, 1);
  if (!strcmp(kind, "KILL")) syscall(SYS_kill, getpid(), SIGKILL);
  if (!strcmp(kind, "KILLED")) {
    *after = 1;
    return 0;
  }
  if (!strcmp(kind, "SHORT")) {
    errno = ENOSPC;
    return strcmp(call, "write") || shared->faults > 1 ? 1 : 2;
  }
  for (k = 0; k < (long)(sizeof ERRORS / sizeof *ERRORS); k++)
    if (!strcmp(kind, ERRORS[k].name)) {
      errno = ERRORS[k].number;
      return 1;
    }
  return 0;
}

/* Whether a call on this path meets the fault; then errno says which. */
static int meets(const char *call, const char *path, int *after) {
  long n;
  char text[32];
  size_t length = strlen(directory);
  *after = 0;
  if (strncmp(path, directory, length) || (path[length] != '/' && path[length])) return 0;
  snprintf(text, sizeof text, ",%s,", call);
  if (seconds > 0 && shared->since > 0 && now() < shared->since + seconds && strstr(wide, text))
    return fault(call, after);
  if (*match && !strstr(path + length, match)) return 0;
  if (!strstr(calls, text)) return 0;
  n = __sync_add_and_fetch(&shared->calls, 1);
  if (trace >= 0) {
    char line[PATH_MAX + 64];
    int size = snprintf(line, sizeof line, "%s %s\n", call, path + length);
    if (syscall(SYS_write, trace, line, (size_t)size) < 0) {}
  }
  if (!*kind || n < at) return 0;
  if (seconds > 0) {
    if (shared->since == 0) shared->since = now();
    if (now() > shared->since + seconds) return 0;
  } else if (times && shared->faults >= times) {
    return 0;
  }
  return fault(call, after);
}

static int on_path(const char *call, int at_fd, const char *path, int *after) {
  char base[PATH_MAX], full[2 * PATH_MAX];
  int answer;
  *after = 0;
  if (!armed || inside || !path) return 0;
  inside = 1;
  if (*path != '/') {
    ssize_t size;
    if (at_fd == AT_FDCWD) {
      size = syscall(SYS_getcwd, base, sizeof base) > 0 ? (ssize_t)strlen(base) : -1;
    } else {
      char link[64];
      snprintf(link, sizeof link, "/proc/self/fd/%d", at_fd);
      size = syscall(SYS_readlinkat, AT_FDCWD, link, base, sizeof base - 1);
    }
    if (size < 0) size = 0;
    base[size] = 0;
    snprintf(full, sizeof full, "%s/%s", base, path);
    path = full;
  }
  answer = meets(call, path, after);
  inside = 0;
  return answer;
}

static int on_fd(const char *call, int fd, int *after) {
  char link[64], path[PATH_MAX];
  ssize_t size;
  int answer = 0, before = errno;
  *after = 0;
  if (!armed || inside || fd < 3) return 0;
  inside = 1;
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  size = syscall(SYS_readlinkat, AT_FDCWD, link, path, sizeof path - 1);
  if (size > 0) {
    path[size] = 0;
    errno = before;
    answer = meets(call, path, after);
  }
  inside = 0;
  return answer;
}

static void late(int after) {
  if (after == 1) syscall(SYS_kill, getpid(), SIGKILL);
}

#define REAL(name) \
  static __typeof__(name) *real; \
  int after, met; \
  (void)met; \
  if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

#define MODE(flags) (((flags) & O_ACCMODE) == O_RDONLY && !((flags) & O_CREAT) ? "look" : "open")

#define OPEN(name) \
  int name(const char *path, int flags, ...) { \
    int answer; \
    mode_t mode = 0; \
    REAL(name); \
    if (flags & (O_CREAT | __O_TMPFILE)) { \
      va_list rest; \
      va_start(rest, flags); \
      mode = va_arg(rest, mode_t); \
      va_end(rest); \
    } \
    if (on_path(MODE(flags), AT_FDCWD, path, &after)) return -1; \
    answer = real(path, flags, mode); \
    late(after); \
    return answer; \
  }
OPEN(open)
OPEN(open64)

#define OPENAT(name) \
  int name(int dir, const char *path, int flags, ...) { \
    int answer; \
    mode_t mode = 0; \
    REAL(name); \
    if (flags & (O_CREAT | __O_TMPFILE)) { \
      va_list rest; \
      va_start(rest, flags); \
      mode = va_arg(rest, mode_t); \
      va_end(rest); \
    } \
    if (on_path(MODE(flags), dir, path, &after)) return -1; \
    answer = real(dir, path, flags, mode); \
    late(after); \
    return answer; \
  }
OPENAT(openat)
OPENAT(openat64)

#define FOPEN(name) \
  FILE *name(const char *path, const char *mode) { \
    FILE *answer; \
    REAL(name); \
    if (on_path(*mode == 'r' && !strchr(mode, '+') ? "look" : "open", AT_FDCWD, path, &after)) \
      return NULL; \
    answer = real(path, mode); \
    late(after); \
    return answer; \
  }
FOPEN(fopen)
FOPEN(fopen64)

ssize_t write(int fd, const void *data, size_t size) {
  ssize_t answer;
  REAL(write);
  met = on_fd("write", fd, &after);
  if (met == 1) return -1;
  answer = real(fd, data, met == 2 && size > 1 ? size / 2 : size);
  late(after);
  return answer;
}

#define PWRITE(name, offset_type) \
  ssize_t name(int fd, const void *data, size_t size, offset_type offset) { \
    ssize_t answer; \
    REAL(name); \
    met = on_fd("write", fd, &after); \
    if (met == 1) return -1; \
    answer = real(fd, data, met == 2 && size > 1 ? size / 2 : size, offset); \
    late(after); \
    return answer; \
  }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

ssize_t writev(int fd, const struct iovec *data, int count) {
  ssize_t answer;
  REAL(writev);
  if (on_fd("write", fd, &after)) return -1;
  answer = real(fd, data, count);
  late(after);
  return answer;
}

ssize_t read(int fd, void *data, size_t size) {
  REAL(read);
  if (on_fd("read", fd, &after)) return -1;
  return real(fd, data, size);
}

#define SYNC(name) \
  int name(int fd) { \
    int answer; \
    REAL(name); \
    if (on_fd("sync", fd, &after)) return -1; \
    answer = real(fd); \
    late(after); \
    return answer; \
  }
SYNC(fsync)
SYNC(fdatasync)

#define TWO(name, call, from_fd, to_fd, target, signature, ...) \
  int name signature { \
    int answer; \
    REAL(name); \
    if (on_path(call, to_fd, target, &after)) return -1; \
    answer = real(__VA_ARGS__); \
    late(after); \
    return answer; \
  }
TWO(rename, "rename", AT_FDCWD, AT_FDCWD, to, (const char *from, const char *to), from, to)
TWO(renameat, "rename", a, b, to, (int a, const char *from, int b, const char *to), a, from, b, to)
TWO(renameat2, "rename", a, b, to,
    (int a, const char *from, int b, const char *to, unsigned flags), a, from, b, to, flags)
TWO(link, "link", AT_FDCWD, AT_FDCWD, to, (const char *from, const char *to), from, to)
TWO(linkat, "link", a, b, to, (int a, const char *from, int b, const char *to, int flags), a, from,
    b, to, flags)
TWO(mkdir, "mkdir", 0, AT_FDCWD, path, (const char *path, mode_t mode), path, mode)
TWO(mkdirat, "mkdir", 0, fd, path, (int fd, const char *path, mode_t mode), fd, path, mode)
TWO(unlink, "unlink", 0, AT_FDCWD, path, (const char *path), path)
TWO(unlinkat, "unlink", 0, fd, path, (int fd, const char *path, int flags), fd, path, flags)
