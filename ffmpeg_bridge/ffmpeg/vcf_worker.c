/*
 * The interface of vcf_worker.h: streams of frames and packets, coded by a worker process.
 *
 * Copyright (c) 2026 the vcfilter authors. SPDX-License-Identifier: MIT
 */
#include "vcf_internal.h"
#include "vcf_sequence.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define DEFAULT_COMMAND "python3 -m vcfilter worker"
#define DEFAULT_TIMEOUT_MS 60000
#define SETTINGS_MAX 255 /* bytes of a decoder's */

static __thread char open_failure[TEXT_BYTES];

/* Gives back what the caller received last. */
static void let_go(VcfStream *s)
{
    Output *held = s->held;
    s->held = NULL;
    if (held && held->slot >= 0)
        vcf_release_slot(s, held->slot);
    free(held);
}

static const char *chosen(const char *option, const char *variable)
{
    const char *found = option ? option : secure_getenv(variable); /* a setuid host's is not ours */
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
    int status, streams = 0;

    if (!s) {
        snprintf(open_failure, sizeof(open_failure), "out of memory");
        return VCF_MEMORY;
    }
    options = options ? options : &none;
    command = chosen(options->command, "VCFILTER_WORKER");
    path = chosen(options->socket, "VCFILTER_WORKER_SOCKET");
    s->last = &s->first;
    s->timeout_ms = options->timeout_ms > 0 ? options->timeout_ms : DEFAULT_TIMEOUT_MS;
    w = s->worker = vcf_acquire_worker(command ? command : DEFAULT_COMMAND, path, s->timeout_ms);
    if (!w) {
        free(s->extradata);
        free(s);
        snprintf(open_failure, sizeof(open_failure), "out of memory");
        return VCF_MEMORY;
    }
    for (VcfStream *other = w->streams; other; other = other->next)
        streams++;
    if (w->status >= 0 && streams >= STREAMS_MAX) {
        s->status = vcf_complain(s, VCF_OPTION, "as many streams are open as a worker serves: close "
                                                "one, or name another worker");
    } else if (w->status >= 0) {
        s->id = ++w->last_stream;
        s->next = w->streams;
        w->streams = s;
        pthread_mutex_unlock(&w->lock);
        vcf_send_message(w, s->timeout_ms, kind, s->id, head, head_size, body, size);
        pthread_mutex_lock(&w->lock);
        began = now_ms();
        while (!s->opened && s->status >= 0 && w->status >= 0)
            vcf_await_news(w, began, s->timeout_ms);
    }
    if (s->status >= 0 && w->status < 0)
        s->status = vcf_complain(s, w->status, w->message);
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
    return vcf_open_decoder_with(stream, options, extradata, size, NULL);
}

int vcf_open_decoder_with(VcfStream **stream, const VcfWorkerOptions *options,
                          const uint8_t *extradata, size_t size, const char *settings)
{
    const size_t length = settings ? strlen(settings) : 0;
    uint8_t head[4 + SETTINGS_MAX];
    VcfStream *s;
    *stream = NULL;
    if (length > SETTINGS_MAX) {
        snprintf(open_failure, sizeof(open_failure), "settings of a decoder are at most %d bytes",
                 SETTINGS_MAX);
        return VCF_OPTION;
    }
    s = calloc(1, sizeof(*s));
    if (s && size && !(s->extradata = malloc(size))) {
        free(s);
        s = NULL;
    }
    if (s && size) {
        memcpy(s->extradata, extradata, size);
        s->extradata_size = size;
    }
    if (!length) /* any release of the worker takes it */
        return open_stream(stream, options, s, OPEN_DECODER, NULL, 0, extradata, size);
    memcpy(put32(head, (uint32_t)length), settings, length);
    return open_stream(stream, options, s, OPEN_DECODER_WITH, head, 4 + length, extradata, size);
}

int vcf_open_encoder(VcfStream **stream, const VcfWorkerOptions *options, const VcfFormat *format,
                     const char *settings)
{
    uint8_t head[FORMAT_BYTES];
    VcfStream *s;
    *stream = NULL;
    if (!vcf_size_allowed(format)) {
        snprintf(open_failure, sizeof(open_failure),
                 "%dx%d at %d bit cannot be encoded: 16 to 4096 samples a side, at most 4096x2304, "
                 "8 or 10 bit", format->width, format->height, format->bit_depth);
        return VCF_OPTION;
    }
    if ((s = calloc(1, sizeof(*s)))) {
        s->encoder = s->format_known = s->coming_known = 1;
        s->format = s->coming = *format;
    }
    vcf_write_format(head, format);
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
        vcf_send_message(w, END_MS, CLOSE, s->id, NULL, 0, NULL, 0);
    vcf_release_worker(w);
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

/* Whether what comes next may be given out: enough is outstanding that the worker has work
 * while the caller looks at it, or so many bytes that more would not be taken. */
static int ready(const VcfStream *s)
{
    return s->draining || s->outstanding >= s->ahead ||
           s->unanswered_bytes >= UNANSWERED_BYTES_MAX;
}

/* Whether nothing works any more. The lock is held. */
static int broken(VcfStream *s)
{
    if (s->status >= 0 && s->worker->status < 0)
        s->status = vcf_complain(s, s->worker->status, s->worker->message);
    return s->status;
}

/* Whether something may be sent; if so it is counted. The lock is held. */
static int may_send(VcfStream *s, int encoder, int drains, size_t size)
{
    if (s->encoder != encoder)
        return vcf_complain(s, VCF_OPTION, encoder ? "a decoder takes packets, not frames"
                                                   : "an encoder takes frames, not packets");
    if (broken(s) < 0)
        return s->status;
    if (s->draining || (s->first && s->first->status < 0) ||
        (ready(s) && (s->first || s->unanswered)))
        return VCF_AGAIN;
    s->draining = drains;
    s->outstanding += !drains;
    vcf_count_sent(s, size);
    return VCF_OK;
}

/* Sends what may_send allowed; the lock is held, and let go. */
static int send_allowed(VcfStream *s, enum Kind kind, const uint8_t *head, size_t head_size,
                        const void *body, size_t size)
{
    int status;
    pthread_mutex_unlock(&s->worker->lock);
    vcf_send_message(s->worker, s->timeout_ms, kind, s->id, head, head_size, body, size);
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
        return vcf_complain(s, VCF_INVALID, "a packet is larger than any can be: left out");
    pthread_mutex_lock(&s->worker->lock);
    if ((status = may_send(s, 0, !packet, packet ? packet->size : 0)) != VCF_OK) {
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
    uint8_t body[21], *slot;
    int64_t began = now_ms();
    int number, status;
    let_go(s);
    pthread_mutex_lock(&w->lock);
    if ((status = may_send(s, 1, !frame, 0)) != VCF_OK) {
        pthread_mutex_unlock(&w->lock);
        return status;
    }
    if (!frame)
        return send_allowed(s, DRAIN, NULL, 0, NULL, 0);
    while (!s->free_count && broken(s) >= 0)
        vcf_await_news(w, began, s->timeout_ms);
    if (broken(s) < 0) {
        pthread_mutex_unlock(&w->lock);
        return s->status;
    }
    number = s->free[--s->free_count];
    slot = s->memory + (size_t)number * s->slot_size; /* mapped once, and for good */
    pthread_mutex_unlock(&w->lock);

    for (int i = 0; i < 3; i++) {
        size_t bytes, rows;
        vcf_plane_size(&s->format, i, &bytes, &rows);
        for (size_t y = 0; y < rows; y++)
            memcpy(slot + s->offset[i] + y * s->row[i],
                   frame->data[i] + (ptrdiff_t)y * frame->linesize[i], bytes);
    }
    *put64(put64(put32(body, (uint32_t)number), frame->pts), frame->duration) = frame->key != 0;
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
        return vcf_complain(s, VCF_OPTION, encoder ? "a decoder gives frames, not packets"
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
                vcf_forget_sent(s);
            }
            break;
        }
        vcf_await_news(w, began, s->timeout_ms);
    }
    pthread_mutex_unlock(&w->lock);
    if (status < 0 && output) {
        vcf_complain(s, status, (const char *)output->data);
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
    frame->corrupt = s->held->corrupt;
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
        return vcf_complain(s, VCF_OPTION, "an encoder cannot be flushed: drain it");
    pthread_mutex_lock(&s->worker->lock);
    if (broken(s) < 0) {
        pthread_mutex_unlock(&s->worker->lock);
        return s->status;
    }
    old = s->first;
    s->first = NULL;
    s->last = &s->first;
    s->queued = s->outstanding = 0;
    vcf_forget_sent(s);
    s->draining = s->drained = 0;
    put32(body, ++s->epoch);
    pthread_mutex_unlock(&s->worker->lock);
    while (old) {
        Output *next = old->next;
        if (old->slot >= 0)
            vcf_release_slot(s, old->slot);
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
