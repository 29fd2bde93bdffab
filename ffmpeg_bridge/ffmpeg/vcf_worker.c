/*
 * Client of vcfilter's codec worker: starts it, speaks docs/worker.md, shares it among streams.
 *
 * A worker has one socket for all its streams. There is no thread for it: of the threads that wait
 * for something, one reads and hands messages to the streams they are for, the others sleep until
 * it has. The worker reads at all times, so sending cannot deadlock.
 *
 * Copyright (c) 2026 the vcfilter authors. SPDX-License-Identifier: MIT
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* memfd seals, SO_PEERCRED, close_range */
#endif

#include "vcf_worker.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PROTOCOL_VERSION 1
#define DEFAULT_COMMAND "python3 -m vcfilter worker"
#define DEFAULT_TIMEOUT_MS 60000
#define END_MS 2000 /* a worker whose socket is closed ends in milliseconds; then it is killed */
#define HEAD_BYTES 12
#define FORMAT_BYTES 44
#define MESSAGE_MAX (8u * 4096u * 2304u + 8192u)
#define INPUT_BYTES 65536
#define TEXT_BYTES 512
#define SLOTS_MAX 1024
#define AHEAD_MAX 1024
#define FDS_MAX 8

enum Kind {
    HELLO = 1,
    OPEN_DECODER,
    OPEN_ENCODER,
    SEND_PACKET,
    SEND_FRAME,
    DRAIN,
    FLUSH,
    RELEASE,
    CLOSE,
    WELCOME = 16,
    OPENED,
    FORMAT,
    MEMORY,
    FRAME,
    PACKET,
    DONE,
    DRAINED,
    RELEASED,
    FAILED,
    ALIVE
};

typedef struct Worker {
    /* guarded by `registry` */
    struct Worker *next;
    int references;
    /* constant */
    char *command, *path;
    pid_t host; /* a process that the host forks gets workers of its own */
    /* guarded by `sending` */
    pthread_mutex_t sending;
    /* guarded by `lock` */
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int tried, joined, welcome; /* to start it; a warm one; it has said who it is */
    int status;               /* negative once it cannot be used */
    char message[TEXT_BYTES]; /* why */
    pid_t pid;                /* 0: not started here, or already reaped */
    int fd;
    uint32_t last_stream;
    VcfStream *streams;
    int64_t heard; /* when something came last */
    int reading;   /* a thread waits at the socket; what follows is its own */
    uint8_t *input;
    size_t input_size, input_capacity;
    int fds[FDS_MAX];
    int fd_count;
} Worker;

/* What the worker gave out and nobody received yet: a frame, a packet or an error. */
typedef struct Output {
    struct Output *next;
    int status; /* VCF_OK, or the error */
    int slot;   /* of a frame; -1 otherwise */
    uint32_t inputs; /* how many packets or frames it stands for */
    int64_t pts, duration;
    int key;
    VcfFormat format; /* of a frame */
    size_t size;
    uint8_t data[]; /* a packet, or the error's text with its final zero */
} Output;

struct VcfStream {
    VcfStream *next;
    Worker *worker;
    uint32_t id;
    int encoder, opened, timeout_ms;
    int status; /* negative once the stream cannot be used */
    char message[TEXT_BYTES];
    uint8_t *extradata;
    size_t extradata_size;
    int format_known, coming_known;
    VcfFormat format, coming; /* of the frame received last; of the next one to come */

    uint32_t epoch; /* how often it was flushed: answers from before are dropped */
    int64_t outstanding, unanswered; /* what was sent and has not come out; was not looked at */
    int64_t ahead;                   /* how many may be outstanding before one is given out */
    int draining, drained;
    Output *first, **last, *held; /* held: what the caller looks at */
    int64_t queued;

    uint8_t *memory;
    size_t memory_size, slot_size;
    uint32_t offset[3], row[3];
    int slots, free_count;
    int free[SLOTS_MAX]; /* an encoder's */
};

static pthread_mutex_t registry = PTHREAD_MUTEX_INITIALIZER;
static Worker *workers;
static __thread char open_failure[TEXT_BYTES];

/* --- small things ---------------------------------------------------------------------------- */

static int64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static void sleep_ms(int ms)
{
    struct timespec t = {ms / 1000, ms % 1000 * 1000000L};
    nanosleep(&t, NULL);
}

static uint32_t get32(const uint8_t *p)
{
    return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static int64_t get64(const uint8_t *p)
{
    return (int64_t)(get32(p) | (uint64_t)get32(p + 4) << 32);
}

static uint8_t *put32(uint8_t *p, uint32_t value)
{
    for (int i = 0; i < 4; i++)
        *p++ = (uint8_t)(value >> 8 * i);
    return p;
}

static uint8_t *put64(uint8_t *p, int64_t value)
{
    return put32(put32(p, (uint32_t)value), (uint32_t)((uint64_t)value >> 32));
}

static int complain(VcfStream *s, int status, const char *text)
{
    if (text != s->message)
        snprintf(s->message, sizeof(s->message), "%s", text);
    return status;
}

/* --- the worker's process -------------------------------------------------------------------- */

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

/* Marks the worker as unusable. Its lock is held. */
static void fail(Worker *w, int status, const char *format, ...)
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
static void fail_ended(Worker *w)
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
        fail(w, VCF_ABSENT, "the codec worker at %.200s %s before it answered: start it anew",
             w->path, how);
    else if (early)
        fail(w, VCF_ABSENT,
             "the codec worker (%.200s) %s before it answered: install vcfilter for that Python, "
             "or set VCFILTER_WORKER to the command that starts it",
             w->command, how);
    else
        fail(w, VCF_DIED, "the codec worker %s: open the file again, and see what it wrote to "
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

static void launch(Worker *w)
{
    int pair[2];
    sigset_t all, before;
    size_t size = strlen(w->command) + 6;
    char *script = malloc(size);
    if (!script) {
        fail(w, VCF_MEMORY, "out of memory");
        return;
    }
    snprintf(script, size, "exec %s", w->command);
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0) {
        fail(w, VCF_ABSENT, "no socket for the codec worker: %s", strerror(errno));
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
        fail(w, VCF_ABSENT, "no process for the codec worker: %s", strerror(errno));
    }
}

/* Joins a worker that is kept warm; 0 if there is none of this user. */
static int join(Worker *w)
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

/* --- messages -------------------------------------------------------------------------------- */

/* Sends a message of three parts. Neither lock is held; failures show in w->status. */
static void send_message(Worker *w, int timeout_ms, enum Kind kind, uint32_t stream,
                         const uint8_t *head, size_t head_size, const void *body, size_t size)
{
    uint8_t start[HEAD_BYTES];
    struct iovec parts[3] = {{start, sizeof(start)}, {(void *)head, head_size},
                             {(void *)body, size}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 3};
    int64_t deadline = now_ms() + timeout_ms;
    int error = 0;
    put32(put32(put32(start, (uint32_t)(head_size + size)), kind), stream);
    pthread_mutex_lock(&w->sending);
    for (;;) {
        ssize_t sent = sendmsg(w->fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent >= 0) {
            while (message.msg_iovlen && (size_t)sent >= message.msg_iov->iov_len) {
                sent -= (ssize_t)message.msg_iov->iov_len;
                message.msg_iov++;
                message.msg_iovlen--;
            }
            if (!message.msg_iovlen)
                break;
            message.msg_iov->iov_base = (uint8_t *)message.msg_iov->iov_base + sent;
            message.msg_iov->iov_len -= (size_t)sent;
        } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
            struct pollfd ready = {.fd = w->fd, .events = POLLOUT};
            int64_t left = deadline - now_ms();
            if (left <= 0 || (poll(&ready, 1, (int)left) == 0)) {
                error = ETIMEDOUT;
                break;
            }
        } else if (errno != EINTR) {
            error = errno; /* the connection ended: reading tells how */
            break;
        }
    }
    pthread_mutex_unlock(&w->sending);
    if (error == ETIMEDOUT) {
        pthread_mutex_lock(&w->lock);
        fail(w, VCF_TIMEOUT, "the codec worker took nothing for %d ms: it hangs", timeout_ms);
        pthread_mutex_unlock(&w->lock);
    }
}

static void release_slot(VcfStream *s, int slot)
{
    uint8_t body[4];
    put32(body, (uint32_t)slot);
    send_message(s->worker, s->timeout_ms, RELEASE, s->id, body, sizeof(body), NULL, 0);
}

static void append(VcfStream *s, Output *output)
{
    output->next = NULL;
    *s->last = output;
    s->last = &output->next;
    s->queued++;
}

static Output *new_output(int status, size_t size)
{
    Output *output = calloc(1, sizeof(*output) + size);
    if (output) {
        output->status = status;
        output->slot = -1;
        output->inputs = 1;
        output->size = size;
    }
    return output;
}

static int read_format(VcfFormat *format, const uint8_t *p)
{
    int *field[] = {&format->width, &format->height, &format->bit_depth, &format->sar_num,
                    &format->sar_den, &format->color_primaries, &format->color_trc,
                    &format->color_space, &format->color_range, &format->chroma_location,
                    &format->rotation};
    for (int i = 0; i < 11; i++)
        *field[i] = (int)get32(p + 4 * i);
    return format->width >= 16 && format->width <= 4096 && format->height >= 16 &&
           format->height <= 4096 && (format->bit_depth == 8 || format->bit_depth == 10);
}

static void write_format(uint8_t *p, const VcfFormat *format)
{
    const int field[] = {format->width, format->height, format->bit_depth, format->sar_num,
                         format->sar_den, format->color_primaries, format->color_trc,
                         format->color_space, format->color_range, format->chroma_location,
                         format->rotation};
    for (int i = 0; i < 11; i++)
        p = put32(p, (uint32_t)field[i]);
}

/* Bytes per row and rows of a plane. */
static void plane_size(const VcfFormat *format, int plane, size_t *bytes, size_t *rows)
{
    int half = plane > 0;
    *bytes = (size_t)((format->width + half) >> half) * (format->bit_depth > 8 ? 2 : 1);
    *rows = (size_t)((format->height + half) >> half);
}

/* Maps shared memory, after a look at whether it holds what it should. 0 if it does not. */
static int map_memory(VcfStream *s, const uint8_t *body, int fd)
{
    struct stat found;
    uint64_t size;
    int seals = fcntl(fd, F_GET_SEALS);
    uint32_t count = get32(body);
    s->slot_size = get32(body + 4);
    size = (uint64_t)count * s->slot_size;
    if (s->memory || !s->coming_known || !count || count > SLOTS_MAX || fstat(fd, &found) < 0 ||
        seals < 0 || !(seals & F_SEAL_SHRINK) || size > (uint64_t)found.st_size)
        return 0;
    for (int i = 0; i < 3; i++) {
        size_t bytes, rows;
        plane_size(&s->coming, i, &bytes, &rows);
        s->offset[i] = get32(body + 8 + 8 * i);
        s->row[i] = get32(body + 12 + 8 * i);
        if (s->row[i] < bytes || s->row[i] > INT32_MAX ||
            s->offset[i] + (uint64_t)s->row[i] * rows > s->slot_size)
            return 0;
    }
    s->memory_size = (size_t)size;
    s->memory = mmap(NULL, s->memory_size, s->encoder ? PROT_READ | PROT_WRITE : PROT_READ,
                     MAP_SHARED, fd, 0);
    if (s->memory == MAP_FAILED) {
        s->memory = NULL;
        return 0;
    }
    s->slots = (int)count;
    if (s->encoder)
        for (int i = s->slots; i-- > 0;)
            s->free[s->free_count++] = i;
    return 1;
}

static int copy_text(char *to, const uint8_t *text, size_t size)
{
    size = size < TEXT_BYTES ? size : TEXT_BYTES - 1;
    memcpy(to, text, size);
    to[size] = 0;
    return 1;
}

/* Takes one message for a stream; 0 if it is nonsense. The worker's lock is held.
 * `stale` collects the slot of a frame that nobody wants any more. */
static int accept_message(VcfStream *s, uint32_t kind, const uint8_t *body, size_t size, int *stale)
{
    Output *output;
    int status;
    VcfFormat format;
    switch (kind) {
    case OPENED:
        if (s->opened || size < 4 || (s->encoder && !s->memory))
            return 0;
        s->opened = 1;
        s->ahead = get32(body);
        if (s->ahead > AHEAD_MAX)
            return 0;
        if (size > 4 && s->encoder) {
            s->extradata = malloc(size - 4);
            if (!s->extradata)
                s->status = complain(s, VCF_MEMORY, "out of memory");
            else
                memcpy(s->extradata, body + 4, s->extradata_size = size - 4);
        }
        return 1;
    case FORMAT:
        if (s->encoder || size != FORMAT_BYTES || !read_format(&format, body) ||
            (s->coming_known &&
             (format.width != s->coming.width || format.height != s->coming.height ||
              format.bit_depth != s->coming.bit_depth)))
            return 0;
        s->coming = format;
        s->coming_known = 1;
        return 1;
    case FRAME:
        if (s->encoder || size != 25 || !s->memory || get32(body + 4) >= (uint32_t)s->slots)
            return 0;
        if (get32(body) != s->epoch) {
            *stale = (int)get32(body + 4);
            return 1;
        }
        if (s->queued >= s->outstanding)
            return 0; /* more came out than went in */
        if (!(output = new_output(VCF_OK, 0)))
            break;
        output->slot = (int)get32(body + 4);
        output->pts = get64(body + 8);
        output->duration = get64(body + 16);
        output->key = body[24];
        output->format = s->coming;
        append(s, output);
        return 1;
    case PACKET:
        if (!s->encoder || size < 17 || s->queued >= s->outstanding)
            return 0;
        if (!(output = new_output(VCF_OK, size - 17)))
            break;
        output->pts = get64(body);
        output->duration = get64(body + 8);
        output->key = body[16];
        memcpy(output->data, body + 17, size - 17);
        append(s, output);
        return 1;
    case DONE:
        if (size < 16)
            return 0;
        if (get32(body) != s->epoch)
            return 1;
        status = (int)get32(body + 12);
        if (s->unanswered < 1 || status > 0 || get32(body + 8) > AHEAD_MAX)
            return 0;
        s->unanswered--;
        s->ahead = get32(body + 8);
        if (status == VCF_OK)
            return 1;
        if (s->queued >= s->outstanding || get32(body + 4) > s->outstanding)
            return 0;
        if (!(output = new_output(status, TEXT_BYTES)))
            break;
        output->inputs = get32(body + 4);
        copy_text((char *)output->data, body + 16, size - 16);
        append(s, output);
        return 1;
    case DRAINED:
        if (size != 4)
            return 0;
        if (get32(body) == s->epoch)
            s->drained = 1;
        return 1;
    case RELEASED:
        if (!s->encoder || size != 4 || get32(body) >= (uint32_t)s->slots ||
            s->free_count >= s->slots)
            return 0;
        s->free[s->free_count++] = (int)get32(body);
        return 1;
    case FAILED:
        if (size < 4 || (int)get32(body) >= 0)
            return 0;
        s->status = (int)get32(body);
        return copy_text(s->message, body + 4, size - 4);
    default:
        return 0;
    }
    s->status = complain(s, VCF_MEMORY, "out of memory");
    return 1;
}

static void drop_fds(Worker *w, int count)
{
    for (int i = 0; i < count; i++)
        close(w->fds[i]);
    w->fd_count -= count;
    memmove(w->fds, w->fds + count, (size_t)w->fd_count * sizeof(*w->fds));
}

/* Takes one message; 0 if it is nonsense. The worker's lock is held. */
static int dispatch(Worker *w, uint32_t kind, uint32_t id, const uint8_t *body, size_t size,
                    VcfStream **owner, int *stale)
{
    int good = 1;
    VcfStream *s = w->streams;
    if (!w->welcome) {
        if (kind != WELCOME || size < 8 || memcmp(body, "VCFW", 4))
            return 0;
        if (get32(body + 4) != PROTOCOL_VERSION) {
            char name[64] = "";
            snprintf(name, sizeof(name), "%.*s", (int)(size - 8 < 60 ? size - 8 : 60), body + 8);
            fail(w, VCF_PROTOCOL, "the codec worker (%s) speaks version %u of the protocol, this "
                 "program version %d: install vcfilter and the plugin from one release",
                 name, (unsigned)get32(body + 4), PROTOCOL_VERSION);
        }
        w->welcome = 1;
        return 1;
    }
    if (kind == ALIVE)
        return size == 0;
    while (s && s->id != id)
        s = s->next;
    if (kind == MEMORY) {
        if (size != 32 || !w->fd_count)
            return 0;
        good = !s || map_memory(s, body, w->fds[0]);
        drop_fds(w, 1);
        return good;
    }
    *owner = s;
    return !s || accept_message(s, kind, body, size, stale); /* closed streams are still answered */
}

/* Takes the complete messages of the input. The lock is held, and let go to release slots. */
static void parse(Worker *w)
{
    size_t at = 0;
    while (w->status >= 0 && w->input_size - at >= HEAD_BYTES) {
        const uint8_t *head = w->input + at;
        uint32_t size = get32(head), kind = get32(head + 4), id = get32(head + 8);
        VcfStream *owner = NULL;
        int stale = -1;
        if (size > MESSAGE_MAX) {
            fail(w, VCF_PROTOCOL, "the codec worker talks nonsense: is it one of vcfilter?");
            return;
        }
        if (w->input_size - at - HEAD_BYTES < size)
            break;
        if (!dispatch(w, kind, id, head + HEAD_BYTES, size, &owner, &stale)) {
            fail(w, VCF_PROTOCOL, "the codec worker talks nonsense (message %u of %u bytes): is "
                 "it one of vcfilter?", (unsigned)kind, (unsigned)size);
            return;
        }
        at += HEAD_BYTES + size;
        if (stale >= 0) {
            uint8_t body[4];
            int timeout_ms = owner->timeout_ms;
            put32(body, (uint32_t)stale);
            pthread_mutex_unlock(&w->lock);
            send_message(w, timeout_ms, RELEASE, id, body, sizeof(body), NULL, 0);
            pthread_mutex_lock(&w->lock);
        }
    }
    if (at) {
        w->input_size -= at;
        memmove(w->input, w->input + at, w->input_size);
    }
    if (!w->input_size && w->input_capacity > 16 * INPUT_BYTES) { /* a large packet was in it */
        free(w->input);
        w->input = NULL;
        w->input_capacity = 0;
    }
}

/* Reads what has come, waiting for it until a deadline. The lock is held, and let go meanwhile;
 * timeout_ms is for the error's text. */
static void read_input(Worker *w, int64_t deadline, int timeout_ms)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(FDS_MAX * sizeof(int))];
    } control;
    struct iovec part;
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control,
                             .msg_controllen = sizeof(control)};
    struct pollfd ready = {.fd = w->fd, .events = POLLIN};
    int64_t left = deadline - now_ms();
    ssize_t got;
    int found;

    if (w->input_capacity - w->input_size < INPUT_BYTES) {
        /* Grown by what has come, not by what a head promises. */
        size_t capacity = 2 * w->input_size + 2 * INPUT_BYTES;
        uint8_t *input = realloc(w->input, capacity);
        if (!input) {
            fail(w, VCF_MEMORY, "out of memory");
            return;
        }
        w->input = input;
        w->input_capacity = capacity;
    }
    w->reading = 1;
    pthread_mutex_unlock(&w->lock);
    found = poll(&ready, 1, left < 0 ? 0 : left > INT32_MAX ? INT32_MAX : (int)left);
    part.iov_base = w->input + w->input_size;
    part.iov_len = w->input_capacity - w->input_size;
    got = found > 0 ? recvmsg(w->fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC) : -1;
    if (found <= 0)
        errno = found < 0 ? errno : EAGAIN;
    pthread_mutex_lock(&w->lock);

    if (got > 0) {
        for (struct cmsghdr *c = CMSG_FIRSTHDR(&message); c; c = CMSG_NXTHDR(&message, c)) {
            size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
            if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
                continue;
            for (size_t i = 0; i < count; i++) {
                int fd;
                memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(int));
                if (w->fd_count < FDS_MAX)
                    w->fds[w->fd_count++] = fd;
                else
                    close(fd);
            }
        }
        w->input_size += (size_t)got;
        w->heard = now_ms();
        parse(w);
    } else if (got == 0 || (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR)) {
        fail_ended(w);
    } else if (found == 0 && now_ms() >= deadline) {
        fail(w, VCF_TIMEOUT, "the codec worker gave no sign of life for %d ms: it hangs, and was "
             "given up", timeout_ms);
    }
    w->reading = 0;
    pthread_cond_broadcast(&w->changed);
}

/* Waits for the next news of the worker, whomever they are for. The lock is held. `began` is when
 * the caller began to wait for what it needs. */
static void await_news(Worker *w, int64_t began, int timeout_ms)
{
    int64_t deadline = (began > w->heard ? began : w->heard) + timeout_ms;
    if (w->reading) {
        struct timespec until = {(time_t)(deadline / 1000), (long)(deadline % 1000) * 1000000L};
        if (pthread_cond_timedwait(&w->changed, &w->lock, &until) == ETIMEDOUT &&
            (began > w->heard ? began : w->heard) + timeout_ms <= now_ms())
            fail(w, VCF_TIMEOUT, "the codec worker gave no sign of life for %d ms: it hangs, and "
                 "was given up", timeout_ms);
    } else {
        read_input(w, deadline, timeout_ms);
    }
}

/* --- workers and their streams --------------------------------------------------------------- */

static Worker *new_worker(const char *command, const char *path)
{
    pthread_condattr_t clock;
    Worker *w = calloc(1, sizeof(*w));
    if (!w)
        return NULL;
    w->fd = -1;
    w->host = getpid();
    w->references = 1;
    w->command = strdup(command);
    w->path = path ? strdup(path) : NULL;
    pthread_mutex_init(&w->lock, NULL);
    pthread_mutex_init(&w->sending, NULL);
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_cond_init(&w->changed, &clock);
    pthread_condattr_destroy(&clock);
    if (!w->command || (path && !w->path)) {
        w->status = VCF_MEMORY;
        strcpy(w->message, "out of memory");
    }
    return w;
}

static void free_worker(Worker *w)
{
    int status;
    if (w->fd >= 0)
        close(w->fd);
    if (!reap(w, END_MS, &status))
        kill_process(w);
    drop_fds(w, w->fd_count);
    pthread_cond_destroy(&w->changed);
    pthread_mutex_destroy(&w->sending);
    pthread_mutex_destroy(&w->lock);
    free(w->input);
    free(w->command);
    free(w->path);
    free(w);
}

/* The registry's lock is held. */
static void unlist(Worker *w)
{
    for (Worker **place = &workers; *place; place = &(*place)->next)
        if (*place == w) {
            *place = w->next;
            return;
        }
}

static int same(const char *a, const char *b)
{
    return a && b ? !strcmp(a, b) : a == b;
}

/* Gives a reference back; 1 if the worker ended with it. */
static int release_worker(Worker *w)
{
    int last;
    pthread_mutex_lock(&registry);
    last = --w->references == 0;
    if (last)
        unlist(w);
    pthread_mutex_unlock(&registry);
    if (last)
        free_worker(w);
    return last;
}

/* Connects a new worker and learns its version. The lock is held. */
static void start(Worker *w, int timeout_ms)
{
    uint8_t hello[8] = "VCFW";
    int64_t began = now_ms();
    w->tried = 1;
    if (w->status < 0)
        return;
    w->joined = w->path && join(w);
    if (!w->joined)
        launch(w);
    if (w->status < 0)
        return;
    put32(hello + 4, PROTOCOL_VERSION);
    pthread_mutex_unlock(&w->lock);
    send_message(w, timeout_ms, HELLO, 0, hello, sizeof(hello), NULL, 0);
    pthread_mutex_lock(&w->lock);
    while (w->status >= 0 && !w->welcome)
        await_news(w, began, timeout_ms);
}

/* A worker that runs, with its lock held; or one that does not, whose status says why. */
static Worker *acquire_worker(const char *command, const char *path, int timeout_ms)
{
    for (;;) {
        Worker *w;
        int found;
        pthread_mutex_lock(&registry);
        for (w = workers; w; w = w->next)
            if (w->host == getpid() && same(w->command, command) && same(w->path, path))
                break;
        found = w != NULL;
        if (found) {
            w->references++;
        } else if ((w = new_worker(command, path))) {
            w->next = workers;
            workers = w;
        }
        pthread_mutex_unlock(&registry);
        if (!w)
            return NULL;
        pthread_mutex_lock(&w->lock);
        if (!w->tried)
            start(w, timeout_ms);
        else
            while (w->status >= 0 && !w->welcome) /* another thread starts it */
                await_news(w, now_ms(), timeout_ms);
        if (w->status < 0) {
            pthread_mutex_unlock(&w->lock);
            pthread_mutex_lock(&registry);
            unlist(w); /* the next one to open starts another */
            pthread_mutex_unlock(&registry);
            if (found) {
                release_worker(w);
                continue;
            }
            pthread_mutex_lock(&w->lock);
        }
        return w;
    }
}

/* --- the interface --------------------------------------------------------------------------- */

/* What the caller looked at is his no longer. */
static void let_go(VcfStream *s)
{
    Output *held = s->held;
    s->held = NULL;
    if (held && held->slot >= 0)
        release_slot(s, held->slot);
    free(held);
}

static const char *chosen(const char *option, const char *variable)
{
    const char *found = option ? option : getenv(variable);
    return found && *found ? found : NULL;
}

static int open_stream(VcfStream **stream, const VcfWorkerOptions *options, VcfStream *s,
                       enum Kind kind, const uint8_t *head, size_t head_size, const void *body,
                       size_t size)
{
    VcfWorkerOptions none = {0};
    const char *command, *path;
    int64_t began;
    Worker *w;
    int status;

    if (!s) {
        snprintf(open_failure, sizeof(open_failure), "out of memory");
        return VCF_MEMORY;
    }
    options = options ? options : &none;
    command = chosen(options->command, "VCFILTER_WORKER");
    path = chosen(options->socket, "VCFILTER_WORKER_SOCKET");
    s->last = &s->first;
    s->timeout_ms = options->timeout_ms > 0 ? options->timeout_ms : DEFAULT_TIMEOUT_MS;
    w = s->worker = acquire_worker(command ? command : DEFAULT_COMMAND, path, s->timeout_ms);
    if (!w) {
        free(s->extradata);
        free(s);
        snprintf(open_failure, sizeof(open_failure), "out of memory");
        return VCF_MEMORY;
    }
    if (w->status >= 0) {
        s->id = ++w->last_stream;
        s->next = w->streams;
        w->streams = s;
        pthread_mutex_unlock(&w->lock);
        send_message(w, s->timeout_ms, kind, s->id, head, head_size, body, size);
        pthread_mutex_lock(&w->lock);
        began = now_ms();
        while (!s->opened && s->status >= 0 && w->status >= 0)
            await_news(w, began, s->timeout_ms);
    }
    if (s->status >= 0 && w->status < 0)
        s->status = complain(s, w->status, w->message);
    status = s->status;
    pthread_mutex_unlock(&w->lock);
    if (status < 0) {
        memcpy(open_failure, s->message, sizeof(open_failure));
        vcf_close(&s);
        return status;
    }
    *stream = s;
    return VCF_OK;
}

int vcf_open_decoder(VcfStream **stream, const VcfWorkerOptions *options, const uint8_t *extradata,
                     size_t size)
{
    VcfStream *s = calloc(1, sizeof(*s));
    *stream = NULL;
    if (s && size && !(s->extradata = malloc(size))) {
        free(s);
        s = NULL;
    }
    if (s && size) {
        memcpy(s->extradata, extradata, size);
        s->extradata_size = size;
    }
    return open_stream(stream, options, s, OPEN_DECODER, NULL, 0, extradata, size);
}

int vcf_open_encoder(VcfStream **stream, const VcfWorkerOptions *options, const VcfFormat *format,
                     const char *settings)
{
    uint8_t head[FORMAT_BYTES];
    VcfStream *s;
    *stream = NULL;
    if (format->width < 16 || format->width > 4096 || format->height < 16 ||
        format->height > 4096 || (format->bit_depth != 8 && format->bit_depth != 10)) {
        snprintf(open_failure, sizeof(open_failure),
                 "%dx%d at %d bit cannot be encoded: 16 to 4096 samples a side, 8 or 10 bit",
                 format->width, format->height, format->bit_depth);
        return VCF_OPTION;
    }
    if ((s = calloc(1, sizeof(*s)))) {
        s->encoder = s->format_known = s->coming_known = 1;
        s->format = s->coming = *format;
    }
    write_format(head, format);
    settings = settings ? settings : "";
    return open_stream(stream, options, s, OPEN_ENCODER, head, sizeof(head), settings,
                       strlen(settings));
}

void vcf_close(VcfStream **stream)
{
    VcfStream *s = *stream;
    Worker *w;
    int running;
    *stream = NULL;
    if (!s)
        return;
    w = s->worker;
    pthread_mutex_lock(&w->lock);
    for (VcfStream **place = &w->streams; *place; place = &(*place)->next)
        if (*place == s) {
            *place = s->next;
            break;
        }
    running = s->id && w->status >= 0;
    pthread_mutex_unlock(&w->lock);
    if (running)
        send_message(w, END_MS, CLOSE, s->id, NULL, 0, NULL, 0);
    release_worker(w);
    while (s->first) {
        Output *output = s->first;
        s->first = output->next;
        free(output);
    }
    free(s->held);
    if (s->memory)
        munmap(s->memory, s->memory_size);
    free(s->extradata);
    free(s);
}

int vcf_extradata(VcfStream *s, const uint8_t **data, size_t *size)
{
    *data = s->extradata;
    *size = s->extradata_size;
    return VCF_OK;
}

int vcf_format(VcfStream *s, VcfFormat *format)
{
    int status = VCF_OK;
    pthread_mutex_lock(&s->worker->lock);
    if (s->format_known)
        *format = s->format;
    else if (s->coming_known)
        *format = s->coming;
    else
        status = VCF_AGAIN;
    pthread_mutex_unlock(&s->worker->lock);
    return status;
}

/* Whether what comes next may be given out: enough is outstanding that the worker need not wait
 * for the caller to send more while he looks at it. */
static int ready(const VcfStream *s)
{
    return s->draining || s->outstanding >= s->ahead;
}

/* Whether nothing works any more. The lock is held. */
static int broken(VcfStream *s)
{
    if (s->status >= 0 && s->worker->status < 0)
        s->status = complain(s, s->worker->status, s->worker->message);
    return s->status;
}

/* Whether something may be sent; if so it is counted. The lock is held. */
static int may_send(VcfStream *s, int encoder, int drains)
{
    if (s->encoder != encoder)
        return complain(s, VCF_OPTION, encoder ? "a decoder takes packets, not frames"
                                               : "an encoder takes frames, not packets");
    if (broken(s) < 0)
        return s->status;
    if (s->draining || (s->first && s->first->status < 0) ||
        (ready(s) && (s->first || s->unanswered)))
        return VCF_AGAIN;
    s->draining = drains;
    s->outstanding += !drains;
    s->unanswered++;
    return VCF_OK;
}

/* Sends what may_send allowed; the lock is held, and let go. */
static int send_allowed(VcfStream *s, enum Kind kind, const uint8_t *head, size_t head_size,
                        const void *body, size_t size)
{
    int status;
    pthread_mutex_unlock(&s->worker->lock);
    send_message(s->worker, s->timeout_ms, kind, s->id, head, head_size, body, size);
    pthread_mutex_lock(&s->worker->lock);
    status = broken(s);
    pthread_mutex_unlock(&s->worker->lock);
    return status;
}

int vcf_send_packet(VcfStream *s, const VcfPacket *packet)
{
    uint8_t head[17];
    int status;
    let_go(s);
    if (packet && packet->size > MESSAGE_MAX - sizeof(head))
        return complain(s, VCF_INVALID, "a packet is larger than any can be: left out");
    pthread_mutex_lock(&s->worker->lock);
    if ((status = may_send(s, 0, !packet)) != VCF_OK) {
        pthread_mutex_unlock(&s->worker->lock);
        return status;
    }
    if (!packet)
        return send_allowed(s, DRAIN, NULL, 0, NULL, 0);
    *put64(put64(head, packet->pts), packet->duration) = packet->key != 0;
    return send_allowed(s, SEND_PACKET, head, sizeof(head), packet->data, packet->size);
}

int vcf_send_frame(VcfStream *s, const VcfFrame *frame)
{
    Worker *w = s->worker;
    uint8_t body[20], *slot;
    int64_t began = now_ms();
    int number, status;
    let_go(s);
    pthread_mutex_lock(&w->lock);
    if ((status = may_send(s, 1, !frame)) != VCF_OK) {
        pthread_mutex_unlock(&w->lock);
        return status;
    }
    if (!frame)
        return send_allowed(s, DRAIN, NULL, 0, NULL, 0);
    while (!s->free_count && broken(s) >= 0)
        await_news(w, began, s->timeout_ms);
    if (broken(s) < 0) {
        pthread_mutex_unlock(&w->lock);
        return s->status;
    }
    number = s->free[--s->free_count];
    pthread_mutex_unlock(&w->lock);

    slot = s->memory + (size_t)number * s->slot_size;
    for (int i = 0; i < 3; i++) {
        size_t bytes, rows;
        plane_size(&s->format, i, &bytes, &rows);
        for (size_t y = 0; y < rows; y++)
            memcpy(slot + s->offset[i] + y * s->row[i],
                   frame->data[i] + (ptrdiff_t)y * frame->linesize[i], bytes);
    }
    put64(put64(put32(body, (uint32_t)number), frame->pts), frame->duration);
    pthread_mutex_lock(&w->lock);
    return send_allowed(s, SEND_FRAME, body, sizeof(body), NULL, 0);
}

/* The next output, waited for if it must come. */
static int receive(VcfStream *s, int encoder)
{
    Worker *w = s->worker;
    int64_t began = now_ms();
    Output *output;
    int status;
    let_go(s);
    if (s->encoder != encoder)
        return complain(s, VCF_OPTION, encoder ? "a decoder gives frames, not packets"
                                               : "an encoder gives packets, not frames");
    pthread_mutex_lock(&w->lock);
    for (;;) {
        output = s->first;
        if (output && (output->status < 0 || ready(s))) {
            s->first = output->next;
            if (!s->first)
                s->last = &s->first;
            s->queued--;
            s->outstanding -= output->inputs;
            status = output->status;
            break;
        }
        output = NULL;
        if ((status = broken(s)) < 0)
            break;
        if (s->draining ? s->drained : !ready(s) || !s->unanswered) {
            status = s->draining ? VCF_END : VCF_AGAIN;
            if (s->draining) {
                s->draining = s->drained = 0;
                s->outstanding = 0;
            }
            break;
        }
        await_news(w, began, s->timeout_ms);
    }
    pthread_mutex_unlock(&w->lock);
    if (status < 0 && output) {
        complain(s, status, (const char *)output->data);
        free(output);
    } else if (status == VCF_OK) {
        s->held = output;
    }
    return status;
}

int vcf_receive_frame(VcfStream *s, VcfFrame *frame)
{
    int status = receive(s, 0);
    if (status != VCF_OK)
        return status;
    s->format = s->held->format;
    s->format_known = 1;
    frame->pts = s->held->pts;
    frame->duration = s->held->duration;
    frame->key = s->held->key;
    for (int i = 0; i < 3; i++) {
        frame->data[i] = s->memory + (size_t)s->held->slot * s->slot_size + s->offset[i];
        frame->linesize[i] = (int)s->row[i];
    }
    return VCF_OK;
}

int vcf_receive_packet(VcfStream *s, VcfPacket *packet)
{
    int status = receive(s, 1);
    if (status != VCF_OK)
        return status;
    packet->data = s->held->data;
    packet->size = s->held->size;
    packet->pts = s->held->pts;
    packet->duration = s->held->duration;
    packet->key = s->held->key;
    return VCF_OK;
}

int vcf_flush(VcfStream *s)
{
    uint8_t body[4];
    Output *old;
    let_go(s);
    if (s->encoder)
        return complain(s, VCF_OPTION, "an encoder cannot be flushed: drain it");
    pthread_mutex_lock(&s->worker->lock);
    if (broken(s) < 0) {
        pthread_mutex_unlock(&s->worker->lock);
        return s->status;
    }
    old = s->first;
    s->first = NULL;
    s->last = &s->first;
    s->queued = s->outstanding = s->unanswered = 0;
    s->draining = s->drained = 0;
    put32(body, ++s->epoch);
    pthread_mutex_unlock(&s->worker->lock);
    while (old) {
        Output *next = old->next;
        if (old->slot >= 0)
            release_slot(s, old->slot);
        free(old);
        old = next;
    }
    pthread_mutex_lock(&s->worker->lock);
    return send_allowed(s, FLUSH, body, sizeof(body), NULL, 0);
}

const char *vcf_message(const VcfStream *s)
{
    return s ? s->message : open_failure;
}
