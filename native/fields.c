#include "fields.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "clones.h"

typedef float v4 __attribute__((vector_size(16)));

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
    for (size_t i = 0; i <= columns; i++) {
        float left = line[i], step = (line[i + 1] - left) / (float)factor;
        size_t begin = i ? 0 : half, end = i < columns ? factor : half;
        float *at = out + i * factor - half;
        for (size_t k = begin; k < end; k++)
            at[k] = left + step * ((float)k + 0.5f);
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

/* The four columns of a sample's taps, each summed up. */
static inline v4 columns_at(const float *plane, size_t columns, const places *at, size_t i)
{
    const float *from = plane + (size_t)at->y[i] * columns + (size_t)at->x[i];
    v4 taps[4];
    for (size_t k = 0; k < 4; k++)
        memcpy(&taps[k], from + k * columns, sizeof(v4));
    return taps[0] * at->weights[4][i] + taps[1] * at->weights[5][i] +
           taps[2] * at->weights[6][i] + taps[3] * at->weights[7][i];
}

/* rows, columns: of the plane, zoom times as many as those of dx, dy and out. */
VCF_CLONES
static void cubic_row(const float *plane, size_t zoom, size_t rows, size_t columns, size_t row,
                      const float *dx, const float *dy, float *out)
{
    int last_x = (int)columns - 4, last_y = (int)rows - 4;
    size_t count = columns / zoom;
    places at;
    for (size_t first = 0; first < count; first += MOVED) {
        size_t some = count - first < MOVED ? count - first : MOVED;
        find_places(zoom, rows, columns, row, first, some, dx + first, dy + first, &at);
        for (size_t i = 0; i < some; i += 4) {
            size_t end = some - i < 4 ? some - i : 4;
            int inside = end == 4;
            for (size_t k = i; k < i + end; k++)
                inside &= at.x[k] >= 0 && at.x[k] <= last_x && at.y[k] >= 0 && at.y[k] <= last_y;
            if (!inside) {
                for (size_t k = i; k < i + end; k++)
                    out[first + k] = cubic_at_border(plane, rows, columns, &at, k);
                continue;
            }
            v4 a = columns_at(plane, columns, &at, i), b = columns_at(plane, columns, &at, i + 1);
            v4 c = columns_at(plane, columns, &at, i + 2);
            v4 d = columns_at(plane, columns, &at, i + 3), sum = {0.0f, 0.0f, 0.0f, 0.0f};
            for (size_t n = 0; n < 4; n++) {
                v4 line = {a[n], b[n], c[n], d[n]}, weight;
                memcpy(&weight, at.weights[n] + i, sizeof(v4));
                sum += line * weight;
            }
            memcpy(out + first + i, &sum, sizeof(v4));
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

/* Adds share[0] and share[1] times a row of products to both rows of positions around it. */
VCF_CLONES
static void add_rows(const float *row, size_t count, float share, float *first, float *second)
{
    for (size_t i = 0; i < count; i++) {
        first[i] += (1.0f - share) * row[i];
        second[i] += share * row[i];
    }
}

/* Sums per position of a row whose samples begin half a factor after line, zeros around them. */
VCF_CLONES
static void sum_columns(const float *line, size_t w, size_t factor, float *out)
{
    float step = 1.0f / (float)factor;
    for (size_t j = 0; j < w; j++) {
        const float *at = line + j * factor;
        float sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        for (size_t k = 0; k < factor; k += 4)
            for (size_t n = 0; n < 4; n++)
                sums[n] += ((float)(k + n) + 0.5f) * step * at[k + n] +
                           ((float)(factor - k - n) - 0.5f) * step * at[factor + k + n];
        out[j] = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    }
}

/* Rows of products on their way to sums: makes one row of products at a time. */
typedef void (*vcf_products)(const void *from, size_t row, size_t pitch, float *products);

static int vcf_sums(vcf_products make, const void *from, size_t kinds, size_t rows, size_t columns,
                    size_t factor, float *sums)
{
    size_t h = rows / factor, w = columns / factor, half = factor / 2;
    size_t pitch = columns + factor, all = kinds * pitch;
    float *room = calloc(3 * all, sizeof(float));
    if (!room)
        return -1;
    float *products = room, *first = room + all, *second = room + 2 * all;
    ptrdiff_t position = -1;
    for (size_t row = 0; row <= rows + half; row++) {
        float share;
        ptrdiff_t now = between(row, factor, &share);
        if (now > position) {
            for (size_t k = 0; position >= 0 && k < kinds; k++)
                sum_columns(first + k * pitch, w, factor, sums + (k * h + (size_t)position) * w);
            float *done = first;
            first = second;
            second = done;
            memset(second, 0, all * sizeof(float));
            position = now;
        }
        if (row >= rows)
            continue;
        make(from, row, pitch, products + half);
        add_rows(products, all, share, first, second);
    }
    free(room);
    return 0;
}

typedef struct {
    const float *x, *a, *b, *blend;
    size_t rows, columns, factor;
    float *line, *alpha;
} normal_planes;

VCF_CLONES
static void normal_row(const void *from, size_t row, size_t pitch, float *restrict products)
{
    const normal_planes *p = from;
    size_t columns = p->columns, offset = row * columns;
    size_t above = row ? columns : 0, below = row + 1 < p->rows ? columns : 0;
    const float *x = p->x + offset, *a = p->a + offset, *b = p->b + offset;
    float *restrict alpha = p->alpha;
    enlarged_row(p->blend, p->rows / p->factor, columns / p->factor, p->factor, row, 0.5f, p->line,
                 alpha);
    for (size_t i = 0; i < columns; i++)
        alpha[i] = p->a == p->b ? 0.0f : alpha[i] + 0.5f;
    for (size_t i = 0; i < columns; i++) {
        size_t left = i ? 1 : 0, right = i + 1 < columns ? 1 : 0;
        float second = alpha[i], one = 1.0f - second, apart = b[i] - a[i];
        float c0 = one * 0.5f * (a[i + right] - a[i - left]);
        float c1 = one * 0.5f * (a[i + below] - a[i - above]);
        float c2 = second * 0.5f * (b[i + right] - b[i - left]);
        float c3 = second * 0.5f * (b[i + below] - b[i - above]);
        float c4 = 0.5f * apart, error = x[i] - a[i] - second * apart;
        float *restrict out = products + i;
        out[0] = c0 * c0;
        out[pitch] = c0 * c1;
        out[2 * pitch] = c0 * c2;
        out[3 * pitch] = c0 * c3;
        out[4 * pitch] = c0 * c4;
        out[5 * pitch] = c1 * c1;
        out[6 * pitch] = c1 * c2;
        out[7 * pitch] = c1 * c3;
        out[8 * pitch] = c1 * c4;
        out[9 * pitch] = c2 * c2;
        out[10 * pitch] = c2 * c3;
        out[11 * pitch] = c2 * c4;
        out[12 * pitch] = c3 * c3;
        out[13 * pitch] = c3 * c4;
        out[14 * pitch] = c4 * c4;
        out[15 * pitch] = c0 * error;
        out[16 * pitch] = c1 * error;
        out[17 * pitch] = c2 * error;
        out[18 * pitch] = c3 * error;
        out[19 * pitch] = c4 * error;
    }
}

int vcf_normal(const float *x, const float *a, const float *b, const float *blend, size_t rows,
               size_t columns, size_t factor, float *sums)
{
    float *room = malloc((columns / factor + 2 + columns) * sizeof(float));
    if (!room)
        return -1;
    normal_planes planes = {x,       a,      b ? b : a, blend, rows,
                            columns, factor, room,      room + columns / factor + 2};
    int status = vcf_sums(normal_row, &planes, VCF_NORMAL_SUMS, rows, columns, factor, sums);
    free(room);
    return status;
}

typedef struct {
    const float *a, *b;
    float left, right;
    size_t rows, columns;
} agreement_planes;

VCF_CLONES
static void agreement_row(const void *from, size_t row, size_t pitch, float *restrict products)
{
    const agreement_planes *p = from;
    size_t columns = p->columns, offset = row * columns;
    size_t above = row ? columns : 0, below = row + 1 < p->rows ? columns : 0;
    const float *a = p->a + offset, *b = p->b + offset;
    float wa = 0.5f * p->left, wb = 0.5f * p->right;
    for (size_t i = 0; i < columns; i++) {
        size_t left = i ? 1 : 0, right = i + 1 < columns ? 1 : 0;
        float jx = wa * (a[i + right] - a[i - left]) - wb * (b[i + right] - b[i - left]);
        float jy = wa * (a[i + below] - a[i - above]) - wb * (b[i + below] - b[i - above]);
        float error = a[i] - b[i];
        float *restrict out = products + i;
        out[0] = jx * jx;
        out[pitch] = jx * jy;
        out[2 * pitch] = jy * jy;
        out[3 * pitch] = jx * error;
        out[4 * pitch] = jy * error;
        out[5 * pitch] = error * error;
    }
}

int vcf_agreement(const float *a, const float *b, float left, float right, size_t rows,
                  size_t columns, size_t factor, float *sums)
{
    agreement_planes planes = {a, b, left, right, rows, columns};
    return vcf_sums(agreement_row, &planes, VCF_AGREEMENT_SUMS, rows, columns, factor, sums);
}
