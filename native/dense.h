/* Dense layers of integers, exact. */
#ifndef VCFILTER_NATIVE_DENSE_H
#define VCFILTER_NATIVE_DENSE_H

#include <stddef.h>
#include <stdint.h>

#define VCF_DENSE_GROUP 16 /* outputs that lie together, padded by zeros */
#define VCF_DENSE_ROWS 8   /* most rows of inputs at a time */
#define VCF_DENSE_MAX 32767.0f /* largest magnitude of a weight */

/* Inputs and outputs, and weights in pairs of inputs: group, pair, output, one of the pair. */
typedef struct {
    size_t inputs, outputs;
    const int16_t *weights;
} vcf_dense;

/* Outputs with their padding, and the weights of a layer. */
size_t vcf_dense_padded(size_t outputs);
size_t vcf_dense_weights(size_t inputs, size_t outputs);

/* weight: outputs x inputs integers. packed: room for vcf_dense_weights. */
void vcf_dense_pack(const float *weight, size_t inputs, size_t outputs, int16_t *packed);

/* Ways of summing that this processor has: 1 to 3, each quicker than the one before. */
int vcf_dense_ways(void);

/*
 * sums[r * padded outputs + n] = start[n] + what row r of x gives output n.
 *
 * x: rows of pitch integers, pitch even; where inputs are odd, one more is read and must be 0.
 * rows: at most VCF_DENSE_ROWS. start: padded outputs. No partial sum may pass 2^31.
 * way: below vcf_dense_ways; all give the same sums.
 */
void vcf_dense_sums(const vcf_dense *layer, const int16_t *x, size_t pitch, size_t rows,
                    const int32_t *start, int way, int32_t *sums);

#endif
