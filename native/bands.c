#include "bands.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "clones.h"

#define FAR 2                /* taps of soft are so far apart */
#define REACH (2 * FAR)      /* samples before and after a line that repeat its ends */
#define HALF (VCF_BLOCK / 2) /* samples from a block's border to its middle */
#define HIGHEST 255.0f
#define CHANGE (VCF_BLOCK_SAMPLES + VCF_BANDS)

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
static void compress(float *x, size_t count, float factor)
{
    for (size_t i = 0; i < count; i++) {
        float y = x[i] * factor;
        x[i] = y / (1.0f + fabsf(y) * (1.0f / VCF_LIMIT));
    }
}

int vcf_coefficients(const float *luma, size_t rows, size_t columns, const float *basis,
                     float factor, float *out)
{
    size_t h = rows / VCF_BLOCK, w = columns / VCF_BLOCK, block = VCF_BLOCK * columns;
    float *grid = calloc(2 * h * w + block + columns + 2, sizeof(float));
    if (!grid)
        return -1;
    float *levels = grid + h * w, *lines = levels + h * w, *line = lines + block;
    for (size_t n = 0; n < h; n++) {
        memset(line, 0, columns * sizeof(float));
        for (size_t k = 0; k < VCF_BLOCK; k++)
            add(luma + n * block + k * columns, columns, line);
        means(line, w, grid + n * w);
    }
    around(grid, h, w, line, levels);
    for (size_t n = 0; n < h; n++) {
        float *to = out + n * w * VCF_BLOCK_SAMPLES;
        vcf_transform(luma + n * block, basis, columns, lines, to);
        for (size_t i = 0; i < w; i++)
            to[i * VCF_BLOCK_SAMPLES] = (grid[n * w + i] - levels[n * w + i]) * VCF_BLOCK;
        compress(to, w * VCF_BLOCK_SAMPLES, factor);
    }
    free(grid);
    return 0;
}

/* Luma after a low-pass both ways. line: room for a row between REACH floats each way. */
static void soften(const float *luma, size_t rows, size_t columns, float *line, float *out)
{
    const float *taps[5];
    for (size_t row = 0; row < rows; row++, out += columns) {
        down(luma, rows, columns, row, 1, taps);
        low_pass(taps, columns, line);
        across(line, columns, 1, taps);
        low_pass(taps, columns, out);
    }
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

/* out = factor * out + bands times gains between those above and below. */
VCF_CLONES
static void change_row(const float *bands, const float *above, const float *below, float share,
                       size_t columns, float factor, float *restrict out)
{
    for (size_t i = 0; i < columns; i++) {
        float sum = factor * out[i];
        for (size_t b = 0; b < VCF_BANDS; b++) {
            size_t at = b * columns + i;
            sum += (above[at] + (below[at] - above[at]) * share) * bands[at];
        }
        out[i] = sum;
    }
}

/* Taps without what alternates from one to the next. */
VCF_CLONES
static void without_alternation(const float *const *taps, size_t count, float *restrict out)
{
    for (size_t i = 0; i < count; i++)
        out[i] = (10.0f * taps[2][i] + 4.0f * (taps[1][i] + taps[3][i]) -
                  (taps[0][i] + taps[4][i])) / 16.0f;
}

VCF_CLONES
static void add_row(const float *x, size_t columns, float *restrict out)
{
    for (size_t i = 0; i < columns; i++) {
        float sum = x[i] + out[i];
        sum = sum > 0.0f ? sum : 0.0f;
        out[i] = sum < HIGHEST ? sum : HIGHEST;
    }
}

/* What vcf_add_bands works with. */
typedef struct {
    const float *luma;
    float *soft; /* luma after a low-pass both ways */
    size_t rows, columns;
    float *gains; /* a grid of each band */
    float *found; /* VCF_BANDS lines of bands */
    float *above, *below; /* VCF_BANDS lines of gains each */
    float *line; /* room for a row between REACH floats each way */
} room;

/* Mean squares of bands in the blocks, then those around each, then gains. */
static void find_gains(const room *r, const float *change, const float *usual, const float *faint)
{
    size_t h = r->rows / VCF_BLOCK, w = r->columns / VCF_BLOCK, lines = VCF_BANDS * r->columns;
    float *sums = r->above, *grids = r->gains + VCF_BANDS * h * w;
    for (size_t n = 0; n < h; n++) {
        memset(sums, 0, lines * sizeof(float));
        for (size_t k = 0; k < VCF_BLOCK; k++) {
            bands_of(r->luma, r->soft, r->rows, r->columns, n * VCF_BLOCK + k, r->line, r->found);
            add_squares(r->found, lines, sums);
        }
        for (size_t b = 0; b < VCF_BANDS; b++)
            means(sums + b * r->columns, w, grids + (b * h + n) * w);
    }
    for (size_t b = 0; b < VCF_BANDS; b++) {
        float *gains = r->gains + b * h * w;
        const float *learned = change + VCF_BLOCK_SAMPLES + b;
        around(grids + b * h * w, h, w, r->line, gains);
        for (size_t n = 0; n < h * w; n++)
            gains[n] = learned[n * CHANGE] + usual[b] * (faint[b] / (faint[b] + gains[n]));
    }
}

int vcf_add_bands(const float *luma, size_t rows, size_t columns, const float *change, float factor,
                  const float *usual, const float *faint, float *out)
{
    size_t h = rows / VCF_BLOCK, w = columns / VCF_BLOCK, lines = VCF_BANDS * columns;
    size_t grids = 2 * VCF_BANDS * h * w;
    room r = {.luma = luma, .rows = rows, .columns = columns};
    r.soft = malloc((rows * columns + grids + 3 * lines + columns + 2 * REACH) * sizeof(float));
    if (!r.soft)
        return -1;
    r.gains = r.soft + rows * columns;
    r.found = r.gains + grids;
    r.above = r.found + lines;
    r.below = r.above + lines;
    r.line = r.below + lines + REACH;
    soften(luma, rows, columns, r.line, r.soft);
    find_gains(&r, change, usual, faint);
    for (size_t row = 0; row < rows; row++) {
        float *own = out + row * columns;
        size_t phase = (row + HALF) % VCF_BLOCK, next = (row + HALF) / VCF_BLOCK;
        if (!row || !phase) { /* the middle of a block's rows is passed */
            float *last = r.above;
            r.above = r.below;
            r.below = last;
            for (size_t b = 0; b < VCF_BANDS; b++)
                spread(r.gains + (b * h + (next < h ? next : h - 1)) * w, w, r.below + b * columns);
            if (!row)
                memcpy(r.above, r.below, lines * sizeof(float));
        }
        const float *added = change + row / VCF_BLOCK * w * CHANGE + row % VCF_BLOCK * VCF_BLOCK;
        for (size_t n = 0; n < w; n++)
            memcpy(own + n * VCF_BLOCK, added + n * CHANGE, VCF_BLOCK * sizeof(float));
        bands_of(luma, r.soft, rows, columns, row, r.line, r.found);
        change_row(r.found, r.above, r.below, ((float)phase + 0.5f) / VCF_BLOCK, columns, factor,
                   own);
    }
    const float *taps[5];
    float *changes = r.soft; /* which is not needed any more */
    for (size_t row = 0; row < rows; row++) {
        memcpy(r.line, out + row * columns, columns * sizeof(float));
        across(r.line, columns, 1, taps);
        without_alternation(taps, columns, changes + row * columns);
    }
    for (size_t row = 0; row < rows; row++, luma += columns, out += columns) {
        down(changes, rows, columns, row, 1, taps);
        without_alternation(taps, columns, out);
        add_row(luma, columns, out);
    }
    free(r.soft);
    return 0;
}
