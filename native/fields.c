#include "fields.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "clones.h"

#define LANES 8 /* samples or positions that are worked on together */

typedef float v4 __attribute__((vector_size(16)));
typedef float lanes __attribute__((vector_size(LANES * sizeof(float))));
/* Floats anywhere in memory, as vectors. Macros: a function that gives a vector is not compiled for the
 * instruction set of the one that it becomes a part of. */
typedef float any_v4 __attribute__((vector_size(16), aligned(sizeof(float)), may_alias));
typedef float any_lanes
    __attribute__((vector_size(LANES * sizeof(float)), aligned(sizeof(float)), may_alias));
#define V4_AT(p) (*(const any_v4 *)(p))
#define LANES_AT(p) (*(any_lanes *)(p))

static size_t within(ptrdiff_t i, size_t count)
{
    return i < 0 ? 0 : (size_t)i < count ? (size_t)i : count - 1;
}

/* Where a sample lies between two positions of a grid: the first, and the share of the second. */
static ptrdiff_t between(size_t i, size_t factor, float *share)
{
    ptrdiff_t twice = 2 * (ptrdiff_t)i + 1 - (ptrdiff_t)factor, size = 2 * (ptrdiff_t)factor;
    ptrdiff_t first = twice < 0 ? -1 : twice / size;
    *share = (float)(twice - first * size) / (float)size;
    return first;
}

/* One row of samples of a field, interpolated. line: room for a row of positions. */
VCF_CLONES
static void enlarged_row(const float *field, size_t rows, size_t columns, size_t factor, size_t row,
                         float scale, float *line, float *out)
{
    float share;
    ptrdiff_t first = between(row, factor, &share);
    const float *top = field + within(first, rows) * columns;
    const float *bottom = field + within(first + 1, rows) * columns;
    for (size_t i = 0; i < columns; i++)
        line[i + 1] = scale * (top[i] + share * (bottom[i] - top[i]));
    line[0] = line[1];
    line[columns + 1] = line[columns];
    size_t half = factor / 2;
    for (size_t k = 0; k < half; k++) {
        out[k] = line[0];
        out[columns * factor - 1 - k] = line[columns];
    }
    for (size_t i = 1; i < columns; i++) {
        float left = line[i], step = (line[i + 1] - left) / (float)factor;
        float *at = out + i * factor - half;
        v4 places = {0.5f, 1.5f, 2.5f, 3.5f};
        for (size_t k = 0; k < factor; k += 4, places += 4.0f) {
            v4 found = left + step * places;
            memcpy(at + k, &found, sizeof(found));
        }
    }
}

#define MOVED 32 /* samples whose places are found together */

/* Of samples: their first taps, and weights of taps at -1, 0, 1, 2 across, then down. */
typedef struct {
    int x[MOVED], y[MOVED];
    float weights[8][MOVED];
} places;

/* Bicubic weights of a share of the way from tap 0 to tap 1, a = -0.75; tap n's in at[n * MOVED]. */
static inline void cubic_weights(float t, float *at)
{
    float rest = 1.0f - t;
    at[0] = -0.75f * t * rest * rest;
    at[MOVED] = (1.25f * t - 2.25f) * t * t + 1.0f;
    at[2 * MOVED] = (1.25f * rest - 2.25f) * rest * rest + 1.0f;
    at[3 * MOVED] = -0.75f * rest * t * t;
}

/* first: of the samples in their row. rows, columns, zoom: as of cubic_row. */
VCF_CLONES
static void find_places(size_t zoom, size_t rows, size_t columns, size_t row, size_t first,
                        size_t count, const float *restrict dx, const float *restrict dy,
                        places *restrict found)
{
    float far_x = (float)columns + 4.0f, far_y = (float)rows + 4.0f, times = (float)zoom;
    int x = (int)(zoom * first) - 1, y = (int)(zoom * row) - 1, step = (int)zoom;
    for (size_t i = 0; i < count; i++) {
        float mx = times * dx[i], my = times * dy[i];
        mx = mx > -far_x ? mx : -far_x;
        my = my > -far_y ? my : -far_y;
        mx = mx < far_x ? mx : far_x;
        my = my < far_y ? my : far_y;
        int wx = (int)mx, wy = (int)my; /* towards zero; one less for what is below */
        wx -= mx < (float)wx;
        wy -= my < (float)wy;
        cubic_weights(mx - (float)wx, found->weights[0] + i);
        cubic_weights(my - (float)wy, found->weights[4] + i);
        found->x[i] = x + step * (int)i + wx;
        found->y[i] = y + wy;
    }
}

/* A sample whose taps may lie outside, where the border repeats. */
static float cubic_at_border(const float *plane, size_t rows, size_t columns, const places *at,
                             size_t i)
{
    float sum = 0.0f;
    for (int n = 0; n < 4; n++) {
        float line = 0.0f;
        size_t x = within((ptrdiff_t)at->x[i] + n, columns);
        for (int k = 0; k < 4; k++)
            line += plane[within((ptrdiff_t)at->y[i] + k, rows) * columns + x] *
                    at->weights[4 + k][i];
        sum += line * at->weights[n][i];
    }
    return sum;
}

/* Taps of two samples. */
#define TAPS_OF(a, b) __builtin_shufflevector(V4_AT(a), V4_AT(b), 0, 1, 2, 3, 4, 5, 6, 7)

#define HALVES(w, n) __builtin_shufflevector(w, w, n, n, n, n, n + 4, n + 4, n + 4, n + 4)

/* The four columns of the taps of samples n and n + 4 of eight, each summed up; down: weights. */
#define COLUMNS(n)                                                                                 \
    (TAPS_OF(from[n], from[n + 4]) * HALVES(down[0], n) +                                          \
     TAPS_OF(from[n] + columns, from[n + 4] + columns) * HALVES(down[1], n) +                      \
     TAPS_OF(from[n] + 2 * columns, from[n + 4] + 2 * columns) * HALVES(down[2], n) +              \
     TAPS_OF(from[n] + 3 * columns, from[n + 4] + 3 * columns) * HALVES(down[3], n))

/* Samples i to i + 7, whose taps lie inside. */
VCF_CLONES
static void cubic_inside(const float *plane, size_t columns, const places *at, size_t i, float *out)
{
    const float *from[LANES];
    lanes across[4], down[4];
    for (size_t k = 0; k < LANES; k++)
        from[k] = plane + at->y[i + k] * (int)columns + at->x[i + k];
    for (size_t k = 0; k < 4; k++) {
        memcpy(&across[k], at->weights[k] + i, sizeof(lanes));
        memcpy(&down[k], at->weights[4 + k] + i, sizeof(lanes));
    }
    lanes a = COLUMNS(0), b = COLUMNS(1), c = COLUMNS(2), d = COLUMNS(3);
    lanes ab = __builtin_shufflevector(a, b, 0, 8, 1, 9, 4, 12, 5, 13);
    lanes cd = __builtin_shufflevector(c, d, 0, 8, 1, 9, 4, 12, 5, 13);
    lanes ab_rest = __builtin_shufflevector(a, b, 2, 10, 3, 11, 6, 14, 7, 15);
    lanes cd_rest = __builtin_shufflevector(c, d, 2, 10, 3, 11, 6, 14, 7, 15);
    lanes sum = __builtin_shufflevector(ab, cd, 0, 1, 8, 9, 4, 5, 12, 13) * across[0];
    sum += __builtin_shufflevector(ab, cd, 2, 3, 10, 11, 6, 7, 14, 15) * across[1];
    sum += __builtin_shufflevector(ab_rest, cd_rest, 0, 1, 8, 9, 4, 5, 12, 13) * across[2];
    sum += __builtin_shufflevector(ab_rest, cd_rest, 2, 3, 10, 11, 6, 7, 14, 15) * across[3];
    memcpy(out, &sum, sizeof(sum));
}

/* rows, columns: of the plane, zoom times as many as those of dx, dy and out. */
static void cubic_row(const float *plane, size_t zoom, size_t rows, size_t columns, size_t row,
                      const float *dx, const float *dy, float *out)
{
    unsigned far_x = columns < 4 || rows * columns > INT_MAX ? 0 : (unsigned)columns - 3;
    unsigned far_y = rows < 4 ? 0 : (unsigned)rows - 3;
    size_t count = columns / zoom;
    places at;
    for (size_t first = 0; first < count; first += MOVED) {
        size_t some = count - first < MOVED ? count - first : MOVED;
        find_places(zoom, rows, columns, row, first, some, dx + first, dy + first, &at);
        for (size_t i = 0; i < some; i += LANES) {
            size_t end = some - i < LANES ? some : i + LANES;
            int inside = end == i + LANES;
            for (size_t k = i; k < end; k++)
                inside &= ((unsigned)at.x[k] < far_x) & ((unsigned)at.y[k] < far_y);
            if (inside)
                cubic_inside(plane, columns, &at, i, out + first + i);
            for (size_t k = i; !inside && k < end; k++)
                out[first + k] = cubic_at_border(plane, rows, columns, &at, k);
        }
    }
}

VCF_CLONES
static void linear_row(const float *plane, size_t rows, size_t columns, size_t row, const float *dx,
                       const float *dy, float *out)
{
    float last_x = (float)(columns - 1), last_y = (float)(rows - 1), low_y = -(float)row;
    float high_y = last_y + low_y;
    int at[MOVED], right[MOVED], below[MOVED], width = (int)columns, height = (int)rows;
    float across[MOVED], down[MOVED];
    for (size_t first = 0; first < columns; first += MOVED) {
        size_t some = columns - first < MOVED ? columns - first : MOVED;
        for (size_t i = 0; i < some; i++) {
            /* Clipped as displacements: their fractions are more exact than a place's. */
            float low_x = -(float)(int)(first + i), high_x = last_x + low_x;
            float mx = dx[first + i], my = dy[first + i];
            mx = mx > low_x ? mx : low_x;
            my = my > low_y ? my : low_y;
            mx = mx < high_x ? mx : high_x;
            my = my < high_y ? my : high_y;
            int wx = (int)mx, wy = (int)my;
            wx -= mx < (float)wx;
            wy -= my < (float)wy;
            int x = (int)(first + i) + wx, y = (int)row + wy;
            across[i] = mx - (float)wx;
            down[i] = my - (float)wy;
            at[i] = y * width + x;
            right[i] = x + 1 < width;
            below[i] = y + 1 < height ? width : 0;
        }
        for (size_t i = 0; i < some; i++) {
            float a = plane[at[i]], b = plane[at[i] + right[i]];
            float c = plane[at[i] + below[i]], d = plane[at[i] + below[i] + right[i]];
            float top = a + across[i] * (b - a), bottom = c + across[i] * (d - c);
            out[first + i] = top + down[i] * (bottom - top);
        }
    }
}

int vcf_warp(const float *plane, size_t zoom, size_t rows, size_t columns, const float *dx,
             const float *dy, size_t factor, float scale, int cubic, float *out)
{
    size_t h = rows / factor, w = columns / factor;
    float *room = malloc((w + 2 + 2 * columns) * sizeof(float));
    if (!room)
        return -1;
    float *line = room, *mx = room + w + 2, *my = mx + columns;
    for (size_t row = 0; row < rows; row++) {
        enlarged_row(dx, h, w, factor, row, scale, line, mx);
        enlarged_row(dy, h, w, factor, row, scale, line, my);
        if (cubic)
            cubic_row(plane, zoom, zoom * rows, zoom * columns, row, mx, my, out + row * columns);
        else
            linear_row(plane, rows, columns, row, mx, my, out + row * columns);
    }
    free(room);
    return 0;
}

#define TAPS 8
#define BEFORE 3 /* of the taps, before the first of the two samples in the middle */
static const float HALFWAY[TAPS] = {-1.0f / 64.0f, 4.0f / 64.0f,   -11.0f / 64.0f, 40.0f / 64.0f,
                                    40.0f / 64.0f, -11.0f / 64.0f, 4.0f / 64.0f,   -1.0f / 64.0f};

/* What lies halfway between count samples of a row, whose ends are repeated around it, and the next. */
VCF_CLONES
static void halfway(const float *const *taps, size_t count, float *restrict out)
{
    for (size_t i = 0; i < count; i++) {
        float sum = 0.0f;
        for (size_t k = 0; k < TAPS; k++)
            sum += HALFWAY[k] * taps[k][i];
        out[i] = sum;
    }
}

VCF_CLONES
static void interleave(const float *even, const float *odd, size_t count, float *restrict out)
{
    for (size_t i = 0; i < count; i++) {
        out[2 * i] = even[i];
        out[2 * i + 1] = odd[i];
    }
}

int vcf_enlarge(const float *plane, size_t rows, size_t columns, float *out)
{
    float *line = malloc((columns + TAPS + 2 * columns) * sizeof(float));
    if (!line)
        return -1;
    float *down = line + columns + TAPS, *right = down + columns;
    const float *taps[TAPS];
    for (size_t row = 0; row < 2 * rows; row++) {
        const float *from = plane + row / 2 * columns;
        if (row % 2) {
            for (size_t k = 0; k < TAPS; k++) {
                ptrdiff_t at = (ptrdiff_t)(row / 2 + k) - BEFORE;
                taps[k] = plane + within(at, rows) * columns;
            }
            halfway(taps, columns, down);
            from = down;
        }
        for (size_t k = 0; k < BEFORE; k++)
            line[k] = from[0];
        memcpy(line + BEFORE, from, columns * sizeof(float));
        for (size_t k = BEFORE + columns; k < columns + TAPS; k++)
            line[k] = from[columns - 1];
        for (size_t k = 0; k < TAPS; k++)
            taps[k] = line + k;
        halfway(taps, columns, right);
        interleave(from, right, columns, out + row * 2 * columns);
    }
    free(line);
    return 0;
}

/* What sums of products are made of: row by row, the columns of some positions at a time. */
typedef struct {
    const float *x, *a, *b, *alpha; /* planes */
    float left, right;
    size_t rows, columns;
} planes;

#define WIDE 72              /* columns whose sums are made together: they stay in the cache */
#define PITCH (WIDE + LANES) /* from one kind's columns to the next */

/*
 * Adds count products of a row's samples from `begin` on, weighted by 1 - share and by share, to
 * both rows of positions around it; a kind of product begins PITCH floats after the last one.
 */
typedef void (*add_products)(const planes *from, size_t row, size_t begin, size_t count,
                             float share, float *first, float *second);

/* A row's samples from `begin` on, one more on either side; beyond the plane its border repeats. */
static void widened(const float *row, size_t columns, size_t begin, size_t count, float *out)
{
    out[0] = row[begin ? begin - 1 : 0];
    memcpy(out + 1, row + begin, count * sizeof(float));
    out[count + 1] = row[begin + count < columns ? begin + count : columns - 1];
}

/* Sums per position of a line that begins half a factor before the first one's samples. */
VCF_CLONES
static void sum_columns(const float *line, size_t w, size_t factor, float *out)
{
    float step = 1.0f / (float)factor;
    for (size_t j = 0; j < w; j++) {
        const float *at = line + j * factor;
        v4 sums = {0.0f, 0.0f, 0.0f, 0.0f}, places = {0.5f, 1.5f, 2.5f, 3.5f};
        for (size_t k = 0; k < factor; k += 4, places += 4.0f)
            sums += places * step * V4_AT(at + k) +
                    ((float)factor - places) * step * V4_AT(at + factor + k);
        out[j] = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    }
}

/* The sums of `kinds` products at some positions of every row, from column `at` on. */
static void sum_tile(add_products add, const planes *from, size_t kinds, size_t factor, size_t at,
                     size_t some, float *room, float *sums)
{
    size_t h = from->rows / factor, w = from->columns / factor, half = factor / 2;
    size_t all = kinds * PITCH, skipped = at ? 0 : half;
    size_t begin = at * factor + skipped - half, end = (at + some) * factor + half;
    end = end < from->columns ? end : from->columns;
    float *first = room, *second = room + all;
    memset(room, 0, 2 * all * sizeof(float));
    ptrdiff_t position = -1;
    for (size_t row = 0; row <= from->rows + half; row++) {
        float share;
        ptrdiff_t now = between(row, factor, &share);
        if (now > position) {
            for (size_t k = 0; position >= 0 && k < kinds; k++)
                sum_columns(first + k * PITCH, some, factor,
                            sums + (k * h + (size_t)position) * w + at);
            float *done = first;
            first = second;
            second = done;
            memset(second, 0, all * sizeof(float));
            position = now;
        }
        if (row < from->rows)
            add(from, row, begin, end - begin, share, first + skipped, second + skipped);
    }
}

static int find_sums(add_products add, const planes *from, size_t kinds, size_t factor, float *sums)
{
    size_t w = from->columns / factor;
    size_t most = WIDE / factor - 1; /* positions, with half of one more on either side */
    float *room = malloc(2 * kinds * PITCH * sizeof(float));
    if (!room)
        return -1;
    for (size_t at = 0; at < w; at += most)
        sum_tile(add, from, kinds, factor, at, w - at < most ? w - at : most, room, sums);
    free(room);
    return 0;
}

/* Half the differences of samples on either side, across and down; 0 from `count` on. */
typedef struct {
    float own[PITCH], across[PITCH], down[PITCH];
} slopes;

VCF_CLONES
static void find_slopes(const float *plane, size_t rows, size_t columns, size_t row, size_t begin,
                        size_t count, slopes *restrict found)
{
    const float *here = plane + row * columns;
    const float *above = here - (row ? columns : 0) + begin;
    const float *below = here + (row + 1 < rows ? columns : 0) + begin;
    float line[PITCH + 2];
    widened(here, columns, begin, count, line);
    for (size_t i = 0; i < count; i++) {
        found->own[i] = line[i + 1];
        found->across[i] = line[i + 2] - line[i];
        found->down[i] = below[i] - above[i];
    }
    for (size_t i = count; i % LANES; i++)
        found->own[i] = found->across[i] = found->down[i] = 0.0f;
}

/* A product of LANES samples, to be added to both rows of positions. */
#define ADD(kind, product)                                                                         \
    {                                                                                              \
        lanes one = product;                                                                       \
        LANES_AT(first + kind * PITCH + i) += near * one;                                               \
        LANES_AT(second + kind * PITCH + i) += share * one;                                             \
    }

VCF_CLONES
static void add_normal(const planes *from, size_t row, size_t begin, size_t count, float share,
                       float *restrict first, float *restrict second)
{
    size_t offset = row * from->columns + begin;
    float near = 1.0f - share, x[PITCH] = {0.0f}, alpha[PITCH] = {0.0f};
    slopes a, b;
    find_slopes(from->a, from->rows, from->columns, row, begin, count, &a);
    find_slopes(from->b, from->rows, from->columns, row, begin, count, &b);
    memcpy(x, from->x + offset, count * sizeof(float));
    memcpy(alpha, from->alpha + offset, count * sizeof(float));
    for (size_t i = 0; i < count; i += LANES) {
        lanes to_b = LANES_AT(alpha + i), to_a = 1.0f - to_b, apart = LANES_AT(b.own + i) - LANES_AT(a.own + i);
        lanes c0 = to_a * 0.5f * LANES_AT(a.across + i), c1 = to_a * 0.5f * LANES_AT(a.down + i);
        lanes c2 = to_b * 0.5f * LANES_AT(b.across + i), c3 = to_b * 0.5f * LANES_AT(b.down + i);
        lanes c4 = 0.5f * apart, error = LANES_AT(x + i) - LANES_AT(a.own + i) - to_b * apart;
        ADD(0, c0 * c0)
        ADD(1, c0 * c1)
        ADD(2, c0 * c2)
        ADD(3, c0 * c3)
        ADD(4, c0 * c4)
        ADD(5, c1 * c1)
        ADD(6, c1 * c2)
        ADD(7, c1 * c3)
        ADD(8, c1 * c4)
        ADD(9, c2 * c2)
        ADD(10, c2 * c3)
        ADD(11, c2 * c4)
        ADD(12, c3 * c3)
        ADD(13, c3 * c4)
        ADD(14, c4 * c4)
        ADD(15, c0 * error)
        ADD(16, c1 * error)
        ADD(17, c2 * error)
        ADD(18, c3 * error)
        ADD(19, c4 * error)
    }
}

/* Shares of b of a row's samples: half of 1 + blend, interpolated. line: as of enlarged_row. */
static void find_alpha(const float *blend, size_t rows, size_t columns, size_t factor, size_t row,
                       float *line, float *alpha)
{
    enlarged_row(blend, rows / factor, columns / factor, factor, row, 0.5f, line, alpha);
    for (size_t i = 0; i < columns; i++)
        alpha[i] += 0.5f;
}

int vcf_normal(const float *x, const float *a, const float *b, const float *blend, size_t rows,
               size_t columns, size_t factor, float *sums)
{
    float *alpha = calloc(rows * columns + columns / factor + 2, sizeof(float));
    if (!alpha)
        return -1;
    for (size_t row = 0; b && row < rows; row++)
        find_alpha(blend, rows, columns, factor, row, alpha + rows * columns,
                   alpha + row * columns);
    planes from = {.x = x, .a = a, .b = b ? b : a, .alpha = alpha, .rows = rows, .columns = columns};
    int status = find_sums(add_normal, &from, VCF_NORMAL_SUMS, factor, sums);
    free(alpha);
    return status;
}

VCF_CLONES
static void add_agreement(const planes *from, size_t row, size_t begin, size_t count, float share,
                          float *restrict first, float *restrict second)
{
    float wa = 0.5f * from->left, wb = 0.5f * from->right, near = 1.0f - share;
    slopes a, b;
    find_slopes(from->a, from->rows, from->columns, row, begin, count, &a);
    find_slopes(from->b, from->rows, from->columns, row, begin, count, &b);
    for (size_t i = 0; i < count; i += LANES) {
        lanes jx = wa * LANES_AT(a.across + i) - wb * LANES_AT(b.across + i);
        lanes jy = wa * LANES_AT(a.down + i) - wb * LANES_AT(b.down + i);
        lanes error = LANES_AT(a.own + i) - LANES_AT(b.own + i);
        ADD(0, jx * jx)
        ADD(1, jx * jy)
        ADD(2, jy * jy)
        ADD(3, jx * error)
        ADD(4, jy * error)
        ADD(5, error * error)
    }
}

int vcf_agreement(const float *a, const float *b, float left, float right, size_t rows,
                  size_t columns, size_t factor, float *sums)
{
    planes from = {.a = a, .b = b, .left = left, .right = right, .rows = rows, .columns = columns};
    return find_sums(add_agreement, &from, VCF_AGREEMENT_SUMS, factor, sums);
}

VCF_CLONES
static void add_errors(const float *x, const float *a, const float *b, const float *alpha,
                       size_t count, float *restrict sums)
{
    for (size_t i = 0; i < count; i++) {
        float error = x[i] - a[i] - alpha[i] * (b[i] - a[i]);
        sums[i] += error * error;
    }
}

int vcf_errors(const float *x, const float *a, const float *b, const float *blend, size_t rows,
               size_t columns, size_t factor, float *out)
{
    size_t w = columns / factor;
    float *alpha = malloc((2 * columns + w + 2) * sizeof(float));
    if (!alpha)
        return -1;
    float *sums = alpha + columns, *line = sums + columns;
    for (size_t row = 0; row < rows; row++) {
        if (row % factor == 0)
            memset(sums, 0, columns * sizeof(float));
        size_t at = row * columns;
        find_alpha(blend, rows, columns, factor, row, line, alpha);
        add_errors(x + at, a + at, b + at, alpha, columns, sums);
        for (size_t j = 0; row % factor == factor - 1 && j < w; j++) {
            float sum = 0.0f;
            for (size_t k = 0; k < factor; k++)
                sum += sums[j * factor + k];
            *out++ = sum;
        }
    }
    free(alpha);
    return 0;
}

/* Solves symmetric systems, one per lane, by elimination; target: right sides, then solutions. */
VCF_CLONES
static void solve(lanes normal[VCF_PARTS][VCF_PARTS], lanes *target)
{
    lanes inverse[VCF_PARTS];
    for (size_t i = 0; i < VCF_PARTS; i++) {
        inverse[i] = 1.0f / normal[i][i];
        for (size_t k = i + 1; k < VCF_PARTS; k++) {
            lanes share = normal[i][k] * inverse[i];
            for (size_t j = k; j < VCF_PARTS; j++)
                normal[k][j] -= share * normal[i][j];
            target[k] -= share * target[i];
        }
    }
    for (size_t i = VCF_PARTS; i-- > 0;) {
        for (size_t j = i + 1; j < VCF_PARTS; j++)
            target[i] -= normal[i][j] * target[j];
        target[i] *= inverse[i];
    }
}

/* Means of a row's neighbours, those beside and above each other twice; the border repeats. */
VCF_CLONES
static void neighbour_means(const float *above, const float *row, const float *below, size_t w,
                            float *line, float *restrict out)
{
    float *sums = line + 1;
    for (size_t j = 0; j < w; j++)
        sums[j] = above[j] + 2.0f * row[j] + below[j];
    sums[-1] = sums[0];
    sums[w] = sums[w - 1];
    for (size_t j = 0; j < w; j++) {
        float beside = sums[j - 1] + sums[j + 1];
        out[j] = (beside + 2.0f * (above[j] + below[j])) * (1.0f / 12.0f);
    }
}

/* A row of positions; step: room for their corrections, a component after the other. */
static void fit_row(const float *field, const float *sums, const float *means, size_t plane,
                    size_t row, size_t w, const vcf_fit *fit, float *step)
{
    for (size_t j = 0; j < w; j += LANES) {
        size_t some = w - j < LANES ? w - j : LANES, bytes = some * sizeof(float), n = 0;
        lanes normal[VCF_PARTS][VCF_PARTS], target[VCF_PARTS];
        const float *from = sums + row * w + j;
        for (size_t i = 0; i < VCF_PARTS; i++)
            for (size_t k = i; k < VCF_PARTS; k++, n++) {
                normal[i][k] = (lanes){0.0f};
                memcpy(&normal[i][k], from + n * plane, bytes);
            }
        for (size_t i = 0; i < VCF_PARTS; i++, n++) {
            lanes now = {0.0f}, mean = {0.0f};
            target[i] = now;
            memcpy(&target[i], from + n * plane, bytes);
            memcpy(&now, field + i * plane + row * w + j, bytes);
            memcpy(&mean, means + i * w + j, bytes);
            normal[i][i] += fit->damping[i] + fit->pull[i];
            target[i] += fit->pull[i] * (mean - now);
        }
        solve(normal, target);
        for (size_t i = 0; i < VCF_PARTS; i++)
            memcpy(step + i * w + j, &target[i], bytes);
    }
}

static float clipped(float x, float low, float high)
{
    x = x > low ? x : low;
    return x < high ? x : high;
}

int vcf_fitted(const float *field, const float *sums, size_t h, size_t w, const vcf_fit *fit,
               float *out)
{
    size_t plane = h * w, row_of_each = VCF_PARTS * w;
    float *means = malloc((2 * row_of_each + w + 2) * sizeof(float));
    if (!means)
        return -1;
    float *step = means + row_of_each, *line = step + row_of_each;
    for (size_t row = 0; row < h; row++) {
        for (size_t i = 0; i < VCF_PARTS; i++) {
            const float *from = field + i * plane;
            neighbour_means(from + within((ptrdiff_t)row - 1, h) * w, from + row * w,
                            from + within((ptrdiff_t)row + 1, h) * w, w, line, means + i * w);
        }
        fit_row(field, sums, means, plane, row, w, fit, step);
        for (size_t i = 0; i < VCF_PARTS; i++)
            for (size_t j = 0; j < w; j++) {
                size_t at = i * plane + row * w + j;
                float change = step[i * w + j];
                out[at] = i + 1 < VCF_PARTS ? field[at] + clipped(change, -fit->most, fit->most)
                                            : clipped(field[at] + change, -1.0f, 1.0f);
            }
    }
    free(means);
    return 0;
}
