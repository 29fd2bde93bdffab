#include "dense.h"

#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__)
#define X86 1
#include <immintrin.h>
#endif

#define GROUP VCF_DENSE_GROUP
#define ROWS VCF_DENSE_ROWS

/* One group of outputs of some rows. */
typedef void group_sums(const int16_t *weights, size_t pairs, const int16_t *x, size_t pitch,
                        size_t rows, const int32_t *start, int32_t *sums, size_t apart);

size_t vcf_dense_padded(size_t outputs)
{
    return (outputs + GROUP - 1) / GROUP * GROUP;
}

size_t vcf_dense_weights(size_t inputs, size_t outputs)
{
    return vcf_dense_padded(outputs) * ((inputs + 1) / 2) * 2;
}

void vcf_dense_pack(const float *weight, size_t inputs, size_t outputs, int16_t *packed)
{
    size_t pairs = (inputs + 1) / 2;
    memset(packed, 0, vcf_dense_weights(inputs, outputs) * sizeof(*packed));
    for (size_t n = 0; n < outputs; n++)
        for (size_t k = 0; k < inputs; k++)
            packed[((n / GROUP * pairs + k / 2) * GROUP + n % GROUP) * 2 + k % 2] =
                (int16_t)weight[n * inputs + k];
}

static void plain(const int16_t *weights, size_t pairs, const int16_t *x, size_t pitch, size_t rows,
                  const int32_t *start, int32_t *sums, size_t apart)
{
    for (size_t r = 0; r < rows; r++, x += pitch, sums += apart) {
        int32_t total[GROUP];
        memcpy(total, start, sizeof(total));
        for (size_t k = 0; k < pairs; k++)
            for (size_t n = 0; n < GROUP; n++)
                total[n] += x[2 * k] * weights[(k * GROUP + n) * 2] +
                            x[2 * k + 1] * weights[(k * GROUP + n) * 2 + 1];
        memcpy(sums, total, sizeof(total));
    }
}

#ifdef X86

static inline int32_t pair_at(const int16_t *x)
{
    int32_t pair;
    memcpy(&pair, x, sizeof(pair));
    return pair;
}

/* All rows at once, those that are not there as the last one. */
__attribute__((target("avx512f,avx512bw,avx512vnni"))) static void
by_vnni(const int16_t *weights, size_t pairs, const int16_t *x, size_t pitch, size_t rows,
        const int32_t *start, int32_t *sums, size_t apart)
{
    const int16_t *row[ROWS];
    __m512i total[ROWS];
    for (size_t r = 0; r < ROWS; r++) {
        row[r] = x + (r < rows ? r : rows - 1) * pitch;
        total[r] = _mm512_loadu_si512(start);
    }
    for (size_t k = 0; k < pairs; k++) {
        __m512i both = _mm512_loadu_si512(weights + k * GROUP * 2);
        for (size_t r = 0; r < ROWS; r++)
            total[r] = _mm512_dpwssd_epi32(total[r], both,
                                           _mm512_set1_epi32(pair_at(row[r] + 2 * k)));
    }
    for (size_t r = 0; r < rows; r++)
        _mm512_storeu_si512(sums + r * apart, total[r]);
}

__attribute__((target("avx2"))) static void
by_avx2(const int16_t *weights, size_t pairs, const int16_t *x, size_t pitch, size_t rows,
        const int32_t *start, int32_t *sums, size_t apart)
{
    enum { AT_ONCE = 4, HALF = GROUP / 2 };
    for (size_t first = 0; first < rows; first += AT_ONCE) {
        const int16_t *row[AT_ONCE];
        __m256i low[AT_ONCE], high[AT_ONCE];
        for (size_t r = 0; r < AT_ONCE; r++) {
            row[r] = x + (first + r < rows ? first + r : rows - 1) * pitch;
            low[r] = _mm256_loadu_si256((const __m256i *)start);
            high[r] = _mm256_loadu_si256((const __m256i *)(start + HALF));
        }
        for (size_t k = 0; k < pairs; k++) {
            const int16_t *from = weights + k * GROUP * 2;
            __m256i a = _mm256_loadu_si256((const __m256i *)from);
            __m256i b = _mm256_loadu_si256((const __m256i *)(from + GROUP));
            for (size_t r = 0; r < AT_ONCE; r++) {
                __m256i pair = _mm256_set1_epi32(pair_at(row[r] + 2 * k));
                low[r] = _mm256_add_epi32(low[r], _mm256_madd_epi16(a, pair));
                high[r] = _mm256_add_epi32(high[r], _mm256_madd_epi16(b, pair));
            }
        }
        for (size_t r = first; r < rows && r < first + AT_ONCE; r++) {
            _mm256_storeu_si256((__m256i *)(sums + r * apart), low[r - first]);
            _mm256_storeu_si256((__m256i *)(sums + r * apart + HALF), high[r - first]);
        }
    }
}

#endif

int vcf_dense_ways(void)
{
#ifdef X86
    if (__builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw"))
        return 3;
    if (__builtin_cpu_supports("avx2"))
        return 2;
#endif
    return 1;
}

void vcf_dense_sums(const vcf_dense *layer, const int16_t *x, size_t pitch, size_t rows,
                    const int32_t *start, int way, int32_t *sums)
{
#ifdef X86
    group_sums *const ways[] = {plain, by_avx2, by_vnni};
#else
    group_sums *const ways[] = {plain};
#endif
    size_t pairs = (layer->inputs + 1) / 2, padded = vcf_dense_padded(layer->outputs);
    for (size_t n = 0; n < padded; n += GROUP)
        ways[way](layer->weights + n * pairs * 2, pairs, x, pitch, rows, start + n, sums + n,
                  padded);
}
