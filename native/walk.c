#include "walk.h"

#include <stdlib.h>
#include <string.h>

#include "clones.h"

#define LANES 16 /* channels that are summed at a time */
#define UNIT (1.0f / 512.0f)
#define HIGHEST 255.0f
#define LARGEST 256.0f /* magnitude that has a level of its own */

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

/* What a step works with, for ROWS positions at a time. */
typedef struct {
    ptrdiff_t *places[3]; /* down, then across, of each map */
    const float **near;   /* taps of one position */
    float *zeros, *line;  /* a position's inputs */
    int16_t *inputs, *hidden;
    int32_t *first, *second;
    size_t pitch, hidden_pitch; /* of inputs and hidden, both even */
} room;

static void *part(char **from, size_t bytes)
{
    void *found = *from;
    *from += (bytes + 63) / 64 * 64;
    return found;
}

/* Divides memory, or counts the bytes where there is none. */
static size_t divide(const vcf_step *step, const vcf_maps *const *maps, const vcf_taps *const *taps,
                     char *memory, room *r)
{
    char *at = memory;
    size_t channels = maps[0]->channels, most = 0;
    for (size_t n = 0; n < 3; n++) {
        size_t places = maps[n]->rows + maps[n]->columns + 2 * taps[n]->side;
        r->places[n] = part(&at, places * sizeof(ptrdiff_t));
        most = taps[n]->side > most ? taps[n]->side : most;
    }
    r->pitch = (step->first.inputs + 1) / 2 * 2;
    r->hidden_pitch = (step->hidden + 1) / 2 * 2;
    r->near = part(&at, most * most * sizeof(*r->near));
    r->zeros = part(&at, channels * sizeof(float));
    r->line = part(&at, r->pitch * sizeof(float));
    r->inputs = part(&at, VCF_DENSE_ROWS * r->pitch * sizeof(int16_t));
    r->hidden = part(&at, VCF_DENSE_ROWS * r->hidden_pitch * sizeof(int16_t));
    size_t first = vcf_dense_padded(step->first.outputs);
    size_t second = vcf_dense_padded(step->second.outputs);
    r->first = part(&at, VCF_DENSE_ROWS * first * sizeof(int32_t));
    r->second = part(&at, VCF_DENSE_ROWS * second * sizeof(int32_t));
    return (size_t)(at - memory);
}

VCF_CLONES
static void narrow(const float *from, size_t count, int16_t *restrict to)
{
    for (size_t i = 0; i < count; i++)
        to[i] = (int16_t)from[i];
}

VCF_CLONES
static void activate(const int32_t *sums, size_t count, int16_t *restrict out)
{
    for (size_t i = 0; i < count; i++) {
        int32_t value = sums[i] >> 9;
        value = value > 0 ? value : 0;
        out[i] = (int16_t)(value < 255 ? value : 255);
    }
}

/* Exact: the three sums stay below a third of 2^24 each. */
VCF_CLONES
static void index_of(const int32_t *second, const int32_t *first, const float *last, size_t count,
                     float lowest, float highest, float *restrict out)
{
    for (size_t i = 0; i < count; i++) {
        float sum = ((float)second[i] + (float)first[i]) + last[i];
        sum *= 1.0f / 2048.0f;
        sum = sum > 0.0f ? sum : 0.0f;
        sum = sum < highest ? sum : highest;
        out[i] = sum > lowest ? sum : lowest;
    }
}

int vcf_indices(const vcf_step *step, const vcf_maps *seen, const vcf_maps *symbols,
                const vcf_maps *activity, const int64_t *where, size_t count,
                const vcf_step_frame *frame, float highest, float *out)
{
    const vcf_maps *maps[] = {seen, symbols, activity};
    const vcf_taps *taps[] = {&step->seen, &step->symbols, &step->activity};
    room r;
    size_t bytes = divide(step, maps, taps, NULL, &r);
    char *memory = calloc(bytes, 1);
    if (!memory)
        return -1;
    divide(step, maps, taps, memory, &r);
    for (size_t n = 0; n < 3; n++) {
        size_t reach = taps[n]->side / 2;
        mirrored(maps[n]->rows, reach, r.places[n]);
        mirrored(maps[n]->columns, reach, r.places[n] + maps[n]->rows + 2 * reach);
    }
    size_t coded = step->second.outputs;
    int way = vcf_dense_ways() - 1;
    for (size_t begin = 0; begin < count; begin += VCF_DENSE_ROWS) {
        size_t rows = count - begin < VCF_DENSE_ROWS ? count - begin : VCF_DENSE_ROWS;
        for (size_t k = 0; k < rows; k++) {
            size_t place = (size_t)where[begin + k];
            float *line = r.line;
            for (size_t n = 0; n < 3; n++) {
                size_t side = taps[n]->side;
                const ptrdiff_t *across = r.places[n] + maps[n]->rows + side / 2 * 2;
                around(maps[n], side, r.places[n], across, place, r.zeros, r.near);
                filter_one(r.near, side * side, maps[n]->channels, taps[n]->weight, taps[n]->bias,
                           line);
                line += maps[n]->channels;
            }
            memcpy(line,
                   seen->data + (ptrdiff_t)(place / seen->columns) * seen->row +
                       (ptrdiff_t)(place % seen->columns) * seen->column,
                   step->known * sizeof(float));
            narrow(r.line, r.pitch, r.inputs + k * r.pitch);
        }
        vcf_dense_sums(&step->first, r.inputs, r.pitch, rows, frame->first, way, r.first);
        size_t wide = vcf_dense_padded(step->first.outputs);
        for (size_t k = 0; k < rows; k++)
            activate(r.first + k * wide, step->hidden, r.hidden + k * r.hidden_pitch);
        vcf_dense_sums(&step->second, r.hidden, r.hidden_pitch, rows, frame->second, way,
                       r.second);
        for (size_t k = 0; k < rows; k++)
            index_of(r.second + k * vcf_dense_padded(coded), r.first + k * wide + step->hidden,
                     frame->last, coded, frame->lowest, highest, out + (begin + k) * coded);
    }
    free(memory);
    return 0;
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

void vcf_store(const float *symbols, const float *levels, const int64_t *at, size_t count,
               size_t channels, size_t low, size_t pitch, float *maps, float *seen)
{
    for (size_t n = 0; n < count; n++, symbols += channels) {
        size_t place = (size_t)at[n] * pitch + low;
        memcpy(maps + place, symbols, channels * sizeof(float));
        for (size_t c = 0; c < channels; c++) {
            float size = symbols[c] < 0.0f ? -symbols[c] : symbols[c];
            seen[place + c] = levels[size < LARGEST ? (size_t)size : (size_t)LARGEST];
        }
    }
}

VCF_CLONES
void vcf_values(const float *mean, const float *symbols, const float *steps, const int64_t *at,
                size_t count, size_t channels, size_t low, size_t pitch, float *maps)
{
    for (size_t n = 0; n < count; n++, mean += channels, symbols += channels) {
        float *out = maps + (size_t)at[n] * pitch + low;
        for (size_t c = 0; c < channels; c++)
            out[c] = mean[c] + symbols[c] * steps[c];
    }
}
