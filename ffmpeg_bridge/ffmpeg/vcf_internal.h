/*
 * What the files of the codec worker's client share: a worker, a stream, the doors between them.
 *
 * vcf_worker.c, the interface, stands on vcf_pool.c (workers shared among streams), that on
 * vcf_message.c (messages over a worker's socket), that on vcf_stream.c (what a stream takes from
 * them) and vcf_process.c (the worker's process).
 *
 * Copyright (c) 2026 the vcfilter authors. SPDX-License-Identifier: MIT
 */
#ifndef VCF_INTERNAL_H
#define VCF_INTERNAL_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* memfd seals, SO_PEERCRED, close_range; before any header of the system */
#endif

#include "vcf_worker.h"

#include <pthread.h>
#include <sys/types.h>
#include <time.h>

#define PROTOCOL_VERSION 2
#define GREETING_MS 10000 /* a warm worker answers at once: it has loaded its model */
#define END_MS 2000 /* a worker whose socket is closed ends in milliseconds; then it is killed */
#define HEAD_BYTES 12
#define FORMAT_BYTES 104
#define MESSAGE_MAX (8u * 4096u * 2304u + 8192u)
#define TEXT_BYTES 512
#define SLOTS_MAX 1024
#define STREAMS_MAX 64 /* of one worker; it serves twice as many, docs/reference/worker.md */
#define AHEAD_MAX 1024
#define UNANSWERED_MAX 2048     /* more than AHEAD_MAX and a drain; a power of two */
#define UNANSWERED_BYTES_MAX (128u << 20) /* the worker takes twice as much, docs/reference/worker.md */
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
    OPEN_DECODER_WITH,
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
    /* guarded by the pool's lock */
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

/* What came from the worker and was not received yet: a frame, a packet or an error. */
typedef struct Output {
    struct Output *next;
    int status; /* VCF_OK, or the error */
    int slot;   /* of a frame; -1 otherwise */
    uint32_t inputs; /* how many packets or frames it stands for */
    int64_t pts, duration;
    int key, corrupt;
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
    uint32_t sizes[UNANSWERED_MAX];  /* of what is unanswered, a ring */
    uint32_t oldest;                 /* place of the first one, not reduced to the ring */
    uint64_t unanswered_bytes;
    int draining, drained;
    Output *first, **last, *held; /* held: what the caller looks at */
    int64_t queued;

    uint8_t *memory;
    size_t memory_size, slot_size;
    uint32_t offset[3], row[3];
    int slots, free_count;
    int free[SLOTS_MAX]; /* an encoder's */
};

static inline int64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static inline uint32_t get32(const uint8_t *p)
{
    return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static inline int64_t get64(const uint8_t *p)
{
    return (int64_t)(get32(p) | (uint64_t)get32(p + 4) << 32);
}

static inline uint8_t *put32(uint8_t *p, uint32_t value)
{
    for (int i = 0; i < 4; i++)
        *p++ = (uint8_t)(value >> 8 * i);
    return p;
}

static inline uint8_t *put64(uint8_t *p, int64_t value)
{
    return put32(put32(p, (uint32_t)value), (uint32_t)((uint64_t)value >> 32));
}

/* --- vcf_process.c --------------------------------------------------------------------------- */

/* Starts the worker's command. Its lock is held, as for all four below; failures show in status. */
void vcf_launch(Worker *w);

/* Joins a worker that is kept warm; 0 if there is none of this user. */
int vcf_join(Worker *w);

/* Marks the worker as unusable, ends it, and wakes all who wait. The first reason stays. */
void vcf_fail(Worker *w, int status, const char *format, ...);

/* The socket has ended: marks the worker as unusable and says how its process ended. */
void vcf_fail_ended(Worker *w);

/* Gives the process time to end by itself, then kills it. It is waited for. */
void vcf_end_process(Worker *w);

/* --- vcf_stream.c ---------------------------------------------------------------------------- */

/* Notes a sentence about an error and gives the status back. */
int vcf_complain(VcfStream *s, int status, const char *text);

/* Counts something that is sent and not answered yet; takes the oldest answer into account; forgets
 * all. The lock is held. */
void vcf_count_sent(VcfStream *s, size_t size);
void vcf_count_answer(VcfStream *s);
void vcf_forget_sent(VcfStream *s);

void vcf_write_format(uint8_t *p, const VcfFormat *format);

/* Bytes per row and rows of a plane. */
void vcf_plane_size(const VcfFormat *format, int plane, size_t *bytes, size_t *rows);

/* Maps shared memory, after a look at whether it holds what it should. 0 if it does not. */
int vcf_map_memory(VcfStream *s, const uint8_t *body, int fd);

/* Takes one message for a stream; 0 if it is not allowed. The worker's lock is held.
 * `stale` collects the slot of a frame that is no longer wanted. */
int vcf_accept_message(VcfStream *s, uint32_t kind, const uint8_t *body, size_t size, int *stale);

/* --- vcf_message.c --------------------------------------------------------------------------- */

/* Sends a message of three parts. Neither lock is held; failures show in w->status. */
void vcf_send_message(Worker *w, int timeout_ms, enum Kind kind, uint32_t stream,
                      const uint8_t *head, size_t head_size, const void *body, size_t size);

void vcf_release_slot(VcfStream *s, int slot);

/* Waits for the next news of the worker, whomever they are for. The lock is held, and let go
 * meanwhile. `began` is when the caller began to wait for what it needs. */
void vcf_await_news(Worker *w, int64_t began, int timeout_ms);

/* Closes the first descriptors that came and were not taken. */
void vcf_drop_fds(Worker *w, int count);

/* --- vcf_pool.c ------------------------------------------------------------------------------ */

/* A worker that runs, with its lock held; or one that does not, whose status says why. NULL: out
 * of memory. */
Worker *vcf_acquire_worker(const char *command, const char *path, int timeout_ms);

/* Gives a reference back; 1 if the worker ended with it. */
int vcf_release_worker(Worker *w);

#endif
