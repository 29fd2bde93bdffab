/*
 * Client of vcfilter's codec worker: frames and packets in, packets and frames out.
 *
 * The codec runs in a process of its own (python -m vcfilter worker). This client starts it, or
 * joins one that is kept warm on a Unix socket, and speaks the protocol of docs/reference/worker.md. It
 * needs C99 and POSIX, neither libav nor Python.
 *
 * Copyright (c) 2026 the vcfilter authors. SPDX-License-Identifier: MIT
 */
#ifndef VCF_WORKER_H
#define VCF_WORKER_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* A stream of one decoder or encoder. Streams may live in different threads; the calls of one
 * stream come from one thread at a time. All streams of a process that name the same worker
 * share it; it ends with the last of them. */
typedef struct VcfStream VcfStream;

enum VcfStatus {
    VCF_OK = 0,
    VCF_AGAIN = 1,     /* needs more input */
    VCF_END = 2,       /* drained: everything has come out */
    VCF_ABSENT = -1,   /* the worker cannot be started */
    VCF_DIED = -2,     /* the worker ended */
    VCF_TIMEOUT = -3,  /* the worker gave no sign of life in the time limit */
    VCF_PROTOCOL = -4, /* the worker broke the protocol, or speaks another version */
    VCF_INVALID = -5,  /* the bitstream is damaged or not for the worker's model */
    VCF_OPTION = -6,   /* an option, a format or a frame is refused */
    VCF_MEMORY = -7,
    VCF_INTERNAL = -8
};

/* Where the worker comes from. All fields may be zero. */
typedef struct VcfWorkerOptions {
    /* Run by /bin/sh as "exec COMMAND". NULL: $VCFILTER_WORKER, else "python3 -m vcfilter worker".
     * Never take it from a media file. */
    const char *command;
    /* Unix socket of a worker that is kept warm; where none answers, the command is started.
     * NULL: $VCFILTER_WORKER_SOCKET, else no socket. */
    const char *socket;
    /* Longest silence of a worker that something is awaited from; 0: 60000. A worker that
     * computes sends a sign of life every second, so a slow picture is no silence. */
    int timeout_ms;
} VcfWorkerOptions;

/* What a VcfFormat knows beyond the fields that are always there. */
enum { VCF_MASTERING = 1, VCF_CONTENT_LIGHT = 2 };

/* What all frames of a stream have in common. Colour numbers are those of libavutil. */
typedef struct VcfFormat {
    int width, height;    /* luma samples, 16 to 4096 each, at most 4096x2304 in all */
    int bit_depth;        /* 8 or 10 */
    int sar_num, sar_den; /* sample aspect ratio; 0/1 unknown */
    int color_primaries, color_trc, color_space;
    int color_range;
    int chroma_location;
    int rotation;    /* clockwise, for display: 0, 90, 180 or 270 degrees */
    int mirrored;    /* left to right, before it is rotated: 0 or 1 */
    int field_order; /* an AVFieldOrder, 0 to 5 */
    unsigned known;  /* VCF_MASTERING, VCF_CONTENT_LIGHT; what is not known is 0 */
    /* mastering display: x and y in steps of 0.00002, red, green, blue and white; luminance from
     * and to in steps of 0.0001 cd/m2 */
    uint32_t primaries[3][2], white_point[2], luminance[2];
    uint32_t max_content, max_average; /* content light level in cd/m2 */
} VcfFormat;

/* A picture in 4:2:0: planes Y, U, V; 8 bit, or 10 bit in 16 bit little-endian.
 * Chroma planes have half the luma size, rounded up. */
typedef struct VcfFrame {
    int64_t pts, duration; /* ticks; duration 0: unknown */
    int key;               /* received: it is a keyframe. Sent: it has to become one. 0 or 1 */
    int corrupt;           /* received: parts of it are missing */
    const uint8_t *data[3];
    int linesize[3]; /* bytes from row to row */
} VcfFrame;

typedef struct VcfPacket {
    const uint8_t *data;
    size_t size;
    int64_t pts, duration; /* packets are in display order: dts = pts */
    int key;
} VcfPacket;

/* Opening starts the worker where none runs yet, which takes a few seconds. A program that opens
 * decoders only to probe does better to read the sequence header itself (docs/reference/bitstream.md) and
 * to open with the first packet.
 *
 * *stream is NULL after a failure; vcf_message(NULL) then says why. options may be NULL. */

/* extradata: the track's sequence header; NULL and 0 if unknown, keyframes bring it too.
 * VCF_INVALID: of another model than the worker's, or of an unknown bitstream version. */
int vcf_open_decoder(VcfStream **stream, const VcfWorkerOptions *options, const uint8_t *extradata,
                     size_t size);

/* The same with settings, "look=sharp": what frames look like, natural (NULL or "") or sharp. */
int vcf_open_decoder_with(VcfStream **stream, const VcfWorkerOptions *options,
                          const uint8_t *extradata, size_t size, const char *settings);

/* settings: "key=value:key=value" with the fields of vcfilter.EncoderOptions: crf, qp, quality (dB),
 * bitrate (bit/s), keyint, scenecut, preset, frame_rate ("30000/1001", for rate control), ...;
 * NULL or "": the defaults. The model is chosen by the worker's command. */
int vcf_open_encoder(VcfStream **stream, const VcfWorkerOptions *options, const VcfFormat *format,
                     const char *settings);

/* Encoder: the sequence header for the container, known from the start. Decoder: what it was
 * opened with. Valid until the stream is closed. */
int vcf_extradata(VcfStream *stream, const uint8_t **data, size_t *size);

/* Format of the frame that was received last; before that the one of the extradata, VCF_AGAIN
 * while nothing is known. Size and depth never change, the rest may at a keyframe. */
int vcf_format(VcfStream *stream, VcfFormat *format);

/* Sending and receiving are two sides of a queue that is worked on meanwhile: as long as
 * vcf_send_* gives VCF_AGAIN, vcf_receive_* gives something else, and the other way round. What
 * is sent is copied; what is received is valid until the next call with the stream.
 *
 * NULL drains: then receive until VCF_END. After VCF_END the stream takes another sequence.
 *
 * VCF_INVALID and VCF_OPTION concern one packet or frame and come once, from receiving: the
 * stream goes on, call again. All other errors are final: close the stream. */
int vcf_send_packet(VcfStream *stream, const VcfPacket *packet);
int vcf_receive_frame(VcfStream *stream, VcfFrame *frame);
int vcf_send_frame(VcfStream *stream, const VcfFrame *frame);
int vcf_receive_packet(VcfStream *stream, VcfPacket *packet);

/* Decoder: forget all that was sent and not received, as after a seek. Never waits. */
int vcf_flush(VcfStream *stream);

/* Never fails; *stream becomes NULL. Closing the last stream ends a worker that was started. */
void vcf_close(VcfStream **stream);

/* One sentence about the last error of a stream, saying what to do; with NULL about the last open
 * that failed in this thread. Never NULL; valid until the next call with the stream. */
const char *vcf_message(const VcfStream *stream);

#ifdef __cplusplus
}
#endif

#endif
