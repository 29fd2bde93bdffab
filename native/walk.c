#include "walk.h"

#include <stdlib.h>
#include <string.h>

#include "clones.h"

#define LANES 8 /* channels that are summed at a time, in each of GROUPS registers */
#define GROUPS 4
#define TOGETHER 4 /* positions that a gradient goes back at at a time */
#define UNIT (1.0f / 512.0f)
#define HIGHEST 255.0f
#define LARGEST 256.0f /* magnitude that has a level of its own */

typedef float lanes __attribute__((vector_size(LANES * sizeof(float)), aligned(sizeof(float)),
                                   may_alias));

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

VCF_CLONES
static void filter_one(const float *const *taps, size_t count, size_t channels, const float *weight,
                       const float *bias, float *restrict out)
{
    size_t c = 0;
    for (; c + GROUPS * LANES <= channels; c += GROUPS * LANES) {
        const lanes *from = (const lanes *)(bias + c);
        lanes sums[GROUPS] = {from[0], from[1], from[2], from[3]};
        for (size_t k = 0; k < count; k++) {
            const lanes *values = (const lanes *)(taps[k] + c);
            const lanes *factors = (const lanes *)(weight + k * channels + c);
            for (size_t n = 0; n < GROUPS; n++)
                sums[n] += values[n] * factors[n];
        }
        for (size_t n = 0; n < GROUPS; n++)
            ((lanes *)(out + c))[n] = sums[n];
    }
    for (; c + LANES <= channels; c += LANES) {
        lanes sums = *(const lanes *)(bias + c);
        for (size_t k = 0; k < count; k++)
            sums += *(const lanes *)(taps[k] + c) * *(const lanes *)(weight + k * channels + c);
        *(lanes *)(out + c) = sums;
    }
    for (; c < channels; c++) {
        out[c] = bias[c];
        for (size_t k = 0; k < count; k++)
            out[c] += taps[k][c] * weight[k * channels + c];
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

/* Activations of sums. */
VCF_CLONES
static void activate_sums(const float *from, size_t count, int16_t *restrict to)
{
    for (size_t i = 0; i < count; i++) {
        /* Clipped first: then what is cut off is the fraction alone. */
        float sum = from[i] * UNIT;
        sum = sum > 0.0f ? sum : 0.0f;
        sum = sum < HIGHEST ? sum : HIGHEST;
        to[i] = (int16_t)sum;
    }
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

/* Memory for a step's work, divided; NULL where there is none. */
static char *prepare(const vcf_step *step, const vcf_maps *const *maps, const vcf_taps *const *taps,
                     room *r)
{
    char *memory = calloc(divide(step, maps, taps, NULL, r), 1);
    if (!memory)
        return NULL;
    divide(step, maps, taps, memory, r);
    for (size_t n = 0; n < 3; n++) {
        size_t reach = taps[n]->side / 2;
        mirrored(maps[n]->rows, reach, r->places[n]);
        mirrored(maps[n]->columns, reach, r->places[n] + maps[n]->rows + 2 * reach);
    }
    return memory;
}

/* The taps of a map's filter at a position. */
static void taps_at(const vcf_maps *maps, const vcf_taps *taps, const ptrdiff_t *places,
                    size_t place, const room *r)
{
    const ptrdiff_t *across = places + maps->rows + taps->side / 2 * 2;
    around(maps, taps->side, places, across, place, r->zeros, r->near);
}

/* Sums of all filters at a position, and the inputs of the first layer. */
static void see(const vcf_step *step, const vcf_maps *const *maps, const vcf_taps *const *taps,
                size_t place, const room *r, float *sums, int16_t *inputs)
{
    size_t filtered = 0;
    for (size_t n = 0; n < 3; n++) {
        taps_at(maps[n], taps[n], r->places[n], place, r);
        filter_one(r->near, taps[n]->side * taps[n]->side, maps[n]->channels, taps[n]->weight,
                   taps[n]->bias, sums + filtered);
        filtered += maps[n]->channels;
    }
    activate_sums(sums, filtered, inputs);
    const float *seen = maps[0]->data + (ptrdiff_t)(place / maps[0]->columns) * maps[0]->row +
                        (ptrdiff_t)(place % maps[0]->columns) * maps[0]->column;
    narrow(seen, step->known, inputs + filtered);
}

int vcf_indices(const vcf_step *step, const vcf_maps *seen, const vcf_maps *symbols,
                const vcf_maps *activity, const int64_t *where, size_t count,
                const vcf_step_frame *frame, float highest, float *out)
{
    const vcf_maps *maps[] = {seen, symbols, activity};
    const vcf_taps *taps[] = {&step->seen, &step->symbols, &step->activity};
    room r;
    char *memory = prepare(step, maps, taps, &r);
    if (!memory)
        return -1;
    size_t coded = step->second.outputs;
    int way = vcf_dense_ways() - 1;
    for (size_t begin = 0; begin < count; begin += VCF_DENSE_ROWS) {
        size_t rows = count - begin < VCF_DENSE_ROWS ? count - begin : VCF_DENSE_ROWS;
        for (size_t k = 0; k < rows; k++)
            see(step, maps, taps, (size_t)where[begin + k], &r, r.line, r.inputs + k * r.pitch);
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

/*
 * out[r] = the sum of `count` rows of `width` weights, pitch apart, each times factors[r] of it,
 * for TOGETHER rows r of factors and out, `apart` from each other both.
 */
VCF_CLONES
static void back(const float *weight, size_t pitch, const float *factors, size_t count,
                 size_t width, float *restrict out, size_t apart)
{
    size_t i = 0;
    for (; i + 2 * LANES <= width; i += 2 * LANES) {
        lanes left[TOGETHER] = {{0}}, right[TOGETHER] = {{0}};
        for (size_t n = 0; n < count; n++) {
            const lanes *row = (const lanes *)(weight + n * pitch + i);
            lanes first = row[0], second = row[1];
            for (size_t r = 0; r < TOGETHER; r++) {
                left[r] += first * factors[r * apart + n];
                right[r] += second * factors[r * apart + n];
            }
        }
        for (size_t r = 0; r < TOGETHER; r++) {
            lanes *to = (lanes *)(out + r * apart + i);
            to[0] = left[r];
            to[1] = right[r];
        }
    }
    /* What is left ends with the last ones, or begins anew with some that are done. */
    for (; i < width && width >= LANES; i += LANES) {
        i = i + LANES < width ? i : width - LANES;
        lanes sums[TOGETHER] = {{0}};
        for (size_t n = 0; n < count; n++)
            for (size_t r = 0; r < TOGETHER; r++)
                sums[r] += *(const lanes *)(weight + n * pitch + i) * factors[r * apart + n];
        for (size_t r = 0; r < TOGETHER; r++)
            *(lanes *)(out + r * apart + i) = sums[r];
    }
    for (; i < width; i++)
        for (size_t r = 0; r < TOGETHER; r++) {
            float sum = 0.0f;
            for (size_t n = 0; n < count; n++)
                sum += weight[n * pitch + i] * factors[r * apart + n];
            out[r * apart + i] = sum;
        }
}

/* Gradients of activations to those of their sums, 0 where these are cut off. */
VCF_CLONES
static void through(const float *sums, size_t count, float *restrict gradients)
{
    for (size_t i = 0; i < count; i++)
        gradients[i] = sums[i] >= 0.0f && sums[i] < 256.0f / UNIT ? gradients[i] * UNIT : 0.0f;
}

VCF_CLONES
static void widen(const int32_t *from, size_t count, float *restrict to)
{
    for (size_t i = 0; i < count; i++)
        to[i] = (float)from[i];
}

/* to += gradients times weights where something is known. */
VCF_CLONES
static void spread(const float *gradients, const float *weight, const float *known, size_t count,
                   float *restrict to)
{
    for (size_t i = 0; i < count; i++)
        to[i] += gradients[i] * weight[i] * known[i];
}

int vcf_costs(const vcf_step *step, const vcf_step_weights *weights, const vcf_maps *seen,
              const vcf_maps *symbols, const vcf_maps *activity, const int64_t *where, size_t count,
              const vcf_step_frame *frame, const float *slopes, const float *known, float *costs)
{
    const vcf_maps *maps[] = {seen, symbols, activity};
    const vcf_taps *taps[] = {&step->seen, &step->symbols, &step->activity};
    size_t high = seen->channels, coded = step->second.outputs, hidden = step->hidden;
    size_t inputs = step->first.inputs, wide = vcf_dense_padded(step->first.outputs);
    size_t area = step->seen.side * step->seen.side;
    int way = vcf_dense_ways() - 1;
    size_t last = inputs - step->known, apart = inputs + hidden + coded;
    room r;
    char *memory = prepare(step, maps, taps, &r);
    /* Of each position its sums of filters; of those together gradients at both layers. */
    float *lines = calloc(VCF_DENSE_ROWS * inputs + 2 * TOGETHER * apart + hidden, sizeof(*lines));
    if (!memory || !lines) {
        free(lines);
        free(memory);
        return -1;
    }
    float *outer = lines + VCF_DENSE_ROWS * inputs, *inner = outer + TOGETHER * apart;
    float *sums = inner + TOGETHER * apart;
    for (size_t begin = 0; begin < count; begin += VCF_DENSE_ROWS) {
        size_t rows = count - begin < VCF_DENSE_ROWS ? count - begin : VCF_DENSE_ROWS;
        for (size_t k = 0; k < rows; k++)
            see(step, maps, taps, (size_t)where[begin + k], &r, lines + k * inputs,
                r.inputs + k * r.pitch);
        vcf_dense_sums(&step->first, r.inputs, r.pitch, rows, frame->first, way, r.first);
        for (size_t from = 0; from < rows; from += TOGETHER) {
            size_t these = rows - from < TOGETHER ? rows - from : TOGETHER;
            for (size_t k = 0; k < these; k++) {
                const float *slope = slopes + (begin + from + k) * coded;
                for (size_t c = 0; c < coded; c++)
                    outer[k * apart + hidden + c] = slope[c] / 2048.0f;
            }
            back(weights->second, hidden, outer + hidden, coded, hidden, outer, apart);
            for (size_t k = 0; k < these; k++) {
                widen(r.first + (from + k) * wide, hidden, sums);
                through(sums, hidden, outer + k * apart);
            }
            back(weights->first, inputs, outer, hidden + coded, high, inner, apart);
            back(weights->first + last, inputs, outer, hidden + coded, step->known, inner + last,
                 apart);
            for (size_t k = 0; k < these; k++) {
                float *found = inner + k * apart;
                size_t place = (size_t)where[begin + from + k];
                through(lines + (from + k) * inputs, high, found);
                taps_at(seen, &step->seen, r.places[0], place, &r);
                for (size_t n = 0; n < area; n++) {
                    if (r.near[n] == r.zeros)
                        continue;
                    ptrdiff_t at = r.near[n] - seen->data;
                    spread(found, step->seen.weight + n * high, known + at, high, costs + at);
                }
                ptrdiff_t own = (ptrdiff_t)(place / seen->columns) * seen->row +
                                (ptrdiff_t)(place % seen->columns) * seen->column;
                for (size_t c = 0; c < step->known; c++)
                    costs[own + (ptrdiff_t)c] += found[last + c] * known[own + (ptrdiff_t)c];
            }
        }
    }
    free(lines);
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
