/*
 * Sequence header of a vcfilter stream: the track's extradata (docs/reference/bitstream.md). Read here so
 * that probing a file needs no worker.
 *
 * Copyright (c) 2026 the vcfilter authors. SPDX-License-Identifier: MIT
 */
#ifndef VCF_SEQUENCE_H
#define VCF_SEQUENCE_H

#include "vcf_worker.h"

#define VCF_SEQUENCE_VERSION 2

enum VcfSequenceStatus {
    VCF_SEQUENCE_OK = 0,
    VCF_SEQUENCE_DAMAGED,      /* cut short, a wrong check, or a value outside what is allowed */
    VCF_SEQUENCE_OTHER_VERSION /* intact, but of another bitstream version */
};

enum VcfStructure { VCF_RANDOM_ACCESS, VCF_LOW_DELAY, VCF_INTRA };

typedef struct VcfSequence {
    VcfFormat format;
    uint8_t model_id[8];
    int architecture, numerics;
    enum VcfStructure structure;
    int quality_levels; /* 1 to 8 */
    int slots;          /* places for reference frames, 1 to 8 */
    int reorder;        /* frames that a decoder may have to hold before it shows one */
    int reach;          /* largest distance to a reference, in frames */
    char name[33];      /* of the model, UTF-8; empty if it is not told */
} VcfSequence;

/* CRC-32 as of zlib, of bytes that follow those of a CRC; 0 of none. */
uint32_t vcf_crc32(uint32_t crc, const uint8_t *data, size_t size);

/* Whether a size and depth can be coded: 1 or 0. */
int vcf_size_allowed(const VcfFormat *format);

/* Whether all of a format's values are within their bounds: 1 or 0. */
int vcf_format_allowed(const VcfFormat *format);

/* The version that a sequence header names; -1 if the bytes are none. */
int vcf_sequence_version(const uint8_t *data, size_t size);

/* Bytes behind the header are ignored: Matroska and AVI pad it to an even length. *sequence is
 * only written with VCF_SEQUENCE_OK. */
enum VcfSequenceStatus vcf_sequence_read(VcfSequence *sequence, const uint8_t *data, size_t size);

#endif
