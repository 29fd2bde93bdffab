/*
 * Quality levels of a packet of a vcfilter stream
 *
 * Copyright (c) 2026 the vcfilter authors. SPDX-License-Identifier: MIT
 */
#include "vcf_thin.h"

#include "vcf_sequence.h"

#define KEY_BYTE 0x02
#define REPEAT 3 /* added to the number of references in the code of a frame with nothing coded */
#define LENGTH_BYTES_MAX 4
#define DISTANCE_BYTES_MAX 3
#define BODY_BYTES 23 /* of a sequence header in a keyframe, without its blocks */

enum Check { CHECK_KEY = 4, CHECK_INTER = 3, CHECK_LEVEL = 3 };

/* Reads a packet from its start. After a read past its end, or of an invalid number, `failed` is
 * set, which is looked at once. */
typedef struct Reader {
    const uint8_t *data;
    size_t size, at;
    int failed;
} Reader;

static void skip(Reader *r, size_t bytes)
{
    if (bytes > r->size - r->at) {
        r->failed = 1;
        bytes = r->size - r->at;
    }
    r->at += bytes;
}

static unsigned byte(Reader *r)
{
    skip(r, 1);
    return r->failed ? 0 : r->data[r->at - 1];
}

/* LEB128: seven bits a byte, lowest first, top bit set in all but the last. */
static uint32_t number(Reader *r, int bytes_max)
{
    uint32_t value = 0;
    for (int i = 0; i < bytes_max; i++) {
        unsigned next = byte(r);
        value |= (uint32_t)(next & 0x7F) << 7 * i;
        if (next < 0x80) {
            r->failed |= !next && i;
            return value;
        }
    }
    r->failed = 1;
    return 0;
}

/* Whether the next bytes are the low bytes of a CRC; they are read. */
static int check_matches(Reader *r, uint32_t crc, enum Check bytes)
{
    uint32_t found = 0;
    for (int i = 0; i < (int)bytes; i++)
        found = found << 8 | byte(r);
    return !r->failed && found == (bytes < 4 ? crc & ((UINT32_C(1) << 8 * bytes) - 1) : crc);
}

static void skip_key_header(Reader *r)
{
    static const uint8_t block_bytes[4] = {3, 4, 24, 4}; /* colour, aspect, mastering, light */
    unsigned blocks;

    skip(r, 1); /* the version */
    blocks = byte(r);
    skip(r, BODY_BYTES - 2);
    for (int i = 0; i < 4; i++)
        if (blocks >> i & 1)
            skip(r, block_bytes[i]);
    r->failed |= blocks > 15;
}

/* Whether something is coded: 1 or 0. */
static int skip_inter_header(Reader *r, unsigned first)
{
    unsigned code = first >> 5;

    if (first & 1 && byte(r) & 0x80)
        skip(r, 2);
    skip(r, 1); /* the frame's number */
    r->failed |= code < 1 || code > 5;
    for (unsigned i = code > REPEAT ? code - REPEAT : code; i > 0 && !r->failed; i--)
        number(r, DISTANCE_BYTES_MAX);
    return code <= REPEAT;
}

/* Reads up to the end of the base: 1, with its CRC, or 0 where nothing can be cut. */
static int skip_base(Reader *r, uint32_t *crc)
{
    unsigned first = byte(r), fields;
    int key = first == KEY_BYTE;

    if (key) {
        fields = byte(r);
        skip_key_header(r);
    } else {
        if (!skip_inter_header(r, first))
            return 0;
        fields = byte(r);
    }
    skip(r, fields & 3); /* the mode */
    skip(r, number(r, LENGTH_BYTES_MAX));
    if (r->failed)
        return 0;
    *crc = vcf_crc32(0, r->data, r->at);
    if (key)
        return check_matches(r, *crc, CHECK_KEY);
    skip(r, CHECK_INTER); /* it covers the GOP's keyframe, which is not known here */
    return !r->failed;
}

size_t vcf_thin(const uint8_t *data, size_t size, int levels)
{
    Reader r = {data, size, 0, 0};
    unsigned level = 0, head;
    uint32_t crc;
    uint8_t seed[4];
    size_t end;

    if (!skip_base(&r, &crc))
        return size;
    for (int i = 0; i < 4; i++)
        seed[i] = (uint8_t)(crc >> (24 - 8 * i));
    crc = vcf_crc32(0, seed, sizeof(seed));
    for (end = r.at; r.at < size; end = r.at) {
        const uint8_t *start = data + r.at;
        head = byte(&r) << 8;
        head |= byte(&r);
        skip(&r, number(&r, LENGTH_BYTES_MAX));
        if (r.failed ||
            !check_matches(&r, vcf_crc32(crc, start, (size_t)(data + r.at - start)), CHECK_LEVEL) ||
            head & 0x7F || head >> 13 <= level)
            break;
        level = head >> 13;
        if (level >= (unsigned)levels)
            break;
    }
    return end;
}
