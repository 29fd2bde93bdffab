#include "blocks.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "clones.h"

typedef float lanes __attribute__((vector_size(VCF_BLOCK * sizeof(float))));

/* The basis downwards. */
VCF_CLONES
static void basis_down(const float *x, const float *basis, size_t columns, float *restrict out)
{
    for (size_t k = 0; k < VCF_BLOCK; k++, out += columns) {
        const float *b = basis + k * VCF_BLOCK;
        for (size_t i = 0; i < columns; i++) {
            float sum = 0.0f;
            for (size_t n = 0; n < VCF_BLOCK; n++)
                sum += b[n] * x[n * columns + i];
            out[i] = sum;
        }
    }
}

/* The transposed basis across, of each block of such rows; blocks one after the other. */
VCF_CLONES
static void basis_across(const float *x, const float *basis, size_t columns, float *restrict out)
{
    lanes turned[VCF_BLOCK];
    for (size_t n = 0; n < VCF_BLOCK; n++)
        for (size_t i = 0; i < VCF_BLOCK; i++)
            turned[n][i] = basis[i * VCF_BLOCK + n];
    for (size_t c = 0; c < columns; c += VCF_BLOCK)
        for (size_t k = 0; k < VCF_BLOCK; k++, out += VCF_BLOCK) {
            const float *from = x + k * columns + c;
            lanes sums = from[0] * turned[0];
            for (size_t n = 1; n < VCF_BLOCK; n++)
                sums += from[n] * turned[n];
            memcpy(out, &sums, sizeof(sums));
        }
}

void vcf_transform(const float *x, const float *basis, size_t columns, float *lines, float *out)
{
    basis_down(x, basis, columns, lines);
    basis_across(lines, basis, columns, out);
}

VCF_CLONES
static void subtract(const float *x, const float *y, size_t count, float *restrict out)
{
    for (size_t i = 0; i < count; i++)
        out[i] = x[i] - y[i];
}

/* Of one block's coefficients: the sum of what is below 1, and the product of the rest, per column. */
VCF_CLONES
static void add_up(const float *block, const float *weights, float coded, float *restrict sums,
                   float *restrict products)
{
    for (size_t c = 0; c < VCF_BLOCK; c++) {
        sums[c] = 0.0f;
        products[c] = 1.0f;
    }
    for (size_t r = 0; r < VCF_BLOCK; r++)
        for (size_t c = 0; c < VCF_BLOCK; c++) {
            float u = fabsf(block[r * VCF_BLOCK + c] * weights[r * VCF_BLOCK + c]), square = u * u;
            sums[c] += square < coded ? square : coded;
            products[c] *= u > 1.0f ? u : 1.0f;
        }
}

double vcf_block_cost(const float *x, const float *predicted, size_t rows, size_t columns,
                      size_t inside_rows, size_t inside_columns, const float *basis,
                      const float *weights, float coded, float doubling)
{
    size_t samples = VCF_BLOCK * columns;
    float *error = malloc(3 * samples * sizeof(float)), sums[VCF_BLOCK], products[VCF_BLOCK];
    if (!error)
        return -1.0;
    float *lines = error + samples, *blocks = lines + samples;
    double cost = 0.0;
    for (size_t row = 0; row < rows && row < inside_rows; row += VCF_BLOCK) {
        memset(error, 0, samples * sizeof(float));
        for (size_t k = 0; k < VCF_BLOCK && row + k < inside_rows; k++) {
            size_t at = (row + k) * columns;
            subtract(x + at, predicted + at, inside_columns, error + k * columns);
        }
        vcf_transform(error, basis, columns, lines, blocks);
        for (const float *block = blocks; block < blocks + samples; block += VCF_BLOCK_SAMPLES) {
            add_up(block, weights, coded, sums, products);
            for (size_t c = 0; c < VCF_BLOCK; c++) {
                cost += (double)sums[c];
                if (products[c] > 1.0f)
                    cost += (double)(doubling * log2f(products[c]));
            }
        }
    }
    free(error);
    return cost;
}
