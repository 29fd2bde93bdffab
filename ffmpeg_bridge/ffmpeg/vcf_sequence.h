/*
 * Sequence header of a vcfilter stream: track extradata and head of each keyframe packet
 * (docs/bitstream.md). Read here so that probing a file needs no worker.
 *
 * Copyright (c) 2026 the vcfilter authors. SPDX-License-Identifier: MIT
 */
#ifndef AVCODEC_VCF_SEQUENCE_H
#define AVCODEC_VCF_SEQUENCE_H

#include <stdint.h>
#include <string.h>

#include "libavutil/avutil.h"
#include "libavutil/crc.h"
#include "libavutil/error.h"
#include "libavutil/intreadwrite.h"
#include "libavutil/pixdesc.h"

#define VCF_SEQUENCE_SIZE 28
#define VCF_SEQUENCE_VERSION 1

typedef struct VcfSequence {
    int width, height;
    enum AVPixelFormat pix_fmt;
    AVRational sample_aspect_ratio;
    enum AVColorPrimaries color_primaries;
    enum AVColorTransferCharacteristic color_trc;
    enum AVColorSpace color_space;
    enum AVColorRange color_range;
    enum AVChromaLocation chroma_location;
    int rotation; /* clockwise for display, in degrees */
} VcfSequence;

/* Whether a packet is a keyframe: an inter frame's first bit is 1, a keyframe begins with 'V'. */
static inline int vcf_is_key(const uint8_t *data, size_t size)
{
    return size > 0 && !(data[0] & 0x80);
}

/* Numbers that this libavutil has no name for become "unspecified" (2 in all three tables). */
static inline void vcf_sequence_colors(VcfSequence *sequence, int primaries, int trc, int space)
{
    sequence->color_primaries = av_color_primaries_name(primaries) ? primaries
                                                                   : AVCOL_PRI_UNSPECIFIED;
    sequence->color_trc       = av_color_transfer_name(trc) ? trc : AVCOL_TRC_UNSPECIFIED;
    sequence->color_space     = av_color_space_name(space) ? space : AVCOL_SPC_UNSPECIFIED;
}

/* Returns 0; AVERROR_INVALIDDATA if the header is damaged or cut short, AVERROR_PATCHWELCOME if
 * it is intact but of another bitstream version. */
static inline int vcf_sequence_read(VcfSequence *sequence, const uint8_t *data, size_t size)
{
    uint32_t crc;
    int depth, flags;

    if (size < VCF_SEQUENCE_SIZE || memcmp(data, "VCF1", 4))
        return AVERROR_INVALIDDATA;
    crc = ~av_crc(av_crc_get_table(AV_CRC_32_IEEE_LE), UINT32_MAX, data, VCF_SEQUENCE_SIZE - 2);
    if ((crc & 0xFFFF) != AV_RB16(data + VCF_SEQUENCE_SIZE - 2))
        return AVERROR_INVALIDDATA;
    if (data[4] != VCF_SEQUENCE_VERSION)
        return AVERROR_PATCHWELCOME;

    depth = data[17] & 15;
    flags = data[21];
    if (data[17] >> 4 != 1 || (depth != 8 && depth != 10))
        return AVERROR_INVALIDDATA;
    sequence->width   = AV_RB16(data + 13);
    sequence->height  = AV_RB16(data + 15);
    sequence->pix_fmt = depth == 8 ? AV_PIX_FMT_YUV420P : AV_PIX_FMT_YUV420P10LE;
    if (sequence->width < 16 || sequence->height < 16 || sequence->width > 4096 ||
        sequence->height > 4096)
        return AVERROR_INVALIDDATA;
    vcf_sequence_colors(sequence, data[18], data[19], data[20]);
    sequence->color_range     = flags >> 6 <= AVCOL_RANGE_JPEG ? flags >> 6
                                                               : AVCOL_RANGE_UNSPECIFIED;
    sequence->chroma_location = (flags >> 3 & 7) <= AVCHROMA_LOC_BOTTOM ? flags >> 3 & 7
                                                                        : AVCHROMA_LOC_UNSPECIFIED;
    sequence->rotation        = (flags >> 1 & 3) * 90;
    sequence->sample_aspect_ratio = (AVRational){ AV_RB16(data + 22), AV_RB16(data + 24) };
    if (!sequence->sample_aspect_ratio.den)
        return AVERROR_INVALIDDATA;
    return 0;
}

#endif /* AVCODEC_VCF_SEQUENCE_H */
