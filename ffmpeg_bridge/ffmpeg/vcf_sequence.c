/*
 * Sequence header of a vcfilter stream
 *
 * Copyright (c) 2026 the vcfilter authors. SPDX-License-Identifier: MIT
 */
#include "vcf_sequence.h"

#include <string.h>

#define CHECK_BYTES 2
#define NAME_MAX_BYTES 32
#define CHROMATICITY_MAX 50000

enum Block { COLOR = 1, ASPECT = 2, MASTERING = 4, LIGHT = 8, NAME = 16, ALL_BLOCKS = 31 };

/* Big-endian integers of a buffer. After a read past the end everything is 0 and `failed` is set,
 * which is looked at once. */
typedef struct Reader {
    const uint8_t *data;
    size_t left;
    int failed;
} Reader;

static uint32_t take(Reader *r, size_t bytes)
{
    uint32_t value = 0;
    if (bytes > r->left) {
        r->failed = 1;
        r->left = 0;
        return 0;
    }
    for (size_t i = 0; i < bytes; i++)
        value = value << 8 | r->data[i];
    r->data += bytes;
    r->left -= bytes;
    return value;
}

uint32_t vcf_crc32(uint32_t crc, const uint8_t *data, size_t size)
{
    static const uint32_t table[16] = { /* of four bits */
        0x00000000, 0x1DB71064, 0x3B6E20C8, 0x26D930AC, 0x76DC4190, 0x6B6B51F4,
        0x4DB26158, 0x5005713C, 0xEDB88320, 0xF00F9344, 0xD6D6A3E8, 0xCB61B38C,
        0x9B64C2B0, 0x86D3D2D4, 0xA00AE278, 0xBDBDF21C,
    };
    crc = ~crc;
    for (size_t i = 0; i < size; i++) {
        crc = crc >> 4 ^ table[(crc ^ data[i]) & 15];
        crc = crc >> 4 ^ table[(crc ^ data[i] >> 4) & 15];
    }
    return ~crc;
}

static int ends_with_check(const uint8_t *data, size_t size)
{
    return size > 5 + CHECK_BYTES && (vcf_crc32(0, data, size - CHECK_BYTES) & 0xFFFF) ==
                                         (uint32_t)(data[size - 2] << 8 | data[size - 1]);
}

int vcf_sequence_version(const uint8_t *data, size_t size)
{
    return size >= 5 && !memcmp(data, "VCF1", 4) ? data[4] : -1;
}

static void read_mastering(Reader *r, VcfFormat *format)
{
    format->known |= VCF_MASTERING;
    for (int i = 0; i < 3; i++)
        for (int axis = 0; axis < 2; axis++)
            format->primaries[i][axis] = take(r, 2);
    for (int axis = 0; axis < 2; axis++)
        format->white_point[axis] = take(r, 2);
    for (int i = 0; i < 2; i++)
        format->luminance[i] = take(r, 4);
}

static void read_blocks(Reader *r, unsigned blocks, VcfSequence *sequence)
{
    VcfFormat *format = &sequence->format;
    format->color_primaries = format->color_trc = format->color_space = 2;
    if (blocks & COLOR) {
        format->color_primaries = (int)take(r, 1);
        format->color_trc = (int)take(r, 1);
        format->color_space = (int)take(r, 1);
    }
    format->sar_den = 1;
    if (blocks & ASPECT) {
        format->sar_num = (int)take(r, 2);
        format->sar_den = (int)take(r, 2);
    }
    if (blocks & MASTERING)
        read_mastering(r, format);
    if (blocks & LIGHT) {
        format->known |= VCF_CONTENT_LIGHT;
        format->max_content = take(r, 2);
        format->max_average = take(r, 2);
    }
    if (blocks & NAME) {
        size_t size = take(r, 1);
        if (size < 1 || size > NAME_MAX_BYTES || size > r->left) {
            r->failed = 1;
            return;
        }
        memcpy(sequence->name, r->data, size);
        r->data += size;
        r->left -= size;
    }
}

int vcf_size_allowed(const VcfFormat *format)
{
    return format->width >= 16 && format->width <= 4096 && format->height >= 16 &&
           format->height <= 4096 && format->width * format->height <= 4096 * 2304 &&
           (format->bit_depth == 8 || format->bit_depth == 10);
}

static int within(int value, int low, int high)
{
    return low <= value && value <= high;
}

int vcf_format_allowed(const VcfFormat *format)
{
    if (!vcf_size_allowed(format) || !within(format->sar_num, 0, 65535) ||
        !within(format->sar_den, 1, 65535) || !within(format->color_primaries, 0, 255) ||
        !within(format->color_trc, 0, 255) || !within(format->color_space, 0, 255) ||
        !within(format->color_range, 0, 2) || !within(format->chroma_location, 0, 6) ||
        !within(format->rotation, 0, 270) || format->rotation % 90 ||
        !within(format->mirrored, 0, 1) || !within(format->field_order, 0, 5) ||
        format->known > (VCF_MASTERING | VCF_CONTENT_LIGHT))
        return 0;
    if (format->known & VCF_MASTERING) {
        for (int axis = 0; axis < 2; axis++) {
            for (int i = 0; i < 3; i++)
                if (format->primaries[i][axis] > CHROMATICITY_MAX)
                    return 0;
            if (format->white_point[axis] > CHROMATICITY_MAX)
                return 0;
        }
        if (format->luminance[0] >= format->luminance[1])
            return 0;
    }
    return !(format->known & VCF_CONTENT_LIGHT) ||
           (format->max_content <= 65535 && format->max_average <= 65535);
}

enum VcfSequenceStatus vcf_sequence_read(VcfSequence *sequence, const uint8_t *data, size_t size)
{
    Reader r = {data, size, 0};
    VcfSequence found = {0};
    unsigned blocks, chroma, flags, order, slots;

    if (vcf_sequence_version(data, size) < 0)
        return VCF_SEQUENCE_DAMAGED;
    if (data[4] != VCF_SEQUENCE_VERSION) /* of each version it is known that a check comes last */
        return ends_with_check(data, size) || ends_with_check(data, size - 1)
                   ? VCF_SEQUENCE_OTHER_VERSION
                   : VCF_SEQUENCE_DAMAGED;
    take(&r, 4);
    take(&r, 1);
    blocks = take(&r, 1);
    for (int i = 0; i < 8; i++)
        found.model_id[i] = (uint8_t)take(&r, 1);
    found.architecture = (int)take(&r, 1);
    found.numerics = (int)take(&r, 1);
    found.format.width = (int)take(&r, 2);
    found.format.height = (int)take(&r, 2);
    chroma = take(&r, 1);
    flags = take(&r, 1);
    order = take(&r, 1);
    slots = take(&r, 1);
    found.reorder = (int)take(&r, 1);
    found.reach = (int)take(&r, 2);
    read_blocks(&r, blocks, &found);
    if (r.failed || r.left < CHECK_BYTES || !ends_with_check(data, size - r.left + CHECK_BYTES))
        return VCF_SEQUENCE_DAMAGED;

    found.format.bit_depth = (int)(chroma & 15);
    found.format.color_range = (int)(flags >> 6);
    found.format.chroma_location = (int)(flags >> 3 & 7);
    found.format.rotation = (int)(flags >> 1 & 3) * 90;
    found.format.mirrored = (int)(flags & 1);
    found.format.field_order = (int)(order >> 5);
    found.structure = (enum VcfStructure)(order >> 3 & 3);
    found.quality_levels = (int)(order & 7) + 1;
    found.slots = (int)(slots >> 4);
    if (blocks & ~(unsigned)ALL_BLOCKS || chroma >> 4 != 1 || found.structure > VCF_INTRA ||
        found.slots < 1 || found.slots > 8 || slots & 15 || !vcf_format_allowed(&found.format))
        return VCF_SEQUENCE_DAMAGED;
    *sequence = found;
    return VCF_SEQUENCE_OK;
}
