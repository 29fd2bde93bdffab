/*
 * What vcfilter's decoder and encoder wrappers share
 *
 * Copyright (c) 2026 the vcfilter authors. SPDX-License-Identifier: MIT
 */
#ifndef AVCODEC_LIBVCFILTER_H
#define AVCODEC_LIBVCFILTER_H

#include <stddef.h>
#include <stdint.h>

#include "libavutil/opt.h"

#include "vcf_worker.h"

/* Options about the worker; a member of both contexts. */
typedef struct LibVcfilterWorker {
    char *command;
    char *socket;
    int64_t timeout; /* microseconds */
} LibVcfilterWorker;

#define LIBVCFILTER_WORKER_OPTIONS(ctx, flags)                                                    \
    { "worker", "Command that starts the codec worker (default: $VCFILTER_WORKER, else "          \
                "python3 -m vcfilter worker)",                                                    \
      offsetof(ctx, worker) + offsetof(LibVcfilterWorker, command), AV_OPT_TYPE_STRING,           \
      { .str = NULL }, 0, 0, flags },                                                             \
    { "worker_socket", "Unix socket of a worker that is kept warm "                               \
                       "(default: $VCFILTER_WORKER_SOCKET)",                                      \
      offsetof(ctx, worker) + offsetof(LibVcfilterWorker, socket), AV_OPT_TYPE_STRING,            \
      { .str = NULL }, 0, 0, flags },                                                             \
    { "worker_timeout", "Longest silence of the worker before it is given up",                    \
      offsetof(ctx, worker) + offsetof(LibVcfilterWorker, timeout), AV_OPT_TYPE_DURATION,         \
      { .i64 = 60000000 }, 1000, INT_MAX * INT64_C(1000), flags }

/* The options as the worker's client takes them. */
VcfWorkerOptions ff_libvcfilter_options(const LibVcfilterWorker *worker);

/* A failed status of the client as AVERROR; its sentence goes to the log of logctx. stream NULL:
 * the open that failed last. */
int ff_libvcfilter_error(void *logctx, const VcfStream *stream, int status);

#endif /* AVCODEC_LIBVCFILTER_H */
