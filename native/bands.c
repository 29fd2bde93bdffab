#include "bands.h"

#include <stdlib.h>
#include <string.h>

#include "clones.h"

#define FAR 2                /* taps of soft are so far apart */
#define REACH (2 * FAR)      /* samples before and after a line that repeat its ends */
#define HALF (VCF_BLOCK / 2) /* samples from a block's border to its middle */
#define HIGHEST 255.0f

static float low(float a, float b, float c, float d, float e)
{
    return (a + e + 4.0f * (b + d) + 6.0f * c) * 0.0625f;
}

VCF_CLONES
static void low_pass(const float *const *taps, size_t columns, float *restrict out)
{
    const float *a = taps[0], *b = taps[1], *c = taps[2], *d = taps[3], *e = taps[4];
    for (size_t i = 0; i < columns; i++)
        out[i] = low(a[i], b[i], c[i], d[i], e[i]);
}

VCF_CLONES
static void high_pass(const float *const *taps, size_t columns, float *restrict out)
{
    const float *a = taps[0], *b = taps[1], *c = taps[2], *d = taps[3], *e = taps[4];
    for (size_t i = 0; i < columns; i++)
        out[i] = c[i] - low(a[i], b[i], c[i], d[i], e[i]);
}

/* Rows around one, `distance` apart; those outside repeat the border. */
static void down(const float *plane, size_t rows, size_t columns, size_t row, size_t distance,
                 const float **taps)
{
    for (size_t k = 0; k < 5; k++) {
        size_t at = row + k * distance, ahead = 2 * distance;
        at = at < ahead ? 0 : at - ahead;
        taps[k] = plane + (at < rows ? at : rows - 1) * columns;
    }
}

/* A line's samples to its left and right; REACH floats before and after it are written. */
static void across(float *line, size_t columns, size_t distance, const float **taps)
{
    for (size_t k = 1; k <= REACH; k++) {
        *(line - k) = line[0];
        line[columns + k - 1] = line[columns - 1];
    }
    for (size_t k = 0; k < 5; k++)
        taps[k] = line + k * distance - 2 * distance;
}

/* VCF_BANDS lines of a row's bands. line: room for a row between REACH floats each way. */
static void bands_of(const float *luma, const float *soft, size_t rows, size_t columns, size_t row,
                     float *line, float *found)
{
    const float *taps[5], *planes[] = {luma, soft};
    for (size_t n = 0; n < 2; n++, found += 2 * columns) {
        size_t distance = n ? FAR : 1;
        memcpy(line, planes[n] + row * columns, columns * sizeof(float));
        across(line, columns, distance, taps);
        high_pass(taps, columns, found);
        down(planes[n], rows, columns, row, distance, taps);
        high_pass(taps, columns, found + columns);
    }
}

VCF_CLONES
static void add(const float *x, size_t count, float *restrict sums)
{
    for (size_t i = 0; i < count; i++)
        sums[i] += x[i];
}

VCF_CLONES
static void add_squares(const float *x, size_t count, float *restrict sums)
{
    for (size_t i = 0; i < count; i++)
        sums[i] += x[i] * x[i];
}

/* Means of blocks from sums over their rows. */
static void means(const float *sums, size_t blocks, float *out)
{
    for (size_t n = 0; n < blocks; n++, sums += VCF_BLOCK) {
        float sum = 0.0f;
        for (size_t k = 0; k < VCF_BLOCK; k++)
            sum += sums[k];
        out[n] = sum / VCF_BLOCK_SAMPLES;
    }
}

/* Means of each value of a grid and those around it inside. line: room for columns + 2. */
VCF_CLONES
static void around(const float *grid, size_t rows, size_t columns, float *line, float *restrict out)
{
    line[0] = line[columns + 1] = 0.0f;
    for (size_t row = 0; row < rows; row++, out += columns) {
        size_t first = row ? row - 1 : 0, last = row + 1 < rows ? row + 1 : row;
        float tall = (float)(last - first + 1);
        memcpy(line + 1, grid + first * columns, columns * sizeof(float));
        for (size_t n = first + 1; n <= last; n++)
            for (size_t i = 0; i < columns; i++)
                line[i + 1] += grid[n * columns + i];
        for (size_t i = 0; i < columns; i++)
            out[i] = (line[i] + line[i + 1] + line[i + 2]) / (3.0f * tall);
        float ends = columns > 1 ? 1.5f : 3.0f; /* 2 or 1 instead of 3 */
        out[0] *= ends;
        if (columns > 1)
            out[columns - 1] *= ends;
    }
}

VCF_CLONES
static void write_blocks(const float *x, const float *levels, size_t blocks, float factor,
                         float *restrict out)
{
    for (size_t n = 0; n < blocks; n++)
        for (size_t k = 0; k < VCF_BLOCK; k++)
            out[n * VCF_BLOCK_SAMPLES + k] = (x[n * VCF_BLOCK + k] - levels[n]) * factor;
}

int vcf_blocks(const float *luma, size_t rows, size_t columns, float factor, float *blocks)
{
    size_t h = rows / VCF_BLOCK, w = columns / VCF_BLOCK;
    float *grid = malloc((2 * h * w + columns + 2) * sizeof(float));
    if (!grid)
        return -1;
    float *levels = grid + h * w, *line = levels + h * w;
    for (size_t n = 0; n < h; n++) {
        memset(line, 0, columns * sizeof(float));
        for (size_t k = 0; k < VCF_BLOCK; k++)
            add(luma + (n * VCF_BLOCK + k) * columns, columns, line);
        means(line, w, grid + n * w);
    }
    around(grid, h, w, line, levels);
    for (size_t row = 0; row < rows; row++)
        write_blocks(luma + row * columns, levels + row / VCF_BLOCK * w, w, factor,
                     blocks + row / VCF_BLOCK * w * VCF_BLOCK_SAMPLES + row % VCF_BLOCK * VCF_BLOCK);
    free(grid);
    return 0;
}

int vcf_bands(const float *luma, size_t rows, size_t columns, float *soft, float *energy)
{
    size_t h = rows / VCF_BLOCK, w = columns / VCF_BLOCK;
    float *grids = malloc((VCF_BANDS * (h * w + 2 * columns) + columns + 2 * REACH) * sizeof(float));
    if (!grids)
        return -1;
    float *found = grids + VCF_BANDS * h * w, *sums = found + VCF_BANDS * columns;
    float *line = sums + VCF_BANDS * columns + REACH;
    const float *taps[5];
    for (size_t row = 0; row < rows; row++) {
        down(luma, rows, columns, row, 1, taps);
        low_pass(taps, columns, line);
        across(line, columns, 1, taps);
        low_pass(taps, columns, soft + row * columns);
    }
    for (size_t n = 0; n < h; n++) {
        memset(sums, 0, VCF_BANDS * columns * sizeof(float));
        for (size_t k = 0; k < VCF_BLOCK; k++) {
            bands_of(luma, soft, rows, columns, n * VCF_BLOCK + k, line, found);
            add_squares(found, VCF_BANDS * columns, sums);
        }
        for (size_t b = 0; b < VCF_BANDS; b++)
            means(sums + b * columns, w, grids + (b * h + n) * w);
    }
    for (size_t b = 0; b < VCF_BANDS; b++)
        around(grids + b * h * w, h, w, line, energy + b * h * w);
    free(grids);
    return 0;
}

/* A grid's row bilinearly between the middles of its blocks. */
VCF_CLONES
static void spread(const float *x, size_t blocks, float *restrict out)
{
    for (size_t k = 0; k < HALF; k++) {
        out[k] = x[0];
        out[blocks * VCF_BLOCK - 1 - k] = x[blocks - 1];
    }
    for (size_t n = 0; n + 1 < blocks; n++)
        for (size_t k = 0; k < VCF_BLOCK; k++)
            out[n * VCF_BLOCK + HALF + k] =
                x[n] + (x[n + 1] - x[n]) * (((float)k + 0.5f) / VCF_BLOCK);
}

/* out = x + factor * out + bands times gains between those above and below. */
VCF_CLONES
static void add_row(const float *x, const float *bands, const float *above, const float *below,
                    float share, size_t columns, float factor, float *restrict out)
{
    for (size_t i = 0; i < columns; i++) {
        float sum = x[i] + factor * out[i];
        for (size_t b = 0; b < VCF_BANDS; b++) {
            size_t at = b * columns + i;
            sum += (above[at] + (below[at] - above[at]) * share) * bands[at];
        }
        sum = sum > 0.0f ? sum : 0.0f;
        out[i] = sum < HIGHEST ? sum : HIGHEST;
    }
}

int vcf_add_bands(const float *luma, const float *soft, size_t rows, size_t columns,
                  const float *gains, const float *added, size_t pitch, float factor,
                  float *out)
{
    size_t h = rows / VCF_BLOCK, w = columns / VCF_BLOCK, lines = VCF_BANDS * columns;
    float *found = malloc((3 * lines + columns + 2 * REACH) * sizeof(float));
    if (!found)
        return -1;
    float *above = found + lines, *below = above + lines, *line = below + lines + REACH;
    for (size_t row = 0; row < rows; row++) {
        size_t phase = (row + HALF) % VCF_BLOCK, next = (row + HALF) / VCF_BLOCK;
        if (!row || !phase) { /* the middle of a block's rows is passed */
            float *last = above;
            above = below;
            below = last;
            for (size_t b = 0; b < VCF_BANDS; b++)
                spread(gains + (b * h + (next < h ? next : h - 1)) * w, w, below + b * columns);
            if (!row)
                memcpy(above, below, lines * sizeof(float));
        }
        float *to = out + row * columns;
        const float *from = added + row / VCF_BLOCK * w * pitch + row % VCF_BLOCK * VCF_BLOCK;
        for (size_t n = 0; n < w; n++)
            memcpy(to + n * VCF_BLOCK, from + n * pitch, VCF_BLOCK * sizeof(float));
        bands_of(luma, soft, rows, columns, row, line, found);
        add_row(luma + row * columns, found, above, below, ((float)phase + 0.5f) / VCF_BLOCK,
                columns, factor, to);
    }
    free(found);
    return 0;
}
