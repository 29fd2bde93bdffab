/*
 * Quality levels of a packet of a vcfilter stream (docs/reference/bitstream.md)
 *
 * Copyright (c) 2026 the vcfilter authors. SPDX-License-Identifier: MIT
 */
#ifndef VCF_THIN_H
#define VCF_THIN_H

#include <stddef.h>
#include <stdint.h>

/* How many of a packet's bytes, counted from its start, hold its lowest `levels` (1 or more) quality
 * levels: what is cut behind them need not be decoded or copied. Levels behind a damaged one count
 * as cut. The whole size for what is no packet, or is damaged before its levels. */
size_t vcf_thin(const uint8_t *data, size_t size, int levels);

#endif
