/* Rate-distortion optimal rounding of latents to symbols. */
#ifndef VCFILTER_NATIVE_SYMBOLS_H
#define VCFILTER_NATIVE_SYMBOLS_H

#include <stddef.h>
#include <stdint.h>

/*
 * For each i: the integer near u[i], one towards zero from it, or zero, whichever is cheapest in
 * (|u| - level)^2 + weight * bits[table][level]; table 0 always gives zero.
 *
 * bits has `tables` rows of `width` costs; levels beyond the last column cost what it costs.
 * weights has one entry per symbol, or is NULL and `weight` holds for all.
 * Tables must be below `tables`; the caller checks.
 */
void vcf_quantise(const float *u, const uint8_t *index, size_t count, const float *bits,
                  size_t width, const float *weights, float weight, float level_max,
                  int32_t *symbols);

#endif
