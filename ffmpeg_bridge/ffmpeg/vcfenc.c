/*
 * Raw vcfilter stream (.vcf) muxer; docs/plugin.md states the format
 *
 * Copyright (c) 2026 the vcfilter authors. SPDX-License-Identifier: MIT
 */

#include "libavutil/common.h"
#include "libavutil/mathematics.h"

#include "avformat.h"
#include "internal.h"
#include "version_major.h"
#if LIBAVFORMAT_VERSION_MAJOR >= 60
#include "mux.h"
#endif

#define VCF_MAGIC "VCFRAW1\n"

static int vcf_write_header(AVFormatContext *s)
{
    const AVStream *st = s->nb_streams == 1 ? s->streams[0] : NULL;

    if (!st || st->codecpar->codec_id != AV_CODEC_ID_VCFILTER) {
        av_log(s, AV_LOG_ERROR, "A raw stream holds one vcfilter picture track and nothing else "
                                "(give -an -sn, or another container)\n");
        return AVERROR(EINVAL);
    }
    avio_write(s->pb, VCF_MAGIC, sizeof(VCF_MAGIC) - 1);
    avio_wl32(s->pb, st->time_base.num);
    avio_wl32(s->pb, st->time_base.den);
    return 0;
}

static int vcf_write_packet(AVFormatContext *s, AVPacket *pkt)
{
    if (pkt->pts == AV_NOPTS_VALUE || pkt->size <= 0) {
        av_log(s, AV_LOG_ERROR, "A packet without time or content cannot be written\n");
        return AVERROR(EINVAL);
    }
    avio_wl32(s->pb, pkt->size);
    avio_wl64(s->pb, pkt->pts);
    avio_wl32(s->pb, av_clip64(pkt->duration, 0, UINT32_MAX));
    avio_write(s->pb, pkt->data, pkt->size);
    return 0;
}

#if LIBAVFORMAT_VERSION_MAJOR >= 60
const FFOutputFormat ff_vcf_muxer = {
    .p.name         = "vcf",
    .p.long_name    = NULL_IF_CONFIG_SMALL("raw vcfilter neural video"),
    .p.extensions   = "vcf",
    .p.audio_codec  = AV_CODEC_ID_NONE,
    .p.video_codec  = AV_CODEC_ID_VCFILTER,
    .p.flags        = AVFMT_VARIABLE_FPS | AVFMT_TS_NEGATIVE,
#else
const AVOutputFormat ff_vcf_muxer = {
    .name           = "vcf",
    .long_name      = NULL_IF_CONFIG_SMALL("raw vcfilter neural video"),
    .extensions     = "vcf",
    .audio_codec    = AV_CODEC_ID_NONE,
    .video_codec    = AV_CODEC_ID_VCFILTER,
    .flags          = AVFMT_VARIABLE_FPS | AVFMT_TS_NEGATIVE,
#endif
    .write_header   = vcf_write_header,
    .write_packet   = vcf_write_packet,
};
