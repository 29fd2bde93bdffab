/*
 * vcfilter decoder wrapper
 *
 * Copyright (c) 2026 the vcfilter authors. SPDX-License-Identifier: MIT
 */

#include "vcf_sequence.h"
#include "vcf_thin.h"
#include "vcf_worker.h"

#include "libavutil/display.h"
#include "libavutil/fifo.h"
#include "libavutil/frame.h"
#include "libavutil/imgutils.h"
#include "libavutil/internal.h"
#include "libavutil/mastering_display_metadata.h"
#include "libavutil/opt.h"
#include "libavutil/pixdesc.h"

#include "avcodec.h"
#include "codec_internal.h"
#include "decode.h"
#include "internal.h"
#include "libvcfilter.h"
#include "libvcfilter_compat.h"

#define LAYERS_MAX 8

/* A packet that the worker has; props holds everything but its bytes. */
typedef struct SentPacket {
    int64_t id; /* its pts on the way to the worker: unique and rising, whatever the file says */
    int size;
    AVPacket *props;
} SentPacket;

enum { LOOK_NATURAL, LOOK_SHARP };

typedef struct LibVcfilterDecContext {
    const AVClass *class;
    LibVcfilterWorker worker;
    int layers; /* quality levels that are decoded */

    VcfStream *stream; /* NULL before the first packet */
    AVPacket *pkt;     /* taken from the caller and not sent yet, if it has data */
    AVFifo *sent;      /* SentPacket, in display order */
    int64_t next_id;
    int draining;
    int ended;         /* drained to the last frame: the end is told until a flush */
    enum AVPictureType inter_type; /* what frames are called that are not keyframes */
    int look;          /* an option: one of the looks below */
    int complaint;     /* error about single packets, not told yet */
    int failure;       /* error that ended the stream, for every packet to come */
} LibVcfilterDecContext;

static int libvcfilter_use_format(AVCodecContext *avctx, const VcfFormat *format)
{
    int ret = 0;

    if (avctx->width != format->width || avctx->height != format->height)
        ret = ff_set_dimensions(avctx, format->width, format->height);
    if (ret < 0)
        return ret;
    avctx->pix_fmt = format->bit_depth == 8 ? AV_PIX_FMT_YUV420P : AV_PIX_FMT_YUV420P10LE;
    /* Numbers that this libavutil has no name for become "unspecified". */
    avctx->color_primaries = av_color_primaries_name(format->color_primaries)
                                 ? format->color_primaries : AVCOL_PRI_UNSPECIFIED;
    avctx->color_trc = av_color_transfer_name(format->color_trc) ? format->color_trc
                                                                 : AVCOL_TRC_UNSPECIFIED;
    avctx->colorspace = av_color_space_name(format->color_space) ? format->color_space
                                                                 : AVCOL_SPC_UNSPECIFIED;
    avctx->color_range            = format->color_range;
    avctx->chroma_sample_location = format->chroma_location;
    avctx->field_order            = format->field_order;
    if (format->sar_num)
        ff_set_sar(avctx, (AVRational){ format->sar_num, format->sar_den });
    return 0;
}

/* The worker is started with the first packet, not here: programs open decoders only to probe. */
static av_cold int libvcfilter_decode_init(AVCodecContext *avctx)
{
    LibVcfilterDecContext *vcf = avctx->priv_data;
    VcfSequence sequence;
    enum VcfSequenceStatus status;

    vcf->pkt  = av_packet_alloc();
    vcf->sent = av_fifo_alloc2(16, sizeof(SentPacket), AV_FIFO_FLAG_AUTO_GROW);
    vcf->inter_type = AV_PICTURE_TYPE_B;
    if (!vcf->pkt || !vcf->sent)
        return AVERROR(ENOMEM);

    if (avctx->extradata_size > 0) {
        status = vcf_sequence_read(&sequence, avctx->extradata, avctx->extradata_size);
        if (status == VCF_SEQUENCE_OTHER_VERSION) {
            av_log(avctx, AV_LOG_ERROR,
                   "The stream has bitstream version %d, this decoder reads version %d: "
                   "another release of vcfilter is needed\n",
                   vcf_sequence_version(avctx->extradata, avctx->extradata_size),
                   VCF_SEQUENCE_VERSION);
            return AVERROR_PATCHWELCOME;
        }
        if (status != VCF_SEQUENCE_OK) { /* keyframes bring the header too */
            av_log(avctx, AV_LOG_WARNING, "Damaged extradata, waiting for a keyframe\n");
            return 0;
        }
        /* has_b_frames stays 0: packets stand in display order, and with another value libavformat
         * would take away the pts of those that have only one time stamp. */
        avctx->delay = sequence.reorder;
        av_log(avctx, AV_LOG_VERBOSE,
               "Model %s, %d quality levels, %d reference slots, reach %d, %d frames of delay\n",
               sequence.name, sequence.quality_levels, sequence.slots, sequence.reach,
               sequence.reorder);
        if (sequence.structure == VCF_LOW_DELAY)
            vcf->inter_type = AV_PICTURE_TYPE_P;
        return libvcfilter_use_format(avctx, &sequence.format);
    }
    return 0;
}

static int libvcfilter_open(AVCodecContext *avctx)
{
    LibVcfilterDecContext *vcf = avctx->priv_data;
    const VcfWorkerOptions options = ff_libvcfilter_options(&vcf->worker);
    VcfSequence sequence;
    int intact = avctx->extradata_size > 0 &&
                 vcf_sequence_read(&sequence, avctx->extradata, avctx->extradata_size) ==
                     VCF_SEQUENCE_OK;
    int status = vcf_open_decoder_with(&vcf->stream, &options, intact ? avctx->extradata : NULL,
                                       intact ? avctx->extradata_size : 0,
                                       vcf->look == LOOK_SHARP ? "look=sharp" : NULL);

    if (status < 0)
        return ff_libvcfilter_error(avctx, NULL, status);
    return 0;
}

static void libvcfilter_forget_sent(LibVcfilterDecContext *vcf)
{
    SentPacket sent;

    while (vcf->sent && av_fifo_read(vcf->sent, &sent, 1) >= 0)
        av_packet_free(&sent.props);
}

/* The packet behind a frame. Those before it gave no frame and are forgotten. */
static int libvcfilter_find_sent(LibVcfilterDecContext *vcf, int64_t id, SentPacket *found)
{
    while (av_fifo_read(vcf->sent, found, 1) >= 0) {
        if (found->id == id)
            return 0;
        av_packet_free(&found->props);
        if (found->id > id)
            break;
    }
    found->props = NULL;
    return AVERROR_EXTERNAL;
}

static AVRational libvcfilter_rational(uint32_t steps, int per_unit)
{
    AVRational value;

    av_reduce(&value.num, &value.den, steps, per_unit, INT_MAX);
    return value;
}

/* What the sequence header says and frames carry. What the container says goes first. */
static int libvcfilter_add_side_data_of(AVFrame *frame, const VcfFormat *format)
{
    if ((format->rotation || format->mirrored) &&
        !av_frame_get_side_data(frame, AV_FRAME_DATA_DISPLAYMATRIX)) {
        AVFrameSideData *side_data = av_frame_new_side_data(frame, AV_FRAME_DATA_DISPLAYMATRIX,
                                                            9 * sizeof(int32_t));
        int32_t *matrix;
        if (!side_data)
            return AVERROR(ENOMEM);
        matrix = (int32_t *)side_data->data;
        /* A flip comes last in a matrix, a mirrored picture is rotated after it. */
        av_display_rotation_set(matrix, format->mirrored ? -format->rotation : format->rotation);
        av_display_matrix_flip(matrix, format->mirrored, 0);
    }
    if (format->known & VCF_MASTERING &&
        !av_frame_get_side_data(frame, AV_FRAME_DATA_MASTERING_DISPLAY_METADATA)) {
        AVMasteringDisplayMetadata *to = av_mastering_display_metadata_create_side_data(frame);
        if (!to)
            return AVERROR(ENOMEM);
        for (int axis = 0; axis < 2; axis++) {
            for (int i = 0; i < 3; i++)
                to->display_primaries[i][axis] = av_make_q(format->primaries[i][axis], 50000);
            to->white_point[axis] = av_make_q(format->white_point[axis], 50000);
        }
        to->min_luminance = libvcfilter_rational(format->luminance[0], 10000);
        to->max_luminance = libvcfilter_rational(format->luminance[1], 10000);
        to->has_primaries = to->has_luminance = 1;
    }
    if (format->known & VCF_CONTENT_LIGHT &&
        !av_frame_get_side_data(frame, AV_FRAME_DATA_CONTENT_LIGHT_LEVEL)) {
        AVContentLightMetadata *to = av_content_light_metadata_create_side_data(frame);
        if (!to)
            return AVERROR(ENOMEM);
        to->MaxCLL  = format->max_content;
        to->MaxFALL = format->max_average;
    }
    return 0;
}

static int libvcfilter_output(AVCodecContext *avctx, AVFrame *frame, const VcfFrame *decoded)
{
    LibVcfilterDecContext *vcf = avctx->priv_data;
    const uint8_t *planes[4] = { decoded->data[0], decoded->data[1], decoded->data[2] };
    int linesize[4] = { decoded->linesize[0], decoded->linesize[1], decoded->linesize[2] };
    SentPacket sent;
    VcfFormat format;
    int ret = libvcfilter_find_sent(vcf, decoded->pts, &sent);

    if (ret < 0) {
        av_log(avctx, AV_LOG_ERROR, "The worker gave a frame that belongs to no packet\n");
        return vcf->failure = ret;
    }
    ret = vcf_format(vcf->stream, &format);
    if (ret < 0) {
        vcf->failure = ret = ff_libvcfilter_error(avctx, vcf->stream, ret);
        goto end;
    }
    ret = libvcfilter_use_format(avctx, &format);
    if (ret >= 0)
        ret = ff_get_buffer(avctx, frame, 0);
    if (ret >= 0)
        ret = libvcfilter_copy_props(avctx, frame, sent.props, sent.size);
    if (ret >= 0)
        ret = libvcfilter_add_side_data_of(frame, &format);
    if (ret < 0)
        goto end;

    if (frame->pts == AV_NOPTS_VALUE)
        frame->pts = sent.props->dts; /* display order: they are the same */
    av_image_copy(frame->data, frame->linesize, planes, linesize, avctx->pix_fmt, avctx->width,
                  avctx->height);
    frame->pict_type = decoded->key ? AV_PICTURE_TYPE_I : vcf->inter_type;
    libvcfilter_set_key(frame, decoded->key);
    if (format.field_order > AV_FIELD_PROGRESSIVE)
        libvcfilter_set_interlaced(frame, format.field_order == AV_FIELD_TT ||
                                              format.field_order == AV_FIELD_TB);
    if (decoded->corrupt)
        frame->flags |= AV_FRAME_FLAG_CORRUPT;
end:
    av_packet_free(&sent.props);
    if (ret < 0)
        av_frame_unref(frame);
    return ret;
}

/* Takes the caller's next packet, unless one waits. 0 with empty pkt: it is not wanted. */
static int libvcfilter_take_packet(AVCodecContext *avctx)
{
    LibVcfilterDecContext *vcf = avctx->priv_data;
    int ret;

    if (vcf->pkt->data)
        return 0;
    ret = ff_decode_get_packet(avctx, vcf->pkt);
    if (ret < 0)
        return ret;
    if (!vcf->pkt->data || avctx->skip_frame >= AVDISCARD_ALL ||
        (avctx->skip_frame >= AVDISCARD_NONKEY && !(vcf->pkt->flags & AV_PKT_FLAG_KEY)))
        av_packet_unref(vcf->pkt);
    return 0;
}

static int libvcfilter_send(AVCodecContext *avctx)
{
    LibVcfilterDecContext *vcf = avctx->priv_data;
    const AVPacket *pkt = vcf->pkt;
    const VcfPacket packet = {
        .data     = pkt->data,
        .size     = vcf->layers < LAYERS_MAX ? vcf_thin(pkt->data, pkt->size, vcf->layers)
                                             : (size_t)pkt->size,
        .pts      = vcf->next_id,
        .duration = 0,
        .key      = !!(pkt->flags & AV_PKT_FLAG_KEY),
    };
    SentPacket sent = { .id = vcf->next_id, .size = pkt->size };
    int status = vcf_send_packet(vcf->stream, &packet), ret;

    if (status == VCF_AGAIN)
        return 0; /* frames have to be received first */
    if (status < 0)
        return vcf->failure = ff_libvcfilter_error(avctx, vcf->stream, status);

    vcf->next_id++;
    sent.props = av_packet_alloc();
    ret = sent.props ? av_packet_copy_props(sent.props, pkt) : AVERROR(ENOMEM);
    if (ret >= 0)
        ret = av_fifo_write(vcf->sent, &sent, 1);
    av_packet_unref(vcf->pkt);
    if (ret < 0) {
        av_packet_free(&sent.props);
        return vcf->failure = ret;
    }
    return 0;
}

static int libvcfilter_receive_frame(AVCodecContext *avctx, AVFrame *frame)
{
    LibVcfilterDecContext *vcf = avctx->priv_data;
    VcfFrame decoded;
    int ret, status;

    for (;;) {
        if (vcf->failure) { /* one error per packet, so that callers do not run in a circle */
            av_packet_unref(vcf->pkt);
            ret = ff_decode_get_packet(avctx, vcf->pkt);
            av_packet_unref(vcf->pkt);
            return ret < 0 ? ret : vcf->failure;
        }

        if (vcf->ended)
            return AVERROR_EOF;

        status = vcf->stream ? vcf_receive_frame(vcf->stream, &decoded) : VCF_AGAIN;
        if (status == VCF_OK)
            return libvcfilter_output(avctx, frame, &decoded);
        if (status == VCF_END) {
            vcf->ended = 1;
            return AVERROR_EOF;
        }
        if (status == VCF_INVALID || status == VCF_OPTION) { /* the stream goes on */
            vcf->complaint = ff_libvcfilter_error(avctx, vcf->stream, status);
            continue;
        }
        if (status < 0)
            return vcf->failure = ff_libvcfilter_error(avctx, vcf->stream, status);

        if (vcf->draining) /* the client promises frames or VCF_END */
            return vcf->failure = AVERROR_BUG;
        ret = libvcfilter_take_packet(avctx);
        if (ret == AVERROR_EOF) {
            if (!vcf->stream)
                return ret;
            status = vcf_send_packet(vcf->stream, NULL);
            if (status < 0)
                return vcf->failure = ff_libvcfilter_error(avctx, vcf->stream, status);
            vcf->draining = status == VCF_OK;
        } else if (ret < 0) {
            /* Told only now that the caller's packet is taken, and never while draining: after an
             * error some callers forget the packet, or do not fetch the last frames. */
            if (ret == AVERROR(EAGAIN) && vcf->complaint)
                FFSWAP(int, ret, vcf->complaint);
            vcf->complaint = 0;
            return ret;
        } else if (vcf->pkt->data) {
            if (!vcf->stream && (ret = libvcfilter_open(avctx)) < 0) {
                av_packet_unref(vcf->pkt);
                return vcf->failure = ret;
            }
            if ((ret = libvcfilter_send(avctx)) < 0)
                return ret;
        }
    }
}

static void libvcfilter_decode_flush(AVCodecContext *avctx)
{
    LibVcfilterDecContext *vcf = avctx->priv_data;
    int status;

    av_packet_unref(vcf->pkt);
    libvcfilter_forget_sent(vcf);
    vcf->draining = vcf->ended = vcf->complaint = 0;
    if (vcf->stream && !vcf->failure && (status = vcf_flush(vcf->stream)) < 0)
        vcf->failure = ff_libvcfilter_error(avctx, vcf->stream, status);
}

static av_cold int libvcfilter_decode_close(AVCodecContext *avctx)
{
    LibVcfilterDecContext *vcf = avctx->priv_data;

    vcf_close(&vcf->stream);
    libvcfilter_forget_sent(vcf);
    av_fifo_freep2(&vcf->sent);
    av_packet_free(&vcf->pkt);
    return 0;
}

#define OFFSET(field) offsetof(LibVcfilterDecContext, field)
#define VD AV_OPT_FLAG_VIDEO_PARAM | AV_OPT_FLAG_DECODING_PARAM

static const AVOption libvcfilter_decode_options[] = {
    { "layers", "Quality levels that are decoded, the lowest ones",
      offsetof(LibVcfilterDecContext, layers), AV_OPT_TYPE_INT, { .i64 = LAYERS_MAX }, 1,
      LAYERS_MAX, VD },
    { "look",    "What frames look like",  OFFSET(look), AV_OPT_TYPE_INT,   { .i64 = LOOK_NATURAL },
      LOOK_NATURAL, LOOK_SHARP, VD, .unit = "look" },
    { "natural", "As they were coded",     0,            AV_OPT_TYPE_CONST, { .i64 = LOOK_NATURAL },
      0, 0, VD, .unit = "look" },
    { "sharp",   "With lost detail made up for the eye", 0, AV_OPT_TYPE_CONST,
      { .i64 = LOOK_SHARP }, 0, 0, VD, .unit = "look" },
    LIBVCFILTER_WORKER_OPTIONS(LibVcfilterDecContext, VD),
    { NULL },
};

static const AVClass libvcfilter_decode_class = {
    .class_name = "libvcfilter decoder",
    .item_name  = av_default_item_name,
    .option     = libvcfilter_decode_options,
    .version    = LIBAVUTIL_VERSION_INT,
};

const FFCodec ff_libvcfilter_decoder = {
    .p.name         = "vcfilter",
    .p.long_name    = NULL_IF_CONFIG_SMALL("vcfilter neural video"),
    .p.type         = AVMEDIA_TYPE_VIDEO,
    .p.id           = AV_CODEC_ID_VCFILTER,
    .p.capabilities = AV_CODEC_CAP_DR1 | AV_CODEC_CAP_DELAY,
    .p.priv_class   = &libvcfilter_decode_class,
    .p.wrapper_name = "libvcfilter",
    .priv_data_size = sizeof(LibVcfilterDecContext),
    .caps_internal  = FF_CODEC_CAP_INIT_CLEANUP | FF_CODEC_CAP_SETS_FRAME_PROPS,
    .init           = libvcfilter_decode_init,
    .close          = libvcfilter_decode_close,
    .flush          = libvcfilter_decode_flush,
    FF_CODEC_RECEIVE_FRAME_CB(libvcfilter_receive_frame),
};
