#include "filters.h"

#include <stdlib.h>
#include <string.h>

#include "clones.h"

#define REACH 2 /* of the pairs, each way */
#define LINES (2 * REACH + 1)

/* One of each pair; the other lies opposite. */
static const int PAIRS[VCF_PAIRS][2] = {{0, 1}, {1, 0}, {1, 1}, {1, -1}, {0, 2}, {2, 0}};

typedef struct {
    const float *plane;
    size_t rows, columns;
    float *room, *lines[LINES]; /* rows around the current one, their ends repeated */
} window;

static void fill(const window *w, ptrdiff_t row, float *line)
{
    ptrdiff_t last = (ptrdiff_t)w->rows - 1;
    const float *from = w->plane + (size_t)(row < 0 ? 0 : row > last ? last : row) * w->columns;
    memcpy(line, from, w->columns * sizeof(float));
    for (int k = 1; k <= REACH; k++) {
        line[-k] = from[0];
        line[w->columns + (size_t)k - 1] = from[w->columns - 1];
    }
}

static int begin(window *w, const float *plane, size_t rows, size_t columns)
{
    size_t pitch = columns + 2 * REACH;
    w->plane = plane, w->rows = rows, w->columns = columns;
    w->room = malloc(LINES * pitch * sizeof(float));
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

/* VCF_FEATURES rows of `columns` features of the window's row. */
static void features(const window *w, size_t columns, float clip, float *out)
{
    const float *x = w->lines[REACH];
    for (int k = 0; k < VCF_PAIRS; k++) {
        int down = PAIRS[k][0], right = PAIRS[k][1];
        pair_features(x, w->lines[REACH + down] + right, w->lines[REACH - down] - right, columns,
                      clip, out + (size_t)k * columns, out + (size_t)(k + VCF_PAIRS) * columns);
    }
}

/* Adds both features of a pair, weighted, to a row. */
VCF_CLONES
static void add_pair(const float *x, const float *a, const float *b, size_t columns, float clip,
                     float cut, float whole, float *restrict out)
{
    for (size_t i = 0; i < columns; i++) {
        float c = a[i] - x[i], d = b[i] - x[i], sum = c + d;
        c = c < clip ? c : clip;
        d = d < clip ? d : clip;
        out[i] += cut * ((c > -clip ? c : -clip) + (d > -clip ? d : -clip)) + whole * sum;
    }
}

VCF_CLONES
static float product(const float *a, const float *b, size_t count)
{
    float sums[16] = {0};
    size_t i = 0;
    for (; i + 16 <= count; i += 16)
        for (size_t n = 0; n < 16; n++)
            sums[n] += a[i + n] * b[i + n];
    float sum = 0.0f;
    for (; i < count; i++)
        sum += a[i] * b[i];
    for (size_t n = 0; n < 16; n++)
        sum += sums[n];
    return sum;
}

int vcf_loop_filter(const float *plane, size_t rows, size_t columns, float clip,
                    const float *weights, float *out)
{
    window w;
    if (begin(&w, plane, rows, columns))
        return -1;
    for (size_t row = 0; row < rows; row++) {
        const float *x = w.lines[REACH];
        float *to = out + row * columns;
        memcpy(to, x, columns * sizeof(float));
        for (int k = 0; k < VCF_PAIRS; k++) {
            int down = PAIRS[k][0], right = PAIRS[k][1];
            float cut = weights[k], whole = weights[k + VCF_PAIRS];
            if (cut != 0.0f || whole != 0.0f)
                add_pair(x, w.lines[REACH + down] + right, w.lines[REACH - down] - right, columns,
                         clip, cut, whole, to);
        }
        advance(&w, row);
    }
    free(w.room);
    return 0;
}

int vcf_loop_sums(const float *plane, const float *target, size_t rows, size_t columns,
                  size_t inside_rows, size_t inside_columns, float clip, double *sums)
{
    window w;
    float *found = malloc((VCF_FEATURES + 1) * inside_columns * sizeof(float));
    if (!found || begin(&w, plane, rows, columns)) {
        free(found);
        return -1;
    }
    float *error = found + VCF_FEATURES * inside_columns;
    memset(sums, 0, VCF_LOOP_SUMS * sizeof(double));
    for (size_t row = 0; row < inside_rows; row++) {
        features(&w, inside_columns, clip, found);
        for (size_t i = 0; i < inside_columns; i++)
            error[i] = target[row * columns + i] - w.lines[REACH][i];
        double *sum = sums;
        for (size_t a = 0; a < VCF_FEATURES; a++)
            for (size_t b = a; b < VCF_FEATURES; b++)
                *sum++ += product(found + a * inside_columns, found + b * inside_columns,
                                  inside_columns);
        for (size_t a = 0; a < VCF_FEATURES; a++)
            *sum++ += product(found + a * inside_columns, error, inside_columns);
        advance(&w, row);
    }
    free(w.room);
    free(found);
    return 0;
}
