/* What the tables and the means of one step of a walk through a latent follow from. */
#ifndef VCFILTER_NATIVE_WALK_H
#define VCFILTER_NATIVE_WALK_H

#include <stddef.h>
#include <stdint.h>

/* Maps of rows x columns positions, their channels one after the other. */
typedef struct {
    const float *data;
    ptrdiff_t row, column; /* floats from one to the next */
    size_t rows, columns, channels;
} vcf_maps;

/*
 * out[n * pitch + c] = floor(sum / 512) within 0 to 255, where sum is that of a side x side filter
 * per channel around position where[n], plus bias[c]. weight: channels x side x side. All are
 * integers whose sums stay below 2^24. Maps are mirrored at their outermost positions, or
 * surrounded by zeros along a side that is too short for it.
 * Returns 0, or -1 without memory. Positions must lie in the maps; the caller checks.
 */
int vcf_filter(const vcf_maps *maps, const float *weight, const float *bias, size_t side,
               const int64_t *where, size_t count, float *out, size_t pitch);

/*
 * The side x side neighbours of each position, one after the other with all their channels, each
 * way mirrored as above: out has count rows of side * side * channels floats, pitch apart.
 */
int vcf_neighbours(const vcf_maps *maps, size_t side, const int64_t *where, size_t count, float *out,
                   size_t pitch);

#endif
