/*
 * Bitstream filter: packets of a vcfilter stream with their lowest quality levels only
 *
 * Copyright (c) 2026 the vcfilter authors. SPDX-License-Identifier: MIT
 */

#include "libavutil/opt.h"
#include "libavutil/version.h"

#include "bsf.h"
#include "bsf_internal.h"
#include "codec_id.h"
#include "packet.h"
#include "vcf_thin.h"

typedef struct VcfilterThinContext {
    const AVClass *class;
    int layers;
} VcfilterThinContext;

static int vcfilter_thin_filter(AVBSFContext *ctx, AVPacket *pkt)
{
    const VcfilterThinContext *thin = ctx->priv_data;
    int ret = ff_bsf_get_packet_ref(ctx, pkt);

    if (ret >= 0)
        pkt->size = (int)vcf_thin(pkt->data, pkt->size, thin->layers);
    return ret;
}

#define OFFSET(x) offsetof(VcfilterThinContext, x)
#define FLAGS (AV_OPT_FLAG_VIDEO_PARAM | AV_OPT_FLAG_BSF_PARAM)

static const AVOption vcfilter_thin_options[] = {
    { "layers", "Quality levels that stay, the lowest ones", OFFSET(layers),
      AV_OPT_TYPE_INT, { .i64 = 1 }, 1, 8, FLAGS },
    { NULL },
};

static const AVClass vcfilter_thin_class = {
    .class_name = "vcfilter_thin",
    .item_name  = av_default_item_name,
    .option     = vcfilter_thin_options,
    .version    = LIBAVUTIL_VERSION_INT,
};

static const enum AVCodecID vcfilter_thin_codecs[] = { AV_CODEC_ID_VCFILTER, AV_CODEC_ID_NONE };

const FFBitStreamFilter ff_vcfilter_thin_bsf = {
    .p.name         = "vcfilter_thin",
    .p.codec_ids    = vcfilter_thin_codecs,
    .p.priv_class   = &vcfilter_thin_class,
    .priv_data_size = sizeof(VcfilterThinContext),
    .filter         = vcfilter_thin_filter,
};
