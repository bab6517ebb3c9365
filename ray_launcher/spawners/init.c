/* PID 1 of a container: runs one program, notes how it really ended, and ends everything once nobody holds the other end.

   Engines tell an exit by one number: 137 may be SIGKILL or exit(137), 125 to 127 the engine or the program, and a
   program that is PID 1 itself is deaf to signals. So this is the entry point. Its directory, mounted at BOX, has

   spec    NUL-terminated: inherit (0 or 1), umask (octal, or empty), nice, working directory (or empty), program,
           number of argv, argv ..., number of globs, globs of inherited variables to leave out ...,
           then NAME=VALUE up to the end of the file.
   life    a FIFO. Each byte that comes is a signal for all processes here; with 128 added, for the program alone.
           When the last writer is gone, everything here is killed.
   status  lines that are written here: "running", "exited CODE", "signaled SIGNAL CORE", "failed chdir|exec|nice|spec
           ERRNO", "never" (asked to end before the program was started).

   Built by build.sh into init-x86_64 and init-aarch64, static, for images that have nothing. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define BOX "/.ray_launcher"
#define LEFTOVER_GRACE 2 /* seconds between TERM and KILL for what outlives the program */

extern char **environ;

/* SOURCE: this text's SHA-256, so that a test can tell whether the binaries are made of it. */
static const char lost[] = "init.c " SOURCE "\0: nothing is mounted at " BOX "\n";

static int life = -1, status = -1;
static pid_t leader;

struct spec {
    char *inherit, *mask, *nice, *cwd, *program;
    char **argv;
    char **globs;
    char *env, *end;
};

static void tell(const char *what, const char *about, int one, int two) {
    char line[96];
    int length = snprintf(line, sizeof line, "%s %s %d %d\n", what, about, one, two);
    if (write(status, line, length) != length)
        _exit(125);
}

static void fail(const char *where, int number) {
    tell("failed", where, number, 0);
    _exit(127);
}

static char *word(char **at, char *end) {
    char *here = *at;
    size_t length = strnlen(here, end - here);
    if (here + length >= end)
        fail("spec", EINVAL);
    *at = here + length + 1;
    return here;
}

static char **words(char **at, char *end) {
    int count = atoi(word(at, end));
    char **list = calloc(count + 1, sizeof *list);
    if (!list)
        fail("spec", ENOMEM);
    for (int i = 0; i < count; i++)
        list[i] = word(at, end);
    return list;
}

static struct spec read_spec(void) {
    struct spec spec;
    struct stat found;
    int fd = open(BOX "/spec", O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &found) < 0)
        fail("spec", errno);
    char *at = mmap(NULL, found.st_size, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    if (at == MAP_FAILED)
        fail("spec", errno);
    close(fd);
    spec.end = at + found.st_size;
    spec.inherit = word(&at, spec.end);
    spec.mask = word(&at, spec.end);
    spec.nice = word(&at, spec.end);
    spec.cwd = word(&at, spec.end);
    spec.program = word(&at, spec.end);
    spec.argv = words(&at, spec.end);
    spec.globs = words(&at, spec.end);
    spec.env = at;
    return spec;
}

static void set_environment(struct spec *spec) {
    static char *none[] = {NULL};
    if (*spec->inherit == '0')
        environ = none;
    char **kept = environ;
    for (char **each = environ; *each; each++) {
        char *value = strchr(*each, '=');
        int wanted = 1;
        if (value)
            *value = 0;
        for (char **glob = spec->globs; *glob; glob++)
            wanted = wanted && fnmatch(*glob, *each, 0) != 0;
        if (value)
            *value = '=';
        if (wanted)
            *kept++ = *each;
    }
    *kept = NULL;
    for (char *at = spec->env; at < spec->end;)
        if (putenv(word(&at, spec->end)) != 0)
            fail("spec", errno);
}

/* In the child: an error is told through `told`, which a successful exec closes. */
static void refuse(int told, char step) {
    char said[2] = {step, (char)errno};
    if (write(told, said, sizeof said) < 0)
        _exit(125);
    _exit(127);
}

static void become(struct spec *spec, int told) {
    sigset_t none;
    setsid();
    for (int number = 1; number < NSIG; number++)
        signal(number, SIG_DFL);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    if (*spec->mask)
        umask(strtol(spec->mask, NULL, 8));
    errno = 0;
    if (*spec->nice && setpriority(PRIO_PROCESS, 0, atoi(spec->nice)) < 0)
        refuse(told, 'n');
    if (*spec->cwd && chdir(spec->cwd) < 0)
        refuse(told, 'c');
    execvp(spec->program, spec->argv);
    refuse(told, 'e');
}

static void start(struct spec *spec) {
    int told[2];
    char said[2];
    if (pipe2(told, O_CLOEXEC) < 0 || (leader = fork()) < 0)
        fail("exec", errno);
    if (leader == 0)
        become(spec, told[1]);
    close(told[1]);
    if (read(told[0], said, sizeof said) == sizeof said)
        fail(said[0] == 'c' ? "chdir" : said[0] == 'n' ? "nice" : "exec", said[1]);
    close(told[0]);
    tell("running", "-", 0, 0);
}

/* What has come through the FIFO is passed on; 1: somebody wants an end of it all. */
static int obey(void) {
    unsigned char asked[64];
    int ending = 0;
    ssize_t count;
    while ((count = read(life, asked, sizeof asked)) > 0)
        for (ssize_t i = 0; i < count; i++) {
            int number = asked[i] & 127;
            ending = ending || number == SIGTERM || number == SIGKILL;
            if (leader)
                kill(asked[i] & 128 ? leader : -1, number);
        }
    if (count == 0) { /* nobody is left who could want anything */
        kill(-1, SIGKILL);
        _exit(128 + SIGKILL);
    }
    return ending;
}

static int code_of(int how) {
    return WIFEXITED(how) ? WEXITSTATUS(how) : 128 + WTERMSIG(how);
}

/* Reap; 1 when the program is among them, whose wait status is then noted. */
static int reap(int *how) {
    int found, seen = 0;
    pid_t pid;
    while ((pid = waitpid(-1, &found, WNOHANG)) > 0)
        if (pid == leader) {
            seen = 1;
            *how = found;
            if (WIFEXITED(found))
                tell("exited", "-", WEXITSTATUS(found), 0);
            else
                tell("signaled", "-", WTERMSIG(found), WCOREDUMP(found) ? 1 : 0);
        }
    return seen;
}

static void sweep(int signals) {
    struct signalfd_siginfo info;
    struct pollfd watched[] = {{.fd = signals, .events = POLLIN}, {.fd = life, .events = POLLIN}};
    struct timespec now, until;
    int unused;
    leader = 0;
    clock_gettime(CLOCK_MONOTONIC, &until);
    kill(-1, SIGTERM);
    while (reap(&unused), kill(-1, 0) == 0) {
        clock_gettime(CLOCK_MONOTONIC, &now);
        long left = (until.tv_sec + LEFTOVER_GRACE - now.tv_sec) * 1000 + (until.tv_nsec - now.tv_nsec) / 1000000;
        if (left <= 0 || poll(watched, 2, left) == 0)
            return; /* the end of PID 1 kills the rest */
        if (watched[0].revents && read(signals, &info, sizeof info) < 0)
            return;
        if (watched[1].revents && obey())
            return;
    }
}

int main(void) {
    sigset_t all;
    struct signalfd_siginfo info;
    int how = 0;
    sigfillset(&all);
    sigprocmask(SIG_BLOCK, &all, NULL);
    status = open(BOX "/status", O_WRONLY | O_APPEND | O_CLOEXEC);
    life = open(BOX "/life", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    int signals = signalfd(-1, &all, SFD_CLOEXEC);
    if (status < 0 || life < 0 || signals < 0)
        return write(2, lost, sizeof lost - 1) < 0 ? 1 : 125;
    struct spec spec = read_spec();
    if (obey()) {
        tell("never", "-", 0, 0);
        return 125;
    }
    set_environment(&spec);
    start(&spec);
    struct pollfd watched[] = {{.fd = signals, .events = POLLIN}, {.fd = life, .events = POLLIN}};
    for (;;) {
        if (poll(watched, 2, -1) < 0)
            continue;
        if (watched[1].revents)
            obey();
        if (!watched[0].revents || read(signals, &info, sizeof info) < 0)
            continue;
        if (info.ssi_signo != SIGCHLD)
            kill(-1, info.ssi_signo); /* from the engine's own stop or kill */
        else if (reap(&how))
            break;
    }
    sweep(signals);
    return code_of(how);
}
