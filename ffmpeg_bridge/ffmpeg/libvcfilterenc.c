/*
 * vcfilter encoder wrapper
 *
 * Copyright (c) 2026 the vcfilter authors. SPDX-License-Identifier: MIT
 */

#include "vcf_worker.h"

#include "libavutil/bprint.h"
#include "libavutil/mem.h"
#include "libavutil/opt.h"
#include "libavutil/pixdesc.h"
#include "libavutil/version.h"

#include "avcodec.h"
#include "codec_internal.h"
#include "encode.h"
#include "internal.h"
#include "libvcfilter.h"

typedef struct LibVcfilterEncContext {
    const AVClass *class;
    LibVcfilterWorker worker;
    int qp;
    float quality;
    int scenecut;
    int preset;

    VcfStream *stream;
    AVFrame *frame; /* taken from the caller and not sent yet, if it has a buffer */
    int draining;
} LibVcfilterEncContext;

static const char *const preset_names[] = { "ultrafast", "fast", "medium", "slow", "veryslow" };

/* What the caller set, as the worker's client reads it. */
static void libvcfilter_settings(const AVCodecContext *avctx, AVBPrint *settings)
{
    const LibVcfilterEncContext *vcf = avctx->priv_data;

    av_bprintf(settings, "preset=%s", preset_names[vcf->preset]);
    if (vcf->qp >= 0)
        av_bprintf(settings, ":qp=%d", vcf->qp);
    if (vcf->quality > 0)
        av_bprintf(settings, ":quality=%.9g", vcf->quality);
    if (avctx->bit_rate > 0)
        av_bprintf(settings, ":bitrate=%"PRId64, avctx->bit_rate);
    if (avctx->gop_size >= 0)
        av_bprintf(settings, ":keyint=%d", FFMAX(avctx->gop_size, 1)); /* -g 0: keyframes alone */
    if (vcf->scenecut >= 0)
        av_bprintf(settings, ":scenecut=%d", vcf->scenecut);
    if (avctx->framerate.num > 0 && avctx->framerate.den > 0)
        av_bprintf(settings, ":frame_rate=%d/%d", avctx->framerate.num, avctx->framerate.den);
}

static av_cold int libvcfilter_encode_init(AVCodecContext *avctx)
{
    LibVcfilterEncContext *vcf = avctx->priv_data;
    const VcfWorkerOptions options = ff_libvcfilter_options(&vcf->worker);
    const AVPixFmtDescriptor *desc = av_pix_fmt_desc_get(avctx->pix_fmt);
    const VcfFormat format = {
        .width           = avctx->width,
        .height          = avctx->height,
        .bit_depth       = desc->comp[0].depth,
        .sar_num         = avctx->sample_aspect_ratio.num,
        .sar_den         = FFMAX(avctx->sample_aspect_ratio.den, 1),
        .color_primaries = avctx->color_primaries,
        .color_trc       = avctx->color_trc,
        .color_space     = avctx->colorspace,
        .color_range     = avctx->pix_fmt == AV_PIX_FMT_YUVJ420P ? AVCOL_RANGE_JPEG
                                                                 : avctx->color_range,
        .chroma_location = avctx->chroma_sample_location,
    };
    AVBPrint settings;
    const uint8_t *header;
    size_t size;
    int status;

    vcf->frame = av_frame_alloc();
    if (!vcf->frame)
        return AVERROR(ENOMEM);

    av_bprint_init(&settings, 0, AV_BPRINT_SIZE_AUTOMATIC);
    libvcfilter_settings(avctx, &settings);
    status = vcf_open_encoder(&vcf->stream, &options, &format, settings.str);
    av_bprint_finalize(&settings, NULL);
    if (status < 0)
        return ff_libvcfilter_error(avctx, NULL, status);

    status = vcf_extradata(vcf->stream, &header, &size);
    if (status < 0)
        return ff_libvcfilter_error(avctx, vcf->stream, status);
    avctx->extradata = av_mallocz(size + AV_INPUT_BUFFER_PADDING_SIZE);
    if (!avctx->extradata)
        return AVERROR(ENOMEM);
    memcpy(avctx->extradata, header, size);
    avctx->extradata_size = size;
    return 0;
}

static int libvcfilter_send_frame(AVCodecContext *avctx)
{
    LibVcfilterEncContext *vcf = avctx->priv_data;
    const AVFrame *src = vcf->frame;
    VcfFrame frame = {
        .pts      = src->pts,
#if LIBAVUTIL_VERSION_INT >= AV_VERSION_INT(57, 30, 100)
        .duration = src->duration,
#endif
        .data     = { src->data[0], src->data[1], src->data[2] },
        .linesize = { src->linesize[0], src->linesize[1], src->linesize[2] },
    };
    int status = vcf_send_frame(vcf->stream, &frame);

    if (status == VCF_AGAIN)
        return 0; /* packets have to be received first */
    av_frame_unref(vcf->frame);
    return status < 0 ? ff_libvcfilter_error(avctx, vcf->stream, status) : 0;
}

static int libvcfilter_output_packet(AVCodecContext *avctx, AVPacket *pkt, const VcfPacket *coded)
{
    int ret = ff_get_encode_buffer(avctx, pkt, coded->size, 0);

    if (ret < 0)
        return ret;
    memcpy(pkt->data, coded->data, coded->size);
    pkt->pts      = coded->pts;
    pkt->dts      = coded->pts; /* packets come in display order */
    pkt->duration = coded->duration;
    if (coded->key)
        pkt->flags |= AV_PKT_FLAG_KEY;
    return 0;
}

static int libvcfilter_receive_packet(AVCodecContext *avctx, AVPacket *pkt)
{
    LibVcfilterEncContext *vcf = avctx->priv_data;
    VcfPacket coded;
    int ret, status;

    for (;;) {
        status = vcf_receive_packet(vcf->stream, &coded);
        if (status == VCF_OK)
            return libvcfilter_output_packet(avctx, pkt, &coded);
        if (status == VCF_END)
            return AVERROR_EOF;
        if (status < 0)
            return ff_libvcfilter_error(avctx, vcf->stream, status);
        if (vcf->draining)
            return AVERROR_BUG; /* the client promises packets or VCF_END */

        ret = vcf->frame->buf[0] ? 0 : ff_encode_get_frame(avctx, vcf->frame);
        if (ret == AVERROR_EOF) {
            status = vcf_send_frame(vcf->stream, NULL);
            if (status < 0)
                return ff_libvcfilter_error(avctx, vcf->stream, status);
            vcf->draining = status == VCF_OK;
        } else if (ret < 0 || (ret = libvcfilter_send_frame(avctx)) < 0) {
            return ret;
        }
    }
}

static av_cold int libvcfilter_encode_close(AVCodecContext *avctx)
{
    LibVcfilterEncContext *vcf = avctx->priv_data;

    vcf_close(&vcf->stream);
    av_frame_free(&vcf->frame);
    return 0;
}

#define OFFSET(x) offsetof(LibVcfilterEncContext, x)
#define VE AV_OPT_FLAG_VIDEO_PARAM | AV_OPT_FLAG_ENCODING_PARAM

static const AVOption libvcfilter_encode_options[] = {
    { "qp",        "Quantiser of keyframes, 0 finest; -1: 32 unless -quality or -b:v rules",
                                                OFFSET(qp),       AV_OPT_TYPE_INT,   { .i64 = -1 }, -1, 63, VE },
    { "quality",   "Constant quality: PSNR in dB to aim at, 20 to 60; 0: off",
                                                OFFSET(quality),  AV_OPT_TYPE_FLOAT, { .dbl = 0 },   0, 60, VE },
    { "scenecut",  "Begin a new segment where the scene changes",
                                                OFFSET(scenecut), AV_OPT_TYPE_BOOL,  { .i64 = -1 }, -1,  1, VE },
    { "preset",    "How much is tried per inter frame",
                                                OFFSET(preset),   AV_OPT_TYPE_INT,   { .i64 = 2 },
                                                0, FF_ARRAY_ELEMS(preset_names) - 1, VE, "preset" },
    { "ultrafast", NULL, 0, AV_OPT_TYPE_CONST, { .i64 = 0 }, 0, 0, VE, "preset" },
    { "fast",      NULL, 0, AV_OPT_TYPE_CONST, { .i64 = 1 }, 0, 0, VE, "preset" },
    { "medium",    NULL, 0, AV_OPT_TYPE_CONST, { .i64 = 2 }, 0, 0, VE, "preset" },
    { "slow",      NULL, 0, AV_OPT_TYPE_CONST, { .i64 = 3 }, 0, 0, VE, "preset" },
    { "veryslow",  NULL, 0, AV_OPT_TYPE_CONST, { .i64 = 4 }, 0, 0, VE, "preset" },
    LIBVCFILTER_WORKER_OPTIONS(LibVcfilterEncContext, VE),
    { NULL },
};

static const AVClass libvcfilter_encode_class = {
    .class_name = "libvcfilter encoder",
    .item_name  = av_default_item_name,
    .option     = libvcfilter_encode_options,
    .version    = LIBAVUTIL_VERSION_INT,
};

static const FFCodecDefault libvcfilter_encode_defaults[] = {
    { "b", "0"  },
    { "g", "-1" },
    { NULL },
};

const FFCodec ff_libvcfilter_encoder = {
    .p.name         = "vcfilter",
    .p.long_name    = NULL_IF_CONFIG_SMALL("vcfilter neural video"),
    .p.type         = AVMEDIA_TYPE_VIDEO,
    .p.id           = AV_CODEC_ID_VCFILTER,
    .p.capabilities = AV_CODEC_CAP_DR1 | AV_CODEC_CAP_DELAY,
    .p.pix_fmts     = (const enum AVPixelFormat[]) {
        AV_PIX_FMT_YUV420P, AV_PIX_FMT_YUV420P10LE, AV_PIX_FMT_YUVJ420P, AV_PIX_FMT_NONE
    },
    .p.priv_class   = &libvcfilter_encode_class,
    .p.wrapper_name = "libvcfilter",
    .priv_data_size = sizeof(LibVcfilterEncContext),
    .caps_internal  = FF_CODEC_CAP_INIT_CLEANUP,
    .defaults       = libvcfilter_encode_defaults,
    .init           = libvcfilter_encode_init,
    .close          = libvcfilter_encode_close,
    FF_CODEC_RECEIVE_PACKET_CB(libvcfilter_receive_packet),
};
