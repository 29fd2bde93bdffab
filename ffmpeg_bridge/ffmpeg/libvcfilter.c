/*
 * What vcfilter's decoder and encoder wrappers share
 *
 * Copyright (c) 2026 the vcfilter authors. SPDX-License-Identifier: MIT
 */

#include "libavutil/error.h"
#include "libavutil/log.h"
#include "libavutil/macros.h"

#include "libvcfilter.h"

static const struct {
    enum VcfStatus status;
    int av_err;
} vcf_errors[] = {
    { VCF_ABSENT,   AVERROR_EXTERNAL    },
    { VCF_DIED,     AVERROR_EXTERNAL    },
    { VCF_TIMEOUT,  AVERROR(ETIMEDOUT)  },
    { VCF_PROTOCOL, AVERROR_EXTERNAL    },
    { VCF_INVALID,  AVERROR_INVALIDDATA },
    { VCF_OPTION,   AVERROR(EINVAL)     },
    { VCF_MEMORY,   AVERROR(ENOMEM)     },
    { VCF_INTERNAL, AVERROR_EXTERNAL    },
};

VcfWorkerOptions ff_libvcfilter_options(const LibVcfilterWorker *worker)
{
    return (VcfWorkerOptions) {
        .command    = worker->command,
        .socket     = worker->socket,
        .timeout_ms = worker->timeout / 1000,
    };
}

int ff_libvcfilter_error(void *logctx, const VcfStream *stream, int status)
{
    av_log(logctx, AV_LOG_ERROR, "%s\n", vcf_message(stream));
    for (size_t i = 0; i < FF_ARRAY_ELEMS(vcf_errors); i++)
        if (vcf_errors[i].status == status)
            return vcf_errors[i].av_err;
    return AVERROR_UNKNOWN;
}
