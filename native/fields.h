/* Moving planes by fields of displacements, and the sums that correct such fields. */
#ifndef VCFILTER_NATIVE_FIELDS_H
#define VCFILTER_NATIVE_FIELDS_H

#include <stddef.h>

/*
 * Planes are rows x columns floats, rows one after the other. A field has rows/factor x
 * columns/factor positions, each in the middle of its factor x factor samples, and is interpolated
 * bilinearly between them; its border repeats. Every function returns 0, or -1 without memory.
 */

/*
 * out[p] = plane at zoom * (p + scale * (dx, dy)(p)), bicubic (a = -0.75) or bilinear; the plane's
 * border repeats. out has rows x columns samples, the plane zoom times as many each way; zoom is 1,
 * or 2 with cubic.
 */
int vcf_warp(const float *plane, size_t zoom, size_t rows, size_t columns, const float *dx,
             const float *dy, size_t factor, float scale, int cubic, float *out);

/*
 * A plane with the samples halfway between its own, 2 rows x 2 columns: out[2 i][2 j] is the plane's
 * [i][j], the others follow from eight samples each way, weighted -1 4 -11 40 40 -11 4 -1 (the
 * half-sample filter of HEVC). The border repeats.
 */
int vcf_enlarge(const float *plane, size_t rows, size_t columns, float *out);

#define VCF_PARTS 5       /* of a field: two displacements, and the blend */
#define VCF_FACTOR_MAX 32 /* of sums */

/*
 * The sums of `vcf_normal`, in this order: for i <= j of the five components, and five of each
 * component times the error.
 */
#define VCF_NORMAL_SUMS 20

/*
 * Of x ~ a + alpha (b - a), alpha = (1 + blend) / 2, where a and b are moved by (dx, dy) of their
 * own: products of the derivatives by the five components (a's displacement, b's, blend), and of
 * those with the error, summed per position of the blend's grid with the weight that bilinear
 * interpolation gives it. b may be NULL: then alpha is 0.
 * sums: VCF_NORMAL_SUMS planes of rows/factor x columns/factor.
 */
int vcf_normal(const float *x, const float *a, const float *b, const float *blend, size_t rows,
               size_t columns, size_t factor, float *sums);

/*
 * What is added to the sums' diagonal, and what pulls each component towards its neighbours; most: the
 * largest change of a displacement.
 */
typedef struct {
    float damping[VCF_PARTS], pull[VCF_PARTS], most;
} vcf_fit;

/*
 * A field, VCF_PARTS planes of h x w, after a Gauss-Newton step with the sums of `vcf_normal`; its
 * blend stays within -1 ... 1.
 */
int vcf_fitted(const float *field, const float *sums, size_t h, size_t w, const vcf_fit *fit,
               float *out);

/* Sums of (x - a - alpha (b - a))^2 over each position's factor x factor samples, alpha as above. */
int vcf_errors(const float *x, const float *a, const float *b, const float *blend, size_t rows,
               size_t columns, size_t factor, float *out);

/*
 * Of a - b, which (jx, jy) = left * grad a - right * grad b would change: sums of jx^2, jx jy, jy^2,
 * jx e, jy e and e^2, e = a - b, as above.
 */
#define VCF_AGREEMENT_SUMS 6
int vcf_agreement(const float *a, const float *b, float left, float right, size_t rows,
                  size_t columns, size_t factor, float *sums);

#endif
