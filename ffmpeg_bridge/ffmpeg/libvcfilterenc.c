/*
 * vcfilter encoder wrapper
 *
 * Copyright (c) 2026 the vcfilter authors. SPDX-License-Identifier: MIT
 */

#include "vcf_worker.h"

#include "libavutil/avstring.h"
#include "libavutil/bprint.h"
#include "libavutil/dict.h"
#include "libavutil/mastering_display_metadata.h"
#include "libavutil/mem.h"
#include "libavutil/opt.h"
#include "libavutil/pixdesc.h"

#include "avcodec.h"
#include "codec_internal.h"
#include "encode.h"
#include "internal.h"
#include "libvcfilter.h"
#include "libvcfilter_compat.h"

typedef struct LibVcfilterEncContext {
    const AVClass *class;
    LibVcfilterWorker worker;
    char *preset, *tune;
    int crf, qp;
    float quality;
    int scenecut;
    char *structure;
    int layers;
    AVDictionary *params;

    VcfStream *stream;
    AVFrame *frame; /* taken from the caller and not sent yet, if it has a buffer */
    int draining;
} LibVcfilterEncContext;

#define OFFSET(x) offsetof(LibVcfilterEncContext, x)
#define VE AV_OPT_FLAG_VIDEO_PARAM | AV_OPT_FLAG_ENCODING_PARAM

static const AVOption libvcfilter_encode_options[] = {
    /* Down to "vcfilter-params": settings of the encoder, of the same name. Those that are not at
     * their default are handed on as they are; values are checked by the worker. */
    { "preset",   "How much is tried per inter frame: ultrafast veryfast fast medium slow veryslow",
                                               OFFSET(preset),   AV_OPT_TYPE_STRING, { .str = NULL }, 0,  0, VE },
    { "tune",     "What the settings are made for: psnr zerolatency",
                                               OFFSET(tune),     AV_OPT_TYPE_STRING, { .str = NULL }, 0,  0, VE },
    { "crf",      "Constant rate factor, 0 finest; -1: 32 unless -qp, -quality or -b:v is given",
                                               OFFSET(crf),      AV_OPT_TYPE_INT,    { .i64 = -1 },  -1, 63, VE },
    { "qp",       "The same quantiser whatever moves, 0 finest; -1: off",
                                               OFFSET(qp),       AV_OPT_TYPE_INT,    { .i64 = -1 },  -1, 63, VE },
    { "quality",  "Constant quality: PSNR in dB to aim at, 20 to 60; 0: off",
                                               OFFSET(quality),  AV_OPT_TYPE_FLOAT,  { .dbl = 0 },    0, 60, VE },
    { "scenecut", "Begin a new segment where the scene changes",
                                               OFFSET(scenecut), AV_OPT_TYPE_BOOL,   { .i64 = -1 },  -1,  1, VE },
    { "structure", "How frames refer to each other: random-access low-delay intra",
                                               OFFSET(structure), AV_OPT_TYPE_STRING, { .str = NULL }, 0, 0, VE },
    { "layers",   "Quality levels of each frame; -qp and rates are those of the best one",
                                               OFFSET(layers),   AV_OPT_TYPE_INT,    { .i64 = 1 },    1,  8, VE },
    { "vcfilter-params", "Any settings of the encoder: a :-separated list of key=value",
                                               OFFSET(params),   AV_OPT_TYPE_DICT,   { .str = NULL }, 0,  0, VE },
    LIBVCFILTER_WORKER_OPTIONS(LibVcfilterEncContext, VE),
    { NULL },
};

/* Options that all encoders have: name, the value that means "not given", setting. */
#define LIBVCFILTER_COMMON_OPTIONS(X)  \
    X("b",          "0",  "bitrate")   \
    X("maxrate",    "0",  "maxrate")   \
    X("bufsize",    "0",  "bufsize")   \
    X("g",          "-1", "keyint")    \
    X("keyint_min", "-1", "min_keyint")\
    X("bf",         "-1", "bframes")

#define DEFAULT_ROW(name, unset, setting) { name, unset },
#define SETTING_ROW(name, unset, setting) { name, unset, setting },

static const FFCodecDefault libvcfilter_encode_defaults[] = {
    LIBVCFILTER_COMMON_OPTIONS(DEFAULT_ROW)
    { NULL },
};

static const struct {
    const char *name, *unset, *setting;
} libvcfilter_common_options[] = { LIBVCFILTER_COMMON_OPTIONS(SETTING_ROW) };

static void libvcfilter_add_setting(AVBPrint *settings, const char *name, const char *value)
{
    av_bprintf(settings, "%s%s=%s", settings->len ? ":" : "", name, value);
}

/* What the caller set, as the worker's client reads it; of settings given twice the last holds. */
static int libvcfilter_settings(AVCodecContext *avctx, AVBPrint *settings)
{
    LibVcfilterEncContext *vcf = avctx->priv_data;
    const AVDictionaryEntry *entry = NULL;
    uint8_t *value;
    int ret;

    if (avctx->framerate.num > 0 && avctx->framerate.den > 0)
        av_bprintf(settings, "frame_rate=%d/%d", avctx->framerate.num, avctx->framerate.den);
    if (avctx->flags & AV_CODEC_FLAG_CLOSED_GOP)
        libvcfilter_add_setting(settings, "open_gop", "0");
    if (avctx->flags & AV_CODEC_FLAG_LOW_DELAY)
        libvcfilter_add_setting(settings, "structure", "low-delay");
    for (size_t i = 0; i < FF_ARRAY_ELEMS(libvcfilter_common_options); i++) {
        const char *setting = libvcfilter_common_options[i].setting;
        if ((ret = av_opt_get(avctx, libvcfilter_common_options[i].name, 0, &value)) < 0)
            return ret;
        if (strcmp(value, libvcfilter_common_options[i].unset))
            libvcfilter_add_setting(settings, setting, /* -g 0: keyframes alone */
                                    strcmp(setting, "keyint") || strcmp(value, "0") ? (char *)value
                                                                                    : "1");
        av_free(value);
    }
    for (const AVOption *o = libvcfilter_encode_options; o->offset != OFFSET(params); o++) {
        if (av_opt_is_set_to_default(vcf, o))
            continue;
        if ((ret = av_opt_get(vcf, o->name, 0, &value)) < 0)
            return ret;
        libvcfilter_add_setting(settings, o->name, value);
        av_free(value);
    }
    while ((entry = av_dict_get(vcf->params, "", entry, AV_DICT_IGNORE_SUFFIX)))
        libvcfilter_add_setting(settings, entry->key, entry->value);
    return av_bprint_is_complete(settings) ? 0 : AVERROR(ENOMEM);
}

static uint32_t libvcfilter_steps(AVRational value, int per_unit)
{
    const int64_t steps = value.den ? av_rescale(value.num, per_unit, value.den) : 0;

    return av_clip64(steps, 0, UINT32_MAX);
}

/* Static HDR metadata of the source, for the sequence header and for the muxer. */
static int libvcfilter_hdr(AVCodecContext *avctx, VcfFormat *format)
{
    const AVFrameSideData *display =
        libvcfilter_source_side_data(avctx, AV_FRAME_DATA_MASTERING_DISPLAY_METADATA);
    const AVFrameSideData *light =
        libvcfilter_source_side_data(avctx, AV_FRAME_DATA_CONTENT_LIGHT_LEVEL);
    int ret;

    if (display) {
        const AVMasteringDisplayMetadata *from = (const AVMasteringDisplayMetadata *)display->data;
        if (from->has_primaries && from->has_luminance) {
            for (int axis = 0; axis < 2; axis++) {
                for (int i = 0; i < 3; i++)
                    format->primaries[i][axis] =
                        libvcfilter_steps(from->display_primaries[i][axis], 50000);
                format->white_point[axis] = libvcfilter_steps(from->white_point[axis], 50000);
            }
            format->luminance[0] = libvcfilter_steps(from->min_luminance, 10000);
            format->luminance[1] = libvcfilter_steps(from->max_luminance, 10000);
            format->known |= VCF_MASTERING;
        }
        ret = libvcfilter_add_side_data(avctx, AV_PKT_DATA_MASTERING_DISPLAY_METADATA, display);
        if (ret < 0)
            return ret;
    }
    if (light) {
        const AVContentLightMetadata *from = (const AVContentLightMetadata *)light->data;
        format->max_content = FFMIN(from->MaxCLL, 65535);
        format->max_average = FFMIN(from->MaxFALL, 65535);
        format->known |= VCF_CONTENT_LIGHT;
        ret = libvcfilter_add_side_data(avctx, AV_PKT_DATA_CONTENT_LIGHT_LEVEL, light);
        if (ret < 0)
            return ret;
    }
    return 0;
}

static av_cold int libvcfilter_encode_init(AVCodecContext *avctx)
{
    LibVcfilterEncContext *vcf = avctx->priv_data;
    const VcfWorkerOptions options = ff_libvcfilter_options(&vcf->worker);
    const AVPixFmtDescriptor *desc = av_pix_fmt_desc_get(avctx->pix_fmt);
    VcfFormat format = {
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
        .field_order     = avctx->field_order,
    };
    AVBPrint settings;
    const uint8_t *header;
    size_t size;
    int ret, status;

    vcf->frame = av_frame_alloc();
    if (!vcf->frame)
        return AVERROR(ENOMEM);
    ret = libvcfilter_hdr(avctx, &format);
    if (ret < 0)
        return ret;

    av_bprint_init(&settings, 0, AV_BPRINT_SIZE_UNLIMITED);
    ret = libvcfilter_settings(avctx, &settings);
    if (ret < 0) {
        av_bprint_finalize(&settings, NULL);
        return ret;
    }
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
        .duration = libvcfilter_duration(src),
        .key      = src->pict_type == AV_PICTURE_TYPE_I, /* as -force_key_frames asks */
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

static const AVClass libvcfilter_encode_class = {
    .class_name = "libvcfilter encoder",
    .item_name  = av_default_item_name,
    .option     = libvcfilter_encode_options,
    .version    = LIBAVUTIL_VERSION_INT,
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
