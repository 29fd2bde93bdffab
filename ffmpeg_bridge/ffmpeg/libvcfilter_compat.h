/*
 * What differs between the versions of FFmpeg that the wrappers build in: 5.1 to 7.1
 *
 * Copyright (c) 2026 the vcfilter authors. SPDX-License-Identifier: MIT
 */
#ifndef AVCODEC_LIBVCFILTER_COMPAT_H
#define AVCODEC_LIBVCFILTER_COMPAT_H

#include <string.h>

#include "libavutil/frame.h"
#include "libavutil/internal.h"
#include "libavutil/mem.h"
#include "libavutil/version.h"

#include "avcodec.h"
#include "decode.h"
#include "packet.h"
#include "version.h"

static inline int64_t libvcfilter_duration(const AVFrame *frame)
{
#if LIBAVUTIL_VERSION_INT >= AV_VERSION_INT(57, 30, 100)
    return frame->duration;
#else
    return 0; /* pkt_duration is the decoder's: in other ticks than the encoder's */
#endif
}

static inline void libvcfilter_set_key(AVFrame *frame, int key)
{
#ifdef AV_FRAME_FLAG_KEY
    if (key)
        frame->flags |= AV_FRAME_FLAG_KEY;
    else
        frame->flags &= ~AV_FRAME_FLAG_KEY;
#else
    frame->key_frame = key;
#endif
}

static inline void libvcfilter_set_interlaced(AVFrame *frame, int top_first)
{
#ifdef AV_FRAME_FLAG_INTERLACED
    frame->flags |= AV_FRAME_FLAG_INTERLACED;
    if (top_first)
        frame->flags |= AV_FRAME_FLAG_TOP_FIELD_FIRST;
#else
    frame->interlaced_frame = 1;
    frame->top_field_first  = top_first;
#endif
}

/* Times, place in the file and side data of the packet that a frame was coded in. */
static inline int libvcfilter_copy_props(AVCodecContext *avctx, AVFrame *frame,
                                         const AVPacket *pkt, int size)
{
#if LIBAVCODEC_VERSION_MAJOR >= 61
    int ret = ff_decode_frame_props_from_pkt(avctx, frame, pkt);
    if (ret < 0)
        return ret;
#else
    static const struct {
        enum AVPacketSideDataType packet;
        enum AVFrameSideDataType frame;
    } side_data[] = {
        { AV_PKT_DATA_DISPLAYMATRIX,              AV_FRAME_DATA_DISPLAYMATRIX },
        { AV_PKT_DATA_SPHERICAL,                  AV_FRAME_DATA_SPHERICAL },
        { AV_PKT_DATA_STEREO3D,                   AV_FRAME_DATA_STEREO3D },
        { AV_PKT_DATA_MASTERING_DISPLAY_METADATA, AV_FRAME_DATA_MASTERING_DISPLAY_METADATA },
        { AV_PKT_DATA_CONTENT_LIGHT_LEVEL,        AV_FRAME_DATA_CONTENT_LIGHT_LEVEL },
        { AV_PKT_DATA_ICC_PROFILE,                AV_FRAME_DATA_ICC_PROFILE },
    };

    for (size_t i = 0; i < FF_ARRAY_ELEMS(side_data); i++) {
        size_t bytes;
        const uint8_t *data = av_packet_get_side_data(pkt, side_data[i].packet, &bytes);
        AVFrameSideData *copy;

        if (!data)
            continue;
        copy = av_frame_new_side_data(frame, side_data[i].frame, bytes);
        if (!copy)
            return AVERROR(ENOMEM);
        memcpy(copy->data, data, bytes);
    }
    frame->pts     = pkt->pts;
    frame->pkt_pos = pkt->pos;
#if LIBAVUTIL_VERSION_INT >= AV_VERSION_INT(57, 30, 100)
    frame->duration = pkt->duration;
#else
    frame->pkt_duration = pkt->duration;
#endif
    if (pkt->flags & AV_PKT_FLAG_DISCARD)
        frame->flags |= AV_FRAME_FLAG_DISCARD;
#endif
#if LIBAVCODEC_VERSION_MAJOR < 61 || FF_API_FRAME_PKT
    FF_DISABLE_DEPRECATION_WARNINGS
    frame->pkt_size = size;
    FF_ENABLE_DEPRECATION_WARNINGS
#endif
    frame->pkt_dts = pkt->dts;
    return 0;
}

/* Side data that an encoder is told before its first frame; NULL where there is none. */
static inline const AVFrameSideData *libvcfilter_source_side_data(const AVCodecContext *avctx,
                                                                  enum AVFrameSideDataType type)
{
#if LIBAVCODEC_VERSION_INT >= AV_VERSION_INT(61, 2, 100)
    return av_frame_side_data_get(avctx->decoded_side_data, avctx->nb_decoded_side_data, type);
#else
    return NULL;
#endif
}

/* Gives a copy of side data to the muxer, for the stream as a whole. */
static inline int libvcfilter_add_side_data(AVCodecContext *avctx, enum AVPacketSideDataType type,
                                            const AVFrameSideData *from)
{
#if LIBAVCODEC_VERSION_INT >= AV_VERSION_INT(61, 2, 100)
    AVPacketSideData *added = av_packet_side_data_new(
        &avctx->coded_side_data, &avctx->nb_coded_side_data, type, from->size, 0);
    if (!added)
        return AVERROR(ENOMEM);
    memcpy(added->data, from->data, from->size);
#endif
    return 0;
}

#endif /* AVCODEC_LIBVCFILTER_COMPAT_H */
