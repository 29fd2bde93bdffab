#include "walk.h"

#include <stdlib.h>
#include <string.h>

#include "clones.h"

#define LANES 16 /* channels that are summed at a time */
#define UNIT (1.0f / 512.0f)
#define HIGHEST 255.0f

typedef float lanes __attribute__((vector_size(LANES * sizeof(float))));

/* Where -reach ... count + reach - 1 lie along a side, reach added to each; -1: nowhere. */
static void mirrored(size_t count, size_t reach, ptrdiff_t *places)
{
    for (size_t i = 0; i < count + 2 * reach; i++) {
        ptrdiff_t at = (ptrdiff_t)i - (ptrdiff_t)reach;
        if (at < 0)
            at = count > reach ? -at : -1;
        else if ((size_t)at >= count)
            at = count > reach ? 2 * ((ptrdiff_t)count - 1) - at : -1;
        places[i] = at;
    }
}

/* Addresses of the side x side neighbours of a position; zeros: that of one that is nowhere. */
static void around(const vcf_maps *maps, size_t side, const ptrdiff_t *down, const ptrdiff_t *across,
                   size_t where, const float *zeros, const float **taps)
{
    const ptrdiff_t *rows = down + where / maps->columns, *columns = across + where % maps->columns;
    for (size_t i = 0; i < side; i++)
        for (size_t j = 0; j < side; j++)
            taps[i * side + j] = rows[i] < 0 || columns[j] < 0
                                     ? zeros
                                     : maps->data + rows[i] * maps->row + columns[j] * maps->column;
}

static float activation(float sum)
{
    /* Clipped first: then what is cut off is the fraction alone. */
    sum *= UNIT;
    sum = sum > 0.0f ? sum : 0.0f;
    sum = sum < HIGHEST ? sum : HIGHEST;
    return (float)(int32_t)sum;
}

VCF_CLONES
static void filter_one(const float *const *taps, size_t count, size_t channels, const float *weight,
                       const float *bias, float *out)
{
    size_t c = 0;
    for (; c + LANES <= channels; c += LANES) {
        lanes sums;
        memcpy(&sums, bias + c, sizeof(sums));
        for (size_t k = 0; k < count; k++) {
            lanes values, factors;
            memcpy(&values, taps[k] + c, sizeof(values));
            memcpy(&factors, weight + k * channels + c, sizeof(factors));
            sums += values * factors;
        }
        float each[LANES];
        memcpy(each, &sums, sizeof(each));
        for (size_t n = 0; n < LANES; n++)
            out[c + n] = activation(each[n]);
    }
    for (; c < channels; c++) {
        float sum = bias[c];
        for (size_t k = 0; k < count; k++)
            sum += taps[k][c] * weight[k * channels + c];
        out[c] = activation(sum);
    }
}

int vcf_filter(const vcf_maps *maps, const float *weight, const float *bias, size_t side,
               const int64_t *where, size_t count, float *out, size_t pitch)
{
    size_t taps = side * side, channels = maps->channels, places = maps->rows + maps->columns;
    ptrdiff_t *down = malloc((places + 2 * side) * sizeof(*down));
    const float **near = malloc(taps * sizeof(*near));
    float *by_tap = calloc((taps + 1) * channels, sizeof(*by_tap));
    int status = down && near && by_tap ? 0 : -1;
    if (!status) {
        ptrdiff_t *across = down + maps->rows + side;
        mirrored(maps->rows, side / 2, down);
        mirrored(maps->columns, side / 2, across);
        for (size_t c = 0; c < channels; c++)
            for (size_t k = 0; k < taps; k++)
                by_tap[k * channels + c] = weight[c * taps + k];
        for (size_t n = 0; n < count; n++) {
            around(maps, side, down, across, (size_t)where[n], by_tap + taps * channels, near);
            filter_one(near, taps, channels, by_tap, bias, out + n * pitch);
        }
    }
    free(by_tap);
    free(near);
    free(down);
    return status;
}

int vcf_neighbours(const vcf_maps *maps, size_t side, const int64_t *where, size_t count, float *out,
                   size_t pitch)
{
    size_t taps = side * side, places = maps->rows + maps->columns;
    size_t bytes = maps->channels * sizeof(float);
    ptrdiff_t *down = malloc((places + 2 * side) * sizeof(*down));
    const float **near = malloc(taps * sizeof(*near));
    int status = down && near ? 0 : -1;
    if (!status) {
        ptrdiff_t *across = down + maps->rows + side;
        mirrored(maps->rows, side / 2, down);
        mirrored(maps->columns, side / 2, across);
        for (size_t n = 0; n < count; n++) {
            float *to = out + n * pitch;
            around(maps, side, down, across, (size_t)where[n], NULL, near);
            for (size_t k = 0; k < taps; k++, to += maps->channels) {
                if (near[k])
                    memcpy(to, near[k], bytes);
                else
                    memset(to, 0, bytes);
            }
        }
    }
    free(near);
    free(down);
    return status;
}
