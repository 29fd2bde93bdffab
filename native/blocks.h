/* Blocks of samples as coefficients, and what an error in them costs. */
#ifndef VCFILTER_NATIVE_BLOCKS_H
#define VCFILTER_NATIVE_BLOCKS_H

#include <stddef.h>

/* A block is VCF_BLOCK x VCF_BLOCK samples. */
#define VCF_BLOCK 8
#define VCF_BLOCK_SAMPLES 64

/*
 * Coefficients of a row of blocks, one block after the other, its rows of frequencies one after the
 * other: basis * samples * transposed basis, all VCF_BLOCK x VCF_BLOCK.
 *
 * x: VCF_BLOCK rows of so many columns, a multiple of VCF_BLOCK. lines: room for as many floats.
 */
void vcf_transform(const float *x, const float *basis, size_t columns, float *lines, float *out);

/*
 * What an error costs, the sum over all coefficients u of x - predicted, times weights: the smaller one
 * of u^2 and `coded`, from |u| = 1 on coded + doubling * log2 |u|; coded is below 1. Beyond the rows
 * and columns inside there is no error.
 *
 * rows, columns: of the planes, multiples of VCF_BLOCK. weights: VCF_BLOCK_SAMPLES; of coefficients
 * below 2^15 all lie within the range of floats. Returns -1 without memory.
 */
double vcf_block_cost(const float *x, const float *predicted, size_t rows, size_t columns,
                      size_t inside_rows, size_t inside_columns, const float *basis,
                      const float *weights, float coded, float doubling);

#endif
