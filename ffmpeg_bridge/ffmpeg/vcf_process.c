/*
 * The codec worker's process: starting it, joining a warm one, ending it, telling how it ended.
 *
 * Copyright (c) 2026 the vcfilter authors. SPDX-License-Identifier: MIT
 */
#include "vcf_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static void sleep_ms(int ms)
{
    struct timespec t = {ms / 1000, ms % 1000 * 1000000L};
    nanosleep(&t, NULL);
}

/* Waits for the process to end, at most `ms`; 1 if it has, and then its status. */
static int reap(Worker *w, int ms, int *status)
{
    int64_t end = now_ms() + ms;
    *status = -1;
    while (w->pid > 0) {
        pid_t found = waitpid(w->pid, status, WNOHANG);
        if (found == w->pid || (found < 0 && errno != EINTR)) /* the host may reap all children */
            w->pid = 0;
        else if (now_ms() >= end)
            return 0;
        else
            sleep_ms(2);
    }
    return 1;
}

static void kill_process(Worker *w)
{
    int status;
    if (w->pid > 0) {
        kill(-w->pid, SIGKILL); /* it leads a group, unless it was not even that far */
        kill(w->pid, SIGKILL);
        reap(w, END_MS, &status);
    }
}

/* Gives the process time to end by itself, then kills it. */
void vcf_end_process(Worker *w)
{
    int status;
    if (!reap(w, END_MS, &status))
        kill_process(w);
}

/* Marks the worker as unusable. Its lock is held. */
void vcf_fail(Worker *w, int status, const char *format, ...)
{
    va_list arguments;
    if (w->status < 0)
        return;
    w->status = status;
    va_start(arguments, format);
    vsnprintf(w->message, sizeof(w->message), format, arguments);
    va_end(arguments);
    if (w->fd >= 0)
        shutdown(w->fd, SHUT_RDWR);
    kill_process(w);
    pthread_cond_broadcast(&w->changed);
}

/* The socket has ended: says how the process did. */
void vcf_fail_ended(Worker *w)
{
    char how[64] = "closed the connection";
    int status, early = !w->welcome;
    if (w->pid > 0 && reap(w, END_MS, &status)) {
        if (status >= 0 && WIFSIGNALED(status))
            snprintf(how, sizeof(how), "was ended by signal %d", WTERMSIG(status));
        else if (status >= 0 && WIFEXITED(status))
            snprintf(how, sizeof(how), "ended with status %d", WEXITSTATUS(status));
    }
    if (early && w->joined)
        vcf_fail(w, VCF_ABSENT, "the codec worker at %.200s %s before it answered: start it anew",
                 w->path, how);
    else if (early)
        vcf_fail(w, VCF_ABSENT,
                 "the codec worker (%.200s) %s before it answered: install vcfilter for that "
                 "Python, or set VCFILTER_WORKER to the command that starts it",
                 w->command, how);
    else
        vcf_fail(w, VCF_DIED, "the codec worker %s: open the file again, and see what it wrote to "
                 "standard error", how);
}

/* In the child: no library calls that are not safe after a fork. */
static void become_worker(int fd, const char *script)
{
    sigset_t none;
    setsid(); /* Ctrl-C is for the host, which may still want its last packets */
    dup2(fd, 0);
    if (dup2(2, 1) < 0) { /* the host's standard output may be a film */
        int nowhere = open("/dev/null", O_WRONLY);
        dup2(nowhere, 1);
        dup2(nowhere, 2);
    }
#ifdef SYS_close_range
    if (syscall(SYS_close_range, 3u, ~0u, 0u) < 0)
#endif
        for (int i = 3; i < 4096; i++)
            close(i);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    execl("/bin/sh", "sh", "-c", script, (char *)NULL);
    _exit(127);
}

/* A descriptor that is above the standard ones and not inherited. */
static int lift(int fd)
{
    int high = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    close(fd);
    return high;
}

void vcf_launch(Worker *w)
{
    int pair[2];
    sigset_t all, before;
    size_t size = strlen(w->command) + 6;
    char *script = malloc(size);
    if (!script) {
        vcf_fail(w, VCF_MEMORY, "out of memory");
        return;
    }
    snprintf(script, size, "exec %s", w->command);
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0) {
        vcf_fail(w, VCF_ABSENT, "no socket for the codec worker: %s", strerror(errno));
        free(script);
        return;
    }
    pair[0] = lift(pair[0]);
    pair[1] = lift(pair[1]);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* no handler of the host's runs in the child */
    w->pid = pair[0] < 0 || pair[1] < 0 ? -1 : fork();
    if (w->pid == 0)
        become_worker(pair[1], script);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    free(script);
    if (pair[1] >= 0)
        close(pair[1]);
    w->fd = pair[0];
    if (w->pid < 0) {
        w->pid = 0;
        vcf_fail(w, VCF_ABSENT, "no process for the codec worker: %s", strerror(errno));
    }
}

/* Joins a worker that is kept warm; 0 if there is none of this user. */
int vcf_join(Worker *w)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct ucred peer = {0};
    socklen_t size = sizeof(peer);
    if (strlen(w->path) >= sizeof(address.sun_path))
        return 0;
    strcpy(address.sun_path, w->path);
    w->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (w->fd >= 0 && connect(w->fd, (struct sockaddr *)&address, sizeof(address)) == 0 &&
        getsockopt(w->fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 && peer.uid == geteuid())
        return 1;
    if (w->fd >= 0)
        close(w->fd);
    w->fd = -1;
    return 0;
}
