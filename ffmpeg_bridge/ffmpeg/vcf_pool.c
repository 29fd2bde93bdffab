/*
 * The codec workers of this process: streams that name the same one share it.
 *
 * Copyright (c) 2026 the vcfilter authors. SPDX-License-Identifier: MIT
 */
#include "vcf_internal.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static pthread_mutex_t registry = PTHREAD_MUTEX_INITIALIZER;
static Worker *workers;

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
    if (w->fd >= 0)
        close(w->fd);
    vcf_end_process(w);
    vcf_drop_fds(w, w->fd_count);
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
int vcf_release_worker(Worker *w)
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
    w->joined = w->path && vcf_join(w);
    if (!w->joined)
        vcf_launch(w);
    if (w->status < 0)
        return;
    if (w->joined && timeout_ms > GREETING_MS)
        timeout_ms = GREETING_MS;
    put32(hello + 4, PROTOCOL_VERSION);
    pthread_mutex_unlock(&w->lock);
    vcf_send_message(w, timeout_ms, HELLO, 0, hello, sizeof(hello), NULL, 0);
    pthread_mutex_lock(&w->lock);
    while (w->status >= 0 && !w->welcome)
        vcf_await_news(w, began, timeout_ms);
}

/* A worker that runs, with its lock held; or one that does not, whose status says why. */
Worker *vcf_acquire_worker(const char *command, const char *path, int timeout_ms)
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
                vcf_await_news(w, now_ms(), timeout_ms);
        if (w->status < 0) {
            pthread_mutex_unlock(&w->lock);
            pthread_mutex_lock(&registry);
            unlist(w); /* the next one to open starts another */
            pthread_mutex_unlock(&registry);
            if (found) {
                vcf_release_worker(w);
                continue;
            }
            pthread_mutex_lock(&w->lock);
        }
        return w;
    }
}
