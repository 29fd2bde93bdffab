/* What turns a 3x3 convolution into 36 products of matrices, with a quarter of the multiplications. */
#ifndef VCFILTER_NATIVE_TILES_H
#define VCFILTER_NATIVE_TILES_H

#include <stddef.h>

/*
 * Winograd's F(4x4, 3x3) (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks",
 * CVPR 2016). Maps are rows x columns positions, their channels one after the other, zeros around.
 * They are cut into tiles of 4x4 positions, line by line; a tile has 6x6 values of each channel, the
 * channels of each one after the other. Both functions work on the lines of tiles from first to
 * before last, `tiles` are those lines alone. They return 0, or -1 without memory.
 */
#define VCF_TILE 4
#define VCF_TILE_VALUES 36

/* tiles: what the matrices are multiplied with, of the positions of a tile and one around it. */
int vcf_tiles(const float *maps, size_t rows, size_t columns, size_t channels, size_t first,
              size_t last, float *tiles);

/* maps = gain * (what tiles of products stand for) + shift, both by channel. */
int vcf_untile(const float *tiles, size_t rows, size_t columns, size_t channels, size_t first,
               size_t last, const float *gain, const float *shift, float *maps);

#endif
