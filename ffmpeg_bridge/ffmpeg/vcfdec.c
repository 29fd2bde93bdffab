/*
 * Raw vcfilter stream (.vcf) demuxer; docs/plugin.md states the format
 *
 * Copyright (c) 2026 the vcfilter authors. SPDX-License-Identifier: MIT
 */

#include "libavutil/common.h"
#include "libavutil/display.h"
#include "libavutil/intreadwrite.h"
#include "libavutil/mathematics.h"
#include "libavutil/mem.h"

#include "libavcodec/vcf_sequence.h"

#include "avformat.h"
#include "internal.h"
#include "version_major.h"
#if LIBAVFORMAT_VERSION_MAJOR >= 61
#include "demux.h"
#endif

#define VCF_MAGIC "VCFRAW1\n"
#define VCF_MAGIC_SIZE (sizeof(VCF_MAGIC) - 1)
#define VCF_HEAD_SIZE 16 /* of a part, and of a packet */
#define VCF_PACKET_MAX (8 * 4096 * 2304 + 4096)
#define VCF_PTS_MAX (INT64_C(1) << 62)
#define VCF_PEEK_MAX 130 /* packets of two of the longest segments: a keyframe is among them */

/* One of the files that were joined. Times are output ticks: of the first part's time base. */
typedef struct VcfPart {
    int64_t pos;    /* of its first packet */
    int64_t offset; /* the time that its own times count from */
    AVRational time_base;
} VcfPart;

typedef struct VcfRecord {
    int64_t pos;
    uint32_t size;
    int64_t pts, duration;
} VcfRecord;

typedef struct VcfDemuxContext {
    AVRational time_base;
    VcfPart part;
    int64_t last, step, end; /* pts of the newest packet, distance to the one before, its end */
    VcfPart *parts;          /* of a file; none of a pipe */
    int nb_parts;
    AVPacket *held; /* a pipe's first keyframe, until it is read */
} VcfDemuxContext;

static int vcf_probe(const AVProbeData *p)
{
    if (p->buf_size >= VCF_HEAD_SIZE && !memcmp(p->buf, VCF_MAGIC, VCF_MAGIC_SIZE) &&
        AV_RL32(p->buf + 8) && AV_RL32(p->buf + 12))
        return AVPROBE_SCORE_MAX;
    return 0;
}

static int vcf_begin_part(AVFormatContext *s, const uint8_t *head)
{
    VcfDemuxContext *vcf = s->priv_data;
    const uint32_t num = AV_RL32(head + 8), den = AV_RL32(head + 12);

    if (!num || !den || num > INT_MAX || den > INT_MAX) {
        av_log(s, AV_LOG_ERROR, "The time base %u/%u is nonsense\n", num, den);
        return AVERROR_INVALIDDATA;
    }
    vcf->part = (VcfPart){ avio_tell(s->pb), vcf->end, { num, den } };
    return 0;
}

static int vcf_plausible(int64_t pts)
{
    return pts >= -VCF_PTS_MAX && pts <= VCF_PTS_MAX;
}

static int vcf_refuse(AVFormatContext *s, const VcfRecord *record)
{
    av_log(s, AV_LOG_ERROR, "A packet of %u bytes at pts %"PRId64" is nonsense\n", record->size,
           record->pts);
    return AVERROR_INVALIDDATA;
}

/* Fields of the next packet; its bytes follow. AVERROR_EOF at the end. */
static int vcf_read_record(AVFormatContext *s, VcfRecord *record)
{
    VcfDemuxContext *vcf = s->priv_data;
    uint8_t head[VCF_HEAD_SIZE];
    int64_t end;
    int ret;

    for (;;) {
        record->pos = avio_tell(s->pb);
        ret = avio_read(s->pb, head, sizeof(head));
        if (ret <= 0)
            return ret < 0 ? ret : AVERROR_EOF;
        if (ret < (int)sizeof(head)) {
            av_log(s, AV_LOG_ERROR, "The stream ends in the middle of a packet's head\n");
            return AVERROR_INVALIDDATA;
        }
        if (memcmp(head, VCF_MAGIC, VCF_MAGIC_SIZE))
            break;
        if ((ret = vcf_begin_part(s, head)) < 0)
            return ret;
    }
    record->size     = AV_RL32(head);
    record->pts      = AV_RL64(head + 4);
    record->duration = AV_RL32(head + 12);
    if (!record->size || record->size > VCF_PACKET_MAX || !vcf_plausible(record->pts))
        return vcf_refuse(s, record);
    end              = av_rescale_q(record->pts + record->duration, vcf->part.time_base,
                                    vcf->time_base);
    record->pts      = av_rescale_q(record->pts, vcf->part.time_base, vcf->time_base);
    record->duration = end - record->pts;
    if (!vcf_plausible(record->pts) || !vcf_plausible(record->pts + vcf->part.offset))
        return vcf_refuse(s, record);
    record->pts     += vcf->part.offset;

    if (vcf->last != AV_NOPTS_VALUE && record->pts > vcf->last)
        vcf->step = record->pts - vcf->last;
    vcf->last = record->pts;
    vcf->end  = FFMAX(vcf->end, record->pts + (record->duration ? record->duration : vcf->step));
    return 0;
}

/* Goes to a packet of a file. */
static int vcf_rewind(AVFormatContext *s, int64_t pos, int64_t pts)
{
    VcfDemuxContext *vcf = s->priv_data;
    int64_t ret = avio_seek(s->pb, pos, SEEK_SET);
    int i = vcf->nb_parts - 1;

    if (ret < 0)
        return ret;
    while (i > 0 && vcf->parts[i].pos > pos)
        i--;
    vcf->part = vcf->parts[i];
    vcf->last = AV_NOPTS_VALUE;
    vcf->end  = pts;
    return 0;
}

static int vcf_use_sequence(AVFormatContext *s, const uint8_t *data)
{
    AVStream *st = s->streams[0];
    AVCodecParameters *par = st->codecpar;
    VcfSequence sequence;
    int ret = vcf_sequence_read(&sequence, data, VCF_SEQUENCE_SIZE);

    if (ret < 0)
        return ret;
    if ((ret = ff_alloc_extradata(par, VCF_SEQUENCE_SIZE)) < 0)
        return ret;
    memcpy(par->extradata, data, VCF_SEQUENCE_SIZE);
    par->format              = sequence.pix_fmt;
    par->width               = sequence.width;
    par->height              = sequence.height;
    par->color_primaries     = sequence.color_primaries;
    par->color_trc           = sequence.color_trc;
    par->color_space         = sequence.color_space;
    par->color_range         = sequence.color_range;
    par->chroma_location     = sequence.chroma_location;
    par->sample_aspect_ratio = st->sample_aspect_ratio = sequence.sample_aspect_ratio;
    if (sequence.rotation) {
        const size_t size = 9 * sizeof(int32_t);
#if LIBAVFORMAT_VERSION_MAJOR >= 61
        AVPacketSideData *side = av_packet_side_data_new(&par->coded_side_data,
                                                         &par->nb_coded_side_data,
                                                         AV_PKT_DATA_DISPLAYMATRIX, size, 0);
        uint8_t *matrix = side ? side->data : NULL;
#else
        uint8_t *matrix = av_stream_new_side_data(st, AV_PKT_DATA_DISPLAYMATRIX, size);
#endif
        if (!matrix)
            return AVERROR(ENOMEM);
        av_display_rotation_set((int32_t *)matrix, sequence.rotation);
    }
    return 0;
}

/* Reads all heads of a file: keyframes for the index, the first sequence header, the duration.
 * What is damaged is told when it is read. */
static int vcf_scan(AVFormatContext *s)
{
    VcfDemuxContext *vcf = s->priv_data;
    AVStream *st = s->streams[0];
    const int64_t start_pos = vcf->part.pos, file_size = avio_size(s->pb);
    int64_t first_duration = 0, expected = 0, packets = 0;
    int regular = 1, ret;
    VcfRecord record;

    while (vcf_read_record(s, &record) >= 0) {
        const int64_t pos = avio_tell(s->pb);
        uint8_t head[VCF_SEQUENCE_SIZE];
        int size;

        if (file_size > 0 && file_size - pos < record.size)
            break;
        if (!vcf->nb_parts || vcf->parts[vcf->nb_parts - 1].pos != vcf->part.pos) {
            ret = av_reallocp_array(&vcf->parts, vcf->nb_parts + 1, sizeof(*vcf->parts));
            if (ret < 0) {
                vcf->nb_parts = 0;
                return ret;
            }
            vcf->parts[vcf->nb_parts++] = vcf->part;
        }
        size = avio_read(s->pb, head, FFMIN(sizeof(head), record.size));
        if (vcf_is_key(head, FFMAX(size, 0))) {
            ret = av_add_index_entry(st, record.pos, record.pts, record.size, 0,
                                     AVINDEX_KEYFRAME);
            if (ret < 0)
                return ret;
            if (!st->codecpar->extradata && size == sizeof(head) &&
                (ret = vcf_use_sequence(s, head)) == AVERROR(ENOMEM))
                return ret;
        }
        if (!packets++) {
            st->start_time = record.pts;
            first_duration = record.duration;
        } else {
            regular &= record.pts == expected;
        }
        expected = record.pts + first_duration;
        if (avio_seek(s->pb, pos + record.size, SEEK_SET) < 0)
            break;
    }
    if (!packets)
        return AVERROR_INVALIDDATA;
    st->nb_frames = packets;
    st->duration  = vcf->end - st->start_time;
    if (regular && first_duration > 0) /* otherwise libavformat finds out */
        st->avg_frame_rate = st->r_frame_rate =
            av_inv_q(av_mul_q(vcf->time_base, (AVRational){ FFMIN(first_duration, INT_MAX), 1 }));
    return vcf_rewind(s, start_pos, st->start_time);
}

static int vcf_get_packet(AVFormatContext *s, AVPacket *pkt)
{
    VcfRecord record;
    int ret = vcf_read_record(s, &record);

    if (ret < 0)
        return ret;
    ret = av_get_packet(s->pb, pkt, record.size);
    if (ret < 0)
        return ret;
    if (ret < (int)record.size) {
        av_log(s, AV_LOG_ERROR, "The stream ends in the middle of a packet\n");
        av_packet_unref(pkt);
        return AVERROR_INVALIDDATA;
    }
    pkt->pos          = record.pos;
    pkt->stream_index = 0;
    pkt->pts          = pkt->dts = record.pts;
    pkt->duration     = record.duration;
    if (vcf_is_key(pkt->data, pkt->size))
        pkt->flags |= AV_PKT_FLAG_KEY;
    return 0;
}

/* Finds a pipe's first keyframe. What comes before it cannot be decoded by anybody. */
static int vcf_peek(AVFormatContext *s)
{
    VcfDemuxContext *vcf = s->priv_data;
    AVStream *st = s->streams[0];
    int ret;

    vcf->held = av_packet_alloc();
    if (!vcf->held)
        return AVERROR(ENOMEM);
    for (int i = 0; i < VCF_PEEK_MAX; i++) {
        if ((ret = vcf_get_packet(s, vcf->held)) < 0)
            return ret;
        if (vcf->held->flags & AV_PKT_FLAG_KEY && vcf->held->size >= VCF_SEQUENCE_SIZE &&
            (ret = vcf_use_sequence(s, vcf->held->data)) != AVERROR_INVALIDDATA) {
            st->start_time = vcf->held->pts;
            if (vcf->held->duration > 0)
                st->avg_frame_rate = av_inv_q(av_mul_q(vcf->time_base,
                    (AVRational){ FFMIN(vcf->held->duration, INT_MAX), 1 }));
            return ret;
        }
        av_packet_unref(vcf->held);
    }
    return AVERROR_INVALIDDATA;
}

static int vcf_read_header(AVFormatContext *s)
{
    VcfDemuxContext *vcf = s->priv_data;
    AVStream *st = avformat_new_stream(s, NULL);
    uint8_t head[VCF_HEAD_SIZE];
    int ret;

    if (!st)
        return AVERROR(ENOMEM);
    st->codecpar->codec_type = AVMEDIA_TYPE_VIDEO;
    st->codecpar->codec_id   = AV_CODEC_ID_VCFILTER;
    st->codecpar->codec_tag  = MKTAG('V', 'C', 'F', '1');

    if (avio_read(s->pb, head, sizeof(head)) != sizeof(head) ||
        memcmp(head, VCF_MAGIC, VCF_MAGIC_SIZE))
        return AVERROR_INVALIDDATA;
    vcf->last = AV_NOPTS_VALUE;
    vcf->step = 1;
    if ((ret = vcf_begin_part(s, head)) < 0)
        return ret;
    vcf->time_base = vcf->part.time_base;
    avpriv_set_pts_info(st, 64, vcf->time_base.num, vcf->time_base.den);

    ret = s->pb->seekable & AVIO_SEEKABLE_NORMAL ? vcf_scan(s) : vcf_peek(s);
    if (ret >= 0 && !st->codecpar->extradata)
        ret = AVERROR_INVALIDDATA;
    if (ret == AVERROR_INVALIDDATA || ret == AVERROR_EOF) {
        av_log(s, AV_LOG_ERROR, "The stream has no keyframe to begin with\n");
        return AVERROR_INVALIDDATA;
    }
    return ret;
}

static int vcf_read_packet(AVFormatContext *s, AVPacket *pkt)
{
    VcfDemuxContext *vcf = s->priv_data;

    if (vcf->held && vcf->held->data) {
        av_packet_move_ref(pkt, vcf->held);
        return 0;
    }
    return vcf_get_packet(s, pkt);
}

static int vcf_read_seek(AVFormatContext *s, int stream_index, int64_t timestamp, int flags)
{
    const VcfDemuxContext *vcf = s->priv_data;
    AVStream *st = s->streams[0];
    const AVIndexEntry *entry;
    int index;

    if (!vcf->nb_parts)
        return AVERROR(ENOSYS); /* a pipe */
    index = av_index_search_timestamp(st, timestamp, flags & ~AVSEEK_FLAG_ANY);
    if (index < 0 && flags & AVSEEK_FLAG_BACKWARD)
        index = av_index_search_timestamp(st, timestamp, 0); /* before the first: the first */
    entry = index < 0 ? NULL : avformat_index_get_entry(st, index);
    return entry ? vcf_rewind(s, entry->pos, entry->timestamp) : AVERROR(EINVAL);
}

static int vcf_read_close(AVFormatContext *s)
{
    VcfDemuxContext *vcf = s->priv_data;

    av_freep(&vcf->parts);
    av_packet_free(&vcf->held);
    return 0;
}

#if LIBAVFORMAT_VERSION_MAJOR >= 61
const FFInputFormat ff_vcf_demuxer = {
    .p.name         = "vcf",
    .p.long_name    = NULL_IF_CONFIG_SMALL("raw vcfilter neural video"),
    .p.extensions   = "vcf",
    .flags_internal = FF_INFMT_FLAG_INIT_CLEANUP,
#else
const AVInputFormat ff_vcf_demuxer = {
    .name           = "vcf",
    .long_name      = NULL_IF_CONFIG_SMALL("raw vcfilter neural video"),
    .extensions     = "vcf",
    .flags_internal = FF_FMT_INIT_CLEANUP,
#endif
    .priv_data_size = sizeof(VcfDemuxContext),
    .read_probe     = vcf_probe,
    .read_header    = vcf_read_header,
    .read_packet    = vcf_read_packet,
    .read_seek      = vcf_read_seek,
    .read_close     = vcf_read_close,
};
