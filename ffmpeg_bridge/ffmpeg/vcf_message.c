/*
 * Messages to and from the codec worker, over the one socket that it has for all its streams.
 *
 * There is no thread for it: of the threads that wait for something, one reads and hands messages
 * to the streams they are for, the others sleep until it has. The worker reads at all times, so
 * sending cannot deadlock.
 *
 * Copyright (c) 2026 the vcfilter authors. SPDX-License-Identifier: MIT
 */
#include "vcf_internal.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define INPUT_BYTES 65536

/* Sends a message of three parts. Neither lock is held; failures show in w->status. */
void vcf_send_message(Worker *w, int timeout_ms, enum Kind kind, uint32_t stream,
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
        vcf_fail(w, VCF_TIMEOUT, "the codec worker took nothing for %d ms: it hangs", timeout_ms);
        pthread_mutex_unlock(&w->lock);
    }
}

void vcf_release_slot(VcfStream *s, int slot)
{
    uint8_t body[4];
    put32(body, (uint32_t)slot);
    vcf_send_message(s->worker, s->timeout_ms, RELEASE, s->id, body, sizeof(body), NULL, 0);
}

void vcf_drop_fds(Worker *w, int count)
{
    for (int i = 0; i < count; i++)
        close(w->fds[i]);
    w->fd_count -= count;
    memmove(w->fds, w->fds + count, (size_t)w->fd_count * sizeof(*w->fds));
}

/* Takes one message; 0 if it is not allowed. The worker's lock is held. */
static int dispatch(Worker *w, uint32_t kind, uint32_t id, const uint8_t *body, size_t size,
                    VcfStream **owner, int *stale)
{
    int good = 1;
    VcfStream *s = w->streams;
    if (!w->welcome) {
        if (kind == FAILED && size >= 4) { /* it takes no more clients */
            vcf_fail(w, VCF_ABSENT, "%.*s", (int)(size - 4 < 400 ? size - 4 : 400), body + 4);
            return 1;
        }
        if (kind != WELCOME || size < 8 || memcmp(body, "VCFW", 4))
            return 0;
        if (get32(body + 4) != PROTOCOL_VERSION) {
            char name[64] = "";
            snprintf(name, sizeof(name), "%.*s", (int)(size - 8 < 60 ? size - 8 : 60), body + 8);
            vcf_fail(w, VCF_PROTOCOL, "the codec worker (%s) speaks version %u of the protocol, "
                     "this program version %d: install vcfilter and the plugin from one release",
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
        good = !s || vcf_map_memory(s, body, w->fds[0]);
        vcf_drop_fds(w, 1);
        return good;
    }
    *owner = s;
    /* Closed streams are still answered. */
    return !s || vcf_accept_message(s, kind, body, size, stale);
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
            vcf_fail(w, VCF_PROTOCOL, "the codec worker sent a message of %u bytes, %u are allowed: "
                     "is it one of vcfilter?", (unsigned)size, MESSAGE_MAX);
            return;
        }
        if (w->input_size - at - HEAD_BYTES < size)
            break;
        if (!dispatch(w, kind, id, head + HEAD_BYTES, size, &owner, &stale)) {
            vcf_fail(w, VCF_PROTOCOL, "the codec worker broke the protocol (message %u of %u bytes): "
                     "is it one of vcfilter?", (unsigned)kind, (unsigned)size);
            return;
        }
        at += HEAD_BYTES + size;
        if (stale >= 0) {
            uint8_t body[4];
            int timeout_ms = owner->timeout_ms;
            put32(body, (uint32_t)stale);
            pthread_mutex_unlock(&w->lock);
            vcf_send_message(w, timeout_ms, RELEASE, id, body, sizeof(body), NULL, 0);
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
            vcf_fail(w, VCF_MEMORY, "out of memory");
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
        vcf_fail_ended(w);
    } else if (found == 0 && now_ms() >= deadline) {
        vcf_fail(w, VCF_TIMEOUT, "the codec worker gave no sign of life for %d ms: it hangs, and "
                 "was given up", timeout_ms);
    }
    w->reading = 0;
    pthread_cond_broadcast(&w->changed);
}

/* Waits for the next news of the worker, whomever they are for. The lock is held. `began` is when
 * the caller began to wait for what it needs. */
void vcf_await_news(Worker *w, int64_t began, int timeout_ms)
{
    int64_t deadline = (began > w->heard ? began : w->heard) + timeout_ms;
    if (w->reading) {
        struct timespec until = {(time_t)(deadline / 1000), (long)(deadline % 1000) * 1000000L};
        if (pthread_cond_timedwait(&w->changed, &w->lock, &until) == ETIMEDOUT &&
            (began > w->heard ? began : w->heard) + timeout_ms <= now_ms())
            vcf_fail(w, VCF_TIMEOUT, "the codec worker gave no sign of life for %d ms: it hangs, "
                     "and was given up", timeout_ms);
    } else {
        read_input(w, deadline, timeout_ms);
    }
}
