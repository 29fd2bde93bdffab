#include "filters.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "clones.h"

#define REACH 2 /* of the pairs and of the means, each way */
#define LINES (2 * REACH + 1)
#define AREA 25.0f
#define LEAST 1e-9 /* of a diagonal that is divided by */
#define TOGETHER 4 /* products of one row */

/* One of each pair; the other lies opposite. */
static const int PAIRS[VCF_PAIRS][2] = {{0, 1}, {1, 0}, {1, 1}, {1, -1}, {0, 2}, {2, 0}};

/* Rows around the current one, their ends repeated. */
typedef struct {
    const float *plane;
    size_t rows, columns;
    int sharp; /* the lines hold the second differences' magnitudes instead of samples */
    float *room, *lines[LINES];
} window;

static size_t within(ptrdiff_t row, size_t rows)
{
    return row < 0 ? 0 : (size_t)row < rows ? (size_t)row : rows - 1;
}

VCF_CLONES
static void second_differences(const float *above, const float *x, const float *below,
                               size_t columns, float *restrict out)
{
    size_t last = columns - 1, next = last ? 1 : 0;
    for (size_t i = 1; i < last; i++)
        out[i] = fabsf(2.0f * x[i] - x[i - 1] - x[i + 1]) +
                 fabsf(2.0f * x[i] - above[i] - below[i]);
    out[0] = fabsf(x[0] - x[next]) + fabsf(2.0f * x[0] - above[0] - below[0]);
    out[last] = fabsf(x[last] - x[last - next]) + fabsf(2.0f * x[last] - above[last] - below[last]);
}

static void fill(const window *w, ptrdiff_t at, float *line)
{
    size_t row = within(at, w->rows), columns = w->columns;
    const float *x = w->plane + row * columns;
    if (w->sharp)
        second_differences(row ? x - columns : x, x, row + 1 < w->rows ? x + columns : x, columns,
                           line);
    else
        memcpy(line, x, columns * sizeof(float));
    for (size_t k = 1; k <= REACH; k++) {
        *(line - k) = line[0];
        line[columns + k - 1] = line[columns - 1];
    }
}

static int begin(window *w, const float *plane, size_t rows, size_t columns, int sharp)
{
    size_t pitch = columns + 2 * REACH;
    *w = (window){plane, rows, columns, sharp, malloc(LINES * pitch * sizeof(float)), {0}};
    if (!w->room)
        return -1;
    for (int k = 0; k < LINES; k++) {
        w->lines[k] = w->room + (size_t)k * pitch + REACH;
        fill(w, k - REACH, w->lines[k]);
    }
    return 0;
}

/* On to the next row. */
static void advance(window *w, size_t row)
{
    float *first = w->lines[0];
    memmove(w->lines, w->lines + 1, (LINES - 1) * sizeof(float *));
    w->lines[LINES - 1] = first;
    fill(w, (ptrdiff_t)row + 1 + REACH, first);
}

/* Activity of a row, from a window over second differences. sums: room for a row and its ends. */
VCF_CLONES
static void activity(const window *w, size_t columns, float busy, float *sums, float *restrict out)
{
    for (size_t i = 0; i < columns + 2 * REACH; i++) {
        ptrdiff_t at = (ptrdiff_t)i - REACH;
        sums[i] = w->lines[0][at] + w->lines[1][at] + w->lines[2][at] + w->lines[3][at] +
                  w->lines[4][at];
    }
    for (size_t i = 0; i < columns; i++) {
        float m = (sums[i] + sums[i + 1] + sums[i + 2] + sums[i + 3] + sums[i + 4]) / AREA;
        out[i] = m / (m + busy);
    }
}

/* What a row's features are made of. */
typedef struct {
    window own, other; /* of the plane; of the guide, or over its second differences */
    int guided;
    float busy, *sums, *active;
} neighbourhood;

static int open_rows(neighbourhood *n, const float *plane, const float *guide, size_t rows,
                     size_t columns, float busy)
{
    n->guided = guide != NULL;
    n->busy = busy;
    n->sums = malloc((2 * columns + 2 * REACH) * sizeof(float));
    if (!n->sums)
        return -1;
    n->active = n->sums + columns + 2 * REACH;
    if (begin(&n->own, plane, rows, columns, 0) ||
        begin(&n->other, guide ? guide : plane, rows, columns, !guide)) {
        free(n->own.room);
        free(n->sums);
        return -1;
    }
    return 0;
}

static void close_rows(neighbourhood *n)
{
    free(n->own.room);
    free(n->other.room);
    free(n->sums);
}

static void next_row(neighbourhood *n, size_t row)
{
    advance(&n->own, row);
    advance(&n->other, row);
}

/* Both neighbours of a pair, of a window's row. */
static void pair_of(const window *w, int k, const float **a, const float **b)
{
    int down = PAIRS[k][0], right = PAIRS[k][1];
    *a = w->lines[REACH + down] + right;
    *b = w->lines[REACH - down] - right;
}

VCF_CLONES
static void pair_features(const float *x, const float *a, const float *b, size_t columns,
                          float clip, float *restrict cut, float *restrict whole)
{
    for (size_t i = 0; i < columns; i++) {
        float c = a[i] - x[i], d = b[i] - x[i];
        whole[i] = c + d;
        c = c < clip ? c : clip;
        d = d < clip ? d : clip;
        cut[i] = (c > -clip ? c : -clip) + (d > -clip ? d : -clip);
    }
}

VCF_CLONES
static void guide_feature(const float *x, const float *a, const float *b, size_t columns,
                          float *restrict out)
{
    for (size_t i = 0; i < columns; i++)
        out[i] = a[i] + b[i] - 2.0f * x[i];
}

VCF_CLONES
static void multiply(const float *a, const float *b, size_t columns, float *restrict out)
{
    for (size_t i = 0; i < columns; i++)
        out[i] = a[i] * b[i];
}

/* VCF_FEATURES rows of `columns` features of the current row. */
static void features(const neighbourhood *n, size_t columns, float clip, float *out)
{
    const float *a, *b;
    if (!n->guided)
        activity(&n->other, columns, n->busy, n->sums, n->active);
    for (int k = 0; k < VCF_PAIRS; k++) {
        float *cut = out + (size_t)k * columns, *whole = cut + VCF_PAIRS * columns;
        float *third = whole + VCF_PAIRS * columns;
        pair_of(&n->own, k, &a, &b);
        pair_features(n->own.lines[REACH], a, b, columns, clip, cut, whole);
        pair_of(&n->other, k, &a, &b);
        if (n->guided)
            guide_feature(n->other.lines[REACH], a, b, columns, third);
        else
            multiply(whole, n->active, columns, third);
    }
}

/* Adds the first two features of a pair to a row; the second by a weight that rises with activity. */
VCF_CLONES
static void add_pair(const float *x, const float *a, const float *b, const float *active,
                     size_t columns, float clip, float cut, float whole, float rise,
                     float *restrict out)
{
    for (size_t i = 0; i < columns; i++) {
        float c = a[i] - x[i], d = b[i] - x[i], sum = c + d;
        c = c < clip ? c : clip;
        d = d < clip ? d : clip;
        out[i] += cut * ((c > -clip ? c : -clip) + (d > -clip ? d : -clip)) +
                  (whole + rise * active[i]) * sum;
    }
}

VCF_CLONES
static void add_guide(const float *x, const float *a, const float *b, size_t columns, float weight,
                      float *restrict out)
{
    for (size_t i = 0; i < columns; i++)
        out[i] += weight * (a[i] + b[i] - 2.0f * x[i]);
}

typedef float lanes __attribute__((vector_size(8 * sizeof(float))));
typedef float any_lanes
    __attribute__((vector_size(8 * sizeof(float)), aligned(sizeof(float)), may_alias));
#define AT(p) (*(const any_lanes *)(p))

/* Of a row and TOGETHER others, `pitch` floats apart. */
VCF_CLONES
static void products(const float *a, const float *b, size_t pitch, size_t count, double *out)
{
    const float *c = b + pitch, *d = c + pitch, *e = d + pitch;
    lanes none = {0.0f}, sums[2 * TOGETHER];
    lanes b0 = none, b1 = none, c0 = none, c1 = none, d0 = none, d1 = none, e0 = none, e1 = none;
    size_t i = 0;
    for (; i + 16 <= count; i += 16) {
        lanes low = AT(a + i), high = AT(a + i + 8);
        b0 += low * AT(b + i);
        b1 += high * AT(b + i + 8);
        c0 += low * AT(c + i);
        c1 += high * AT(c + i + 8);
        d0 += low * AT(d + i);
        d1 += high * AT(d + i + 8);
        e0 += low * AT(e + i);
        e1 += high * AT(e + i + 8);
    }
    sums[0] = b0, sums[1] = b1, sums[2] = c0, sums[3] = c1;
    sums[4] = d0, sums[5] = d1, sums[6] = e0, sums[7] = e1;
    for (size_t k = 0; k < TOGETHER; k++, b += pitch) {
        float sum = 0.0f, each[16];
        for (size_t n = i; n < count; n++)
            sum += a[n] * b[n];
        memcpy(each, sums + 2 * k, sizeof(each));
        for (size_t n = 0; n < 16; n++)
            sum += each[n];
        out[k] = (double)sum;
    }
}

int vcf_loop_filter(const float *plane, const float *guide, size_t rows, size_t columns, float clip,
                    float busy, const float *weights, float *out)
{
    neighbourhood n;
    const float *a, *b, *third = weights + 2 * VCF_PAIRS;
    if (open_rows(&n, plane, guide, rows, columns, busy))
        return -1;
    for (size_t row = 0; row < rows; row++) {
        const float *x = n.own.lines[REACH];
        float *to = out + row * columns;
        memcpy(to, x, columns * sizeof(float));
        if (guide)
            memset(n.active, 0, columns * sizeof(float));
        else
            activity(&n.other, columns, busy, n.sums, n.active);
        for (int k = 0; k < VCF_PAIRS; k++) {
            pair_of(&n.own, k, &a, &b);
            add_pair(x, a, b, n.active, columns, clip, weights[k], weights[k + VCF_PAIRS], third[k],
                     to);
            pair_of(&n.other, k, &a, &b);
            if (guide && third[k] != 0.0f)
                add_guide(n.other.lines[REACH], a, b, columns, third[k], to);
        }
        next_row(&n, row);
    }
    close_rows(&n);
    return 0;
}

int vcf_loop_sums(const float *plane, const float *guide, const float *target, size_t rows,
                  size_t columns, size_t inside_rows, size_t inside_columns, float clip, float busy,
                  double *sums)
{
    neighbourhood n;
    float *found = calloc((VCF_FEATURES + TOGETHER) * inside_columns, sizeof(float));
    if (!found || open_rows(&n, plane, guide, rows, columns, busy)) {
        free(found);
        return -1;
    }
    float *error = found + VCF_FEATURES * inside_columns;
    memset(sums, 0, VCF_LOOP_SUMS * sizeof(double));
    for (size_t row = 0; row < inside_rows; row++) {
        features(&n, inside_columns, clip, found);
        for (size_t i = 0; i < inside_columns; i++)
            error[i] = target[row * columns + i] - n.own.lines[REACH][i];
        double *sum = sums, *errors = sums + VCF_LOOP_SUMS - VCF_FEATURES;
        for (size_t i = 0; i < VCF_FEATURES; i++) {
            double row_of_sums[VCF_FEATURES + TOGETHER];
            const float *feature = found + i * inside_columns;
            for (size_t j = i; j <= VCF_FEATURES; j += TOGETHER)
                products(feature, found + j * inside_columns, inside_columns, inside_columns,
                         row_of_sums + j);
            for (size_t j = i; j < VCF_FEATURES; j++)
                *sum++ += row_of_sums[j];
            errors[i] += row_of_sums[VCF_FEATURES];
        }
        next_row(&n, row);
    }
    close_rows(&n);
    free(found);
    return 0;
}

void vcf_descend(const double *products, size_t count, size_t free_, double price, double limit,
                 size_t sweeps, const double *source, double *rest, double *found)
{
    for (int changed = 1; sweeps && changed; sweeps--) {
        changed = 0;
        for (size_t i = 0; i < free_; i++) {
            const double *row = products + i * count; /* as its column: products are symmetric */
            double steep = row[i] > LEAST ? row[i] : LEAST;
            double away = found[i] + rest[i] / steep - source[i];
            double near = fabs(away) - price / (2.0 * steep);
            double best = source[i] + copysign(near > 0.0 ? near : 0.0, away);
            best = rint(best);
            best = best > limit ? limit : best < -limit ? -limit : best;
            double change = best - found[i];
            if (change == 0.0)
                continue;
            for (size_t k = 0; k < count; k++)
                rest[k] -= row[k] * change;
            found[i] = best;
            changed = 1;
        }
    }
}
