/* The loop filter of reconstructed planes, and the sums that its coefficients follow from. */
#ifndef VCFILTER_NATIVE_FILTERS_H
#define VCFILTER_NATIVE_FILTERS_H

#include <stddef.h>

/*
 * Planes are rows x columns floats, rows one after the other; their border repeats. Each sample
 * has VCF_PAIRS pairs of neighbours opposite to each other, and three features of each pair: the sum
 * of both differences to the sample, cut off at +-clip; the sum as it is; and either the same sum of
 * another plane, the guide, or where that is NULL the sum times the activity around the sample. This
 * is m / (m + busy), m the mean over 5x5 samples of the second differences' magnitudes across and
 * down. Every function returns 0, or -1 without memory.
 */
#define VCF_PAIRS 6
#define VCF_FEATURES 18

/* out = plane + weights * features; the first of all pairs, then the second, then the third. */
int vcf_loop_filter(const float *plane, const float *guide, size_t rows, size_t columns, float clip,
                    float busy, const float *weights, float *out);

/*
 * Sums over the first `inside_rows` x `inside_columns` samples: of features i <= j, row by row, and
 * then of each feature times target - plane.
 */
#define VCF_LOOP_SUMS 189
int vcf_loop_sums(const float *plane, const float *guide, const float *target, size_t rows,
                  size_t columns, size_t inside_rows, size_t inside_columns, float clip, float busy,
                  double *sums);

/*
 * Whole coefficients of least squares, found one after the other where the squared error and a price
 * per unit that each differs from `source` are least, until none changes or `sweeps` times through
 * the first `free_` of them.
 *
 * products: count x count. rest: what is left of the products with the error, changed. price: in
 * squared error. found: where to begin, changed; within +-limit.
 */
void vcf_descend(const double *products, size_t count, size_t free_, double price, double limit,
                 size_t sweeps, const double *source, double *rest, double *found);

#endif
