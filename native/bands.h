/* What the finish takes from luma and adds to it: blocks' coefficients, and the finest bands. */
#ifndef VCFILTER_NATIVE_BANDS_H
#define VCFILTER_NATIVE_BANDS_H

#include <stddef.h>

#include "blocks.h"

/*
 * Planes are rows x columns floats, rows one after the other, both multiples of VCF_BLOCK. Both
 * functions return 0, or -1 without memory.
 */
#define VCF_BANDS 4
#define VCF_LIMIT 8.0f

/*
 * Coefficients of each block, one block after the other, its rows of frequencies one after the other:
 * basis * samples * transposed basis (VCF_BLOCK x VCF_BLOCK, an orthonormal DCT), of the mean less
 * that of the nine blocks around, times a factor; then x / (1 + |x| / VCF_LIMIT) of each.
 */
int vcf_coefficients(const float *luma, size_t rows, size_t columns, const float *basis,
                     float factor, float *out);

/*
 * out = luma + factor * added + gains * bands, within 0 to 255; what is added is without what
 * alternates from one sample to the next: it goes through -1 4 10 4 -1 both ways.
 *
 * change: of each block, one after the other, VCF_BLOCK_SAMPLES that are added and VCF_BANDS gains.
 * To a band's gain comes usual * faint / (faint + energy), by band, where energy is its mean square
 * in the nine blocks around; gains are spread bilinearly. A low-pass is 1 4 6 4 1 along one
 * direction, the border repeats. Bands 0 and 1 are what it takes from luma across and down; 2 and 3
 * what it takes, its taps 2 apart, from luma that went through it both ways.
 */
int vcf_add_bands(const float *luma, size_t rows, size_t columns, const float *change, float factor,
                  const float *usual, const float *faint, float *out);

#endif
