/* What the tables and the means of one step of a walk through a latent follow from. */
#ifndef VCFILTER_NATIVE_WALK_H
#define VCFILTER_NATIVE_WALK_H

#include <stddef.h>
#include <stdint.h>

#include "dense.h"

/* Maps of rows x columns positions, their channels one after the other. */
typedef struct {
    const float *data;
    ptrdiff_t row, column; /* floats from one to the next */
    size_t rows, columns, channels;
} vcf_maps;

/*
 * What the table indices of one step follow from. All numbers are integers; sums of products stay
 * below 2^24. Filters have one of side x side per channel, the channels of each tap one after the
 * other, and a bias; they give activations: floor(sum / 512) within 0 to 255.
 */
typedef struct {
    size_t side;
    const float *weight, *bias;
} vcf_taps;

typedef struct {
    vcf_taps seen, symbols, activity; /* filters of the three maps */
    size_t known;  /* channels of what is seen that are taken as they are */
    size_t hidden; /* outputs of the first layer that go through the second; the others are added */
    vcf_dense first, second;
} vcf_step;

/* What a frame adds: sums that both layers begin with, padded, and what is added at the end. */
typedef struct {
    const int32_t *first, *second;
    const float *last;
    float lowest;
} vcf_step_frame;

/*
 * out[n * channels + c]: the table index of channel c at position where[n], not rounded, from
 * lowest to highest. seen: maps of all channels that the step sees; symbols, activity: of those that
 * it codes. Maps are mirrored at their outermost positions, or surrounded by zeros along a side
 * that is too short for it. Returns 0, or -1 without memory. Positions must lie in the maps.
 */
int vcf_indices(const vcf_step *step, const vcf_maps *seen, const vcf_maps *symbols,
                const vcf_maps *activity, const int64_t *where, size_t count,
                const vcf_step_frame *frame, float highest, float *out);

/* What a gradient goes back through: both layers' weights, rows of outputs, inputs in a row. */
typedef struct {
    const float *first, *second;
} vcf_step_weights;

/*
 * costs: to what the step sees at neighbours that are known is added how the sum of all indices
 * times their slopes (as many as `out` above has) changes with it. Nothing passes where an
 * activation is cut off; slopes of indices that are cut off must be 0. known: 1 or 0, and costs:
 * maps as seen, with the same distances. Otherwise as vcf_indices.
 */
int vcf_costs(const vcf_step *step, const vcf_step_weights *weights, const vcf_maps *seen,
              const vcf_maps *symbols, const vcf_maps *activity, const int64_t *where, size_t count,
              const vcf_step_frame *frame, const float *slopes, const float *known, float *costs);

/*
 * The side x side neighbours of each position, one after the other with all their channels, each
 * way mirrored as above: out has count rows of side * side * channels floats, pitch apart.
 */
int vcf_neighbours(const vcf_maps *maps, size_t side, const int64_t *where, size_t count, float *out,
                   size_t pitch);

/*
 * Symbols of a step, count rows of channels: written to maps of `pitch` channels at positions
 * at[n], from channel `low` on, and levels[magnitude up to 256] of each to `seen` alike.
 */
void vcf_store(const float *symbols, const float *levels, const int64_t *at, size_t count,
               size_t channels, size_t low, size_t pitch, float *maps, float *seen);

/* maps at such places = mean + symbols * steps (one per channel). */
void vcf_values(const float *mean, const float *symbols, const float *steps, const int64_t *at,
                size_t count, size_t channels, size_t low, size_t pitch, float *maps);

#endif
