/* The loop filter of reconstructed planes, and the sums that its coefficients follow from. */
#ifndef VCFILTER_NATIVE_FILTERS_H
#define VCFILTER_NATIVE_FILTERS_H

#include <stddef.h>

/*
 * Planes are rows x columns floats, rows one after the other; their border repeats. Each sample
 * has VCF_PAIRS pairs of neighbours opposite to each other, and VCF_FEATURES features: of each pair
 * the sum of both differences to the sample, cut off at +-clip; then of each pair the sum as it is.
 * Every function returns 0, or -1 without memory.
 */
#define VCF_PAIRS 6
#define VCF_FEATURES 12

/* out = plane + weights * features. */
int vcf_loop_filter(const float *plane, size_t rows, size_t columns, float clip,
                    const float *weights, float *out);

/*
 * Sums over the first `inside_rows` x `inside_columns` samples: of features i <= j, VCF_FEATURES
 * (VCF_FEATURES + 1) / 2 of them row by row, and then of each feature times target - plane.
 */
#define VCF_LOOP_SUMS 90
int vcf_loop_sums(const float *plane, const float *target, size_t rows, size_t columns,
                  size_t inside_rows, size_t inside_columns, float clip, double *sums);

#endif
