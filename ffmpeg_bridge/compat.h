/*
 * What differs between FFmpeg 5.1 and 9 in the public API that the bridge uses,
 * and the capture of libav's error lines. Everything here is small and static.
 */
#ifndef FFMPEG_BRIDGE_COMPAT_H
#define FFMPEG_BRIDGE_COMPAT_H

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <libavcodec/avcodec.h>
#include <libavformat/avformat.h>
#include <libavutil/avutil.h>
#include <libavutil/channel_layout.h>
#include <libavutil/dict.h>
#include <libavutil/display.h>
#include <libavutil/error.h>
#include <libavutil/log.h>
#include <libavutil/mathematics.h>
#include <libavutil/mem.h>
#include <libavutil/pixdesc.h>
#include <libavutil/samplefmt.h>

#if LIBAVFORMAT_VERSION_INT < AV_VERSION_INT(59, 27, 100)
#error "ffmpeg_bridge needs FFmpeg 5.1 or newer"
#endif

/* From FFmpeg 6.1 on, stream side data lives in the codec parameters. */
#define BRIDGE_CODED_SIDE_DATA (LIBAVCODEC_VERSION_INT >= AV_VERSION_INT(60, 30, 100))

static inline int bridge_stream_nb_side_data(const AVStream *stream)
{
#if BRIDGE_CODED_SIDE_DATA
    return stream->codecpar->nb_coded_side_data;
#else
    return stream->nb_side_data;
#endif
}

static inline const AVPacketSideData *bridge_stream_side_data(const AVStream *stream, int index)
{
#if BRIDGE_CODED_SIDE_DATA
    return &stream->codecpar->coded_side_data[index];
#else
    return &stream->side_data[index];
#endif
}

/* Returns zero-initialised memory of `size` bytes owned by the stream, or NULL. */
static inline uint8_t *bridge_stream_new_side_data(AVStream *stream, int type, size_t size)
{
#if BRIDGE_CODED_SIDE_DATA
    AVCodecParameters *par = stream->codecpar;
    AVPacketSideData *entry =
        av_packet_side_data_new(&par->coded_side_data, &par->nb_coded_side_data,
                                (enum AVPacketSideDataType)type, size, 0);
    return entry ? entry->data : NULL;
#else
    return av_stream_new_side_data(stream, (enum AVPacketSideDataType)type, size);
#endif
}

/* FFmpeg 7 made the buffer of the write callback const. */
#if LIBAVFORMAT_VERSION_MAJOR >= 61
typedef const uint8_t bridge_write_buffer;
#else
typedef uint8_t bridge_write_buffer;
#endif

static inline AVIOContext *bridge_avio_alloc(unsigned char *buffer, int size, int writable,
                                             int seekable, void *opaque,
                                             int (*read)(void *, uint8_t *, int),
                                             int (*write)(void *, bridge_write_buffer *, int),
                                             int64_t (*seek)(void *, int64_t, int))
{
    return avio_alloc_context(buffer, size, writable, opaque, writable ? NULL : read,
                              writable ? write : NULL, seekable ? seek : NULL);
}

/* An AVChannelLayout from a mask, or of unspecified order where the mask is 0. */
static inline int bridge_set_channel_layout(AVCodecParameters *par, uint64_t mask, int channels)
{
    if (mask)
        return av_channel_layout_from_mask(&par->ch_layout, mask);
    memset(&par->ch_layout, 0, sizeof(par->ch_layout));
    par->ch_layout.order = AV_CHANNEL_ORDER_UNSPEC;
    par->ch_layout.nb_channels = channels;
    return 0;
}

static inline uint64_t bridge_channel_mask(const AVCodecParameters *par)
{
    return par->ch_layout.order == AV_CHANNEL_ORDER_NATIVE ? par->ch_layout.u.mask : 0;
}

/* Appends a zero-initialised chapter that the context owns; NULL when memory is short. */
static inline AVChapter *bridge_new_chapter(AVFormatContext *context)
{
    AVChapter **chapters =
        av_realloc_array(context->chapters, context->nb_chapters + 1, sizeof(*chapters));
    if (!chapters)
        return NULL;
    context->chapters = chapters;
    AVChapter *chapter = av_mallocz(sizeof(*chapter));
    if (chapter)
        chapters[context->nb_chapters++] = chapter;
    return chapter;
}

/* libav prints why a call failed and returns a bare code: keep the last such line per thread. */
static _Thread_local char bridge_log_line[512];

static void bridge_log_callback(void *object, int level, const char *format, va_list arguments)
{
    (void)object;
    if (level < 0 || level > AV_LOG_ERROR)
        return;
    char line[sizeof(bridge_log_line)];
    vsnprintf(line, sizeof(line), format, arguments);
    size_t length = strcspn(line, "\r\n");
    while (length && (line[length - 1] == ' ' || line[length - 1] == '.'))
        length--;
    if (length) { /* an empty continuation keeps the line before it */
        line[length] = 0;
        memcpy(bridge_log_line, line, length + 1);
    }
}

static inline void bridge_log_install(void) { av_log_set_callback(bridge_log_callback); }
static inline void bridge_log_clear(void) { bridge_log_line[0] = 0; }
static inline const char *bridge_log_last(void) { return bridge_log_line; }

#endif
