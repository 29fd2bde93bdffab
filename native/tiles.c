#include "tiles.h"

#include <stdlib.h>
#include <string.h>

#include "clones.h"

#define SIDE 6 /* values of a tile, each way */

/* Six lines of `count` values from six, `pitch` floats apart. */
VCF_CLONES
static void forward(const float *const *x, size_t count, float *restrict out, size_t pitch)
{
    const float *x0 = x[0], *x1 = x[1], *x2 = x[2], *x3 = x[3], *x4 = x[4], *x5 = x[5];
    for (size_t i = 0; i < count; i++) {
        float a = x4[i] - 4.0f * x2[i], b = x3[i] - 4.0f * x1[i];
        float c = x4[i] - x2[i], d = 2.0f * (x3[i] - x1[i]);
        out[i] = 4.0f * x0[i] - 5.0f * x2[i] + x4[i];
        out[pitch + i] = a + b;
        out[2 * pitch + i] = a - b;
        out[3 * pitch + i] = c + d;
        out[4 * pitch + i] = c - d;
        out[5 * pitch + i] = 4.0f * x1[i] - 5.0f * x3[i] + x5[i];
    }
}

/* Four lines from six that are `pitch` floats apart. */
VCF_CLONES
static void backward(const float *x, size_t count, size_t pitch, float *restrict out)
{
    for (size_t i = 0; i < count; i++) {
        float a = x[pitch + i] + x[2 * pitch + i], b = x[pitch + i] - x[2 * pitch + i];
        float c = x[3 * pitch + i] + x[4 * pitch + i], d = x[3 * pitch + i] - x[4 * pitch + i];
        out[i] = x[i] + a + c;
        out[count + i] = b + 2.0f * d;
        out[2 * count + i] = a + 4.0f * c;
        out[3 * count + i] = b + 8.0f * d + x[5 * pitch + i];
    }
}

VCF_CLONES
static void scale(const float *x, const float *gain, const float *shift, size_t count,
                  float *restrict out)
{
    for (size_t i = 0; i < count; i++)
        out[i] = x[i] * gain[i] + shift[i];
}

int vcf_tiles(const float *maps, size_t rows, size_t columns, size_t channels, size_t first,
              size_t last, float *tiles)
{
    size_t wide = (columns + VCF_TILE - 1) / VCF_TILE;
    size_t row = columns * channels, line = (wide * VCF_TILE + 2) * channels;
    /* Lines that are already transformed downwards, zeros before and after; a row of zeros. */
    float *lines = calloc(SIDE * line + row, sizeof(float));
    if (!lines)
        return -1;
    const float *x[SIDE];
    for (size_t r = first; r < last; r++) {
        for (size_t k = 0; k < SIDE; k++) {
            size_t at = r * VCF_TILE + k; /* one more than the row */
            x[k] = at >= 1 && at <= rows ? maps + (at - 1) * row : lines + SIDE * line;
        }
        forward(x, row, lines + channels, line);
        for (size_t c = 0; c < wide; c++, tiles += VCF_TILE_VALUES * channels)
            for (size_t n = 0; n < SIDE; n++) {
                for (size_t k = 0; k < SIDE; k++)
                    x[k] = lines + n * line + (c * VCF_TILE + k) * channels;
                forward(x, channels, tiles + n * SIDE * channels, channels);
            }
    }
    free(lines);
    return 0;
}

int vcf_untile(const float *tiles, size_t rows, size_t columns, size_t channels, size_t first,
               size_t last, const float *gain, const float *shift, float *maps)
{
    size_t line = SIDE * channels;
    float *lines = malloc((VCF_TILE * line + VCF_TILE * channels) * sizeof(float));
    if (!lines)
        return -1;
    float *found = lines + VCF_TILE * line;
    for (size_t r = first * VCF_TILE; r < last * VCF_TILE; r += VCF_TILE)
        for (size_t c = 0; c < columns; c += VCF_TILE, tiles += VCF_TILE_VALUES * channels) {
            backward(tiles, line, line, lines);
            for (size_t n = 0; n < VCF_TILE && r + n < rows; n++) {
                backward(lines + n * line, channels, channels, found);
                for (size_t k = 0; k < VCF_TILE && c + k < columns; k++)
                    scale(found + k * channels, gain, shift, channels,
                          maps + ((r + n) * columns + c + k) * channels);
            }
        }
    free(lines);
    return 0;
}
