/* What the finish takes from luma and adds to it: blocks, and the finest bands. */
#ifndef VCFILTER_NATIVE_BANDS_H
#define VCFILTER_NATIVE_BANDS_H

#include <stddef.h>

/*
 * Planes are rows x columns floats, rows one after the other, both multiples of VCF_BLOCK; grids have
 * one value per block of VCF_BLOCK x VCF_BLOCK samples. A low-pass is 1 4 6 4 1 along one direction;
 * the border repeats. Bands 0 and 1 are what it takes from luma across and down; 2 and 3 what it
 * takes, its taps 2 apart, from `soft`. Every function returns 0, or -1 without memory.
 */
#define VCF_BLOCK 8
#define VCF_BLOCK_SAMPLES 64
#define VCF_BANDS 4

/* Each block's samples, one block after the other, less the mean of the nine blocks around, times a
 * factor. */
int vcf_blocks(const float *luma, size_t rows, size_t columns, float factor, float *blocks);

/*
 * soft: luma after a low-pass both ways. energy: a grid of each band, one after the other, of its
 * mean square in the nine blocks around.
 */
int vcf_bands(const float *luma, size_t rows, size_t columns, float *soft, float *energy);

/*
 * out = luma + gains * bands + factor * added, within 0 to 255. gains: a grid of each band, spread
 * bilinearly. added: samples of each block, blocks `pitch` floats apart.
 */
int vcf_add_bands(const float *luma, const float *soft, size_t rows, size_t columns,
                  const float *gains, const float *added, size_t pitch, float factor,
                  float *out);

#endif
