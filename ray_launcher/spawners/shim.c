/* The leader of a container's proc: makes what the container gets, runs the engine's client, and ends like the program.

   Its supervisor starts it once per launch, so it does the usual and no more, in a millisecond. Its arguments are the
   path of init.c's binary, and the plan: lists of words, each with their number before it, see `Engine.plan`. The
   directory RAY_LAUNCHER_SECRETS has the spec for init.c. Wherever the end is not a plain exit this process becomes the
   command that is the first list, shim.py, which gets behind its own words: what happened ("box" or "run", which could
   not be made or started, or "client": it has exited), a number (the errno, or the client's code), the descriptor of the
   FIFO, where in the file of its stderr its own part begins, and the plan.

   This process holds the one end of the container's FIFO, where it passes on what it reads from its stdin: when it is
   killed, so is everything in the container, whatever the engine does.

   Built by build.sh into shim-x86_64 and shim-aarch64, static, as init.c is. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define BOX "/.ray_launcher" /* where the container has the box */
#define SPECIAL 125          /* the exit code that says: see what shim.py has written */

extern char **environ;

/* SOURCE: this text's SHA-256, so that a test can tell whether the binaries are made of it. */
__attribute__((used, retain)) static const char made_of[] = "shim.c " SOURCE;

struct list {
    int count;
    char **words;
};

static struct {
    char **words; /* all of it */
    struct list otherwise, quiet, gpus, run, image;
} plan;

static char *box;
static int life = -1, signals = -1;
static off_t begin;

static char **added(char **at, struct list list) {
    memcpy(at, list.words, list.count * sizeof *at);
    return at + list.count;
}

static int count(char **words) {
    int found = 0;
    while (words[found])
        found++;
    return found;
}

static void give_up(const char *what) {
    dprintf(2, "the container's shim: %s: %s\n", what, strerror(errno));
    _exit(SPECIAL);
}

/* Become the other command. */
static void hand_over(const char *what, int number) {
    char told[3][24];
    struct list all = {count(plan.words), plan.words};
    char **words = calloc(plan.otherwise.count + 4 + all.count + 1, sizeof *words);
    if (!words)
        give_up("what to become");
    snprintf(told[0], sizeof told[0], "%d", number);
    snprintf(told[1], sizeof told[1], "%d", life);
    snprintf(told[2], sizeof told[2], "%lld", (long long)begin);
    char *facts[] = {(char *)what, told[0], told[1], told[2]};
    added(added(added(words, plan.otherwise), (struct list){4, facts}), all);
    if (life >= 0)
        fcntl(life, F_SETFD, 0);
    execv(words[0], words);
    give_up(words[0]);
}

static void *need(void *found) {
    if (!found)
        hand_over("box", errno);
    return found;
}

static ssize_t sure(ssize_t result) {
    if (result < 0)
        hand_over("box", errno);
    return result;
}

static void whole(ssize_t done, ssize_t wanted) {
    if (sure(done) < wanted)
        hand_over("box", EIO);
}

static char *joined(const char *one, const char *two) {
    char *text = need(malloc(strlen(one) + strlen(two) + 1));
    return strcat(strcpy(text, one), two);
}

static struct list next(char ***at) {
    struct list found = {**at ? atoi(**at) : -1, *at + 1};
    errno = EINVAL;
    if (found.count < 0 || found.count > count(found.words))
        give_up("plan");
    *at += 1 + found.count;
    return found;
}

static void read_plan(char **words) {
    plan.words = words;
    plan.otherwise = next(&words);
    plan.quiet = next(&words);
    plan.gpus = next(&words);
    plan.run = next(&words);
    plan.image = next(&words);
}

/* Whether a variable is for this proc alone, and not for the engine and the program. */
static int is_taken(const char *variable) {
    return !strncmp(variable, "RAY_LAUNCHER_SECRETS=", 21) || !strncmp(variable, "RAY_LAUNCHER_SOCKET=", 20);
}

static int made(const char *name, mode_t mode) {
    return sure(open(joined(box, name), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode));
}

/* A copy, because whoever is root inside can write there. */
static void copy_init(const char *source) {
    struct stat found;
    int from = sure(open(source, O_RDONLY | O_CLOEXEC)), to = made("/init", 0755);
    sure(fstat(from, &found));
    whole(sendfile(to, from, NULL, found.st_size), found.st_size);
    close(from);
    close(to);
}

/* The spec ends with variables, to which ours are added. */
static void move_spec(const char *from) {
    const char *to = joined(box, "/spec");
    sure(rename(from, to));
    int spec = sure(open(to, O_WRONLY | O_APPEND | O_CLOEXEC));
    sure(fchmod(spec, 0644));
    for (char **each = environ; *each; each++)
        if (!strncmp(*each, "RAY_LAUNCHER_", 13) && !is_taken(*each))
            whole(write(spec, *each, strlen(*each) + 1), strlen(*each) + 1);
    close(spec);
}

/* The directory that the container gets, whose user may be anybody; the directory above is its owner's alone. */
static void make_box(const char *secrets, const char *init) {
    box = joined(secrets, "/box");
    sure(mkdir(box, 0755));
    copy_init(init);
    move_spec(joined(secrets, "/spec"));
    int status = made("/status", 0600);
    sure(fchmod(status, 0666));
    close(status);
    sure(mkfifo(joined(box, "/life"), 0644));
    life = sure(open(joined(box, "/life"), O_RDWR | O_NONBLOCK | O_CLOEXEC));
}

static char *start_of(const char *path, char *text, size_t room) {
    int fd = sure(open(path, O_RDONLY | O_CLOEXEC));
    text[sure(read(fd, text, room - 1))] = 0;
    close(fd);
    return text;
}

/* Which process this is, for reaper.py: boot, pid namespace, pid and start time. */
static char *who(void) {
    char *name = need(malloc(200)), boot[37], space[64] = "", stat[1024];
    start_of("/proc/sys/kernel/random/boot_id", boot, sizeof boot);
    sure(readlink("/proc/self/ns/pid", space, sizeof space - 1));
    char *at = strrchr(start_of("/proc/self/stat", stat, sizeof stat), ')'); /* of field 2; the time is field 22 */
    for (int field = 2; at && field < 22; field++)
        at = strchr(at + 1, ' ');
    snprintf(name, 200, "ray_launcher.shim=%s/%s/%d/%lld", boot, space, getpid(), at ? atoll(at) : 0);
    return name;
}

static char **command(void) {
    const char *ids = getenv("CUDA_VISIBLE_DEVICES");
    int has_gpus = plan.gpus.count && ids && *ids;
    size_t room = plan.run.count + plan.image.count + 8 + (has_gpus ? 2 * strlen(ids) : 0);
    char **words = need(calloc(room, sizeof *words)), **at = added(words, plan.run);
    *at++ = "--label";
    *at++ = who();
    *at++ = "--mount";
    *at++ = joined(joined("type=bind,source=", box), ",target=" BOX);
    if (has_gpus && !strcmp(*plan.gpus.words, "cdi")) {
        char *rest = joined(ids, "");
        for (char *id; (id = strsep(&rest, ","));) {
            *at++ = "--device";
            *at++ = joined("nvidia.com/gpu=", id);
        }
    } else if (has_gpus) {
        *at++ = "--gpus";
        *at++ = joined(joined("\"device=", ids), "\"");
    }
    added(at, plan.image);
    return words;
}

static char **environment(void) {
    char **kept = need(calloc(count(environ) + 1, sizeof *kept)), **at = kept;
    for (char **each = environ; *each; each++)
        if (!is_taken(*each))
            *at++ = *each;
    return kept;
}

/* From here on they neither end this process nor get lost, whatever it becomes. */
static void watch_signals(void) {
    sigset_t ours;
    sigemptyset(&ours);
    sigaddset(&ours, SIGCHLD);
    sigaddset(&ours, SIGTERM);
    sure(sigprocmask(SIG_BLOCK, &ours, NULL));
    signals = sure(signalfd(-1, &ours, SFD_CLOEXEC));
}

static pid_t start(char **words) {
    pid_t client;
    posix_spawnattr_t attributes;
    posix_spawn_file_actions_t actions;
    sigset_t none;
    int null = sure(open("/dev/null", O_RDWR | O_CLOEXEC));
    sigemptyset(&none);
    posix_spawnattr_init(&attributes);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawn_file_actions_init(&actions);
    for (int fd = 0; fd <= (plan.quiet.count ? 2 : 0); fd++)
        posix_spawn_file_actions_adddup2(&actions, null, fd);
    int problem = posix_spawnp(&client, words[0], &actions, &attributes, words, environment());
    if (problem)
        hand_over("run", problem);
    close(null);
    return client;
}

/* Pass on what is asked for until the client has exited; returns its code, as a shell would. */
static int see_through(pid_t client) {
    struct pollfd watched[] = {{.fd = signals, .events = POLLIN}, {.fd = 0, .events = POLLIN}};
    int how;
    while (waitpid(client, &how, WNOHANG) != client) {
        struct signalfd_siginfo info;
        char asked[64];
        if (poll(watched, 2, -1) < 0)
            continue;
        if (watched[0].revents && read(signals, &info, sizeof info) > 0 && info.ssi_signo == SIGTERM)
            (void)!write(life, &(char){SIGTERM}, 1); /* who tells the whole tree to end tells us, too */
        if (watched[1].revents) {
            ssize_t length = read(0, asked, sizeof asked);
            if (length > 0)
                (void)!write(life, asked, length); /* full: there are 64 KiB that the container has not read */
            else
                watched[1].fd = -1;
        }
    }
    return WIFEXITED(how) ? WEXITSTATUS(how) : 128 + WTERMSIG(how);
}

/* The program's exit code, if init.c tells of a plain exit and nothing else; -1. */
static int plain_exit(void) {
    char told[80] = "";
    int code = -1, end = 0, fd = open(joined(box, "/status"), O_RDONLY | O_CLOEXEC);
    if (read(fd, told, sizeof told - 1) > 0) /* no error: shim.py finds out */
        sscanf(told, "running - 0 0 exited - %d 0 %n", &code, &end);
    return end && !told[end] ? code : -1;
}

int main(int argc, char **argv) {
    struct stat log;
    const char *secrets = getenv("RAY_LAUNCHER_SECRETS");
    errno = EINVAL;
    if (argc < 3 || !secrets)
        give_up("called wrongly");
    umask(022);
    read_plan(argv + 2);
    watch_signals();
    make_box(secrets, argv[1]);
    if (!plan.quiet.count && fstat(2, &log) == 0 && S_ISREG(log.st_mode))
        begin = lseek(2, 0, SEEK_END);
    int code = see_through(start(command()));
    int exited = plain_exit();
    if (exited < 0 || exited == SPECIAL)
        hand_over("client", code);
    _exit(exited);
}
