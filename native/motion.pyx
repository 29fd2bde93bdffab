"""Moving planes by fields of displacements, and the sums that correct such fields.

Planes are (rows, columns) and fields (rows / factor, columns / factor) float32, see fields.h.
"""

from libc.stddef cimport size_t

import numpy as np


cdef extern from "fields.h" nogil:
    int VCF_PARTS, VCF_FACTOR_MAX, VCF_NORMAL_SUMS, VCF_AGREEMENT_SUMS
    ctypedef struct vcf_fit:
        float damping[5]
        float pull[5]
        float most
    int vcf_warp(const float *plane, size_t zoom, size_t rows, size_t columns, const float *dx,
                 const float *dy, size_t factor, float scale, int cubic, float *out)
    int vcf_enlarge(const float *plane, size_t rows, size_t columns, float *out)
    int vcf_normal(const float *x, const float *a, const float *b, const float *blend, size_t rows,
                   size_t columns, size_t factor, float *sums)
    int vcf_fitted(const float *field, const float *sums, size_t h, size_t w, const vcf_fit *fit,
                   float *out)
    int vcf_errors(const float *x, const float *a, const float *b, const float *blend, size_t rows,
                   size_t columns, size_t factor, float *out)
    int vcf_agreement(const float *a, const float *b, float left, float right, size_t rows,
                      size_t columns, size_t factor, float *sums)


cdef size_t checked(size_t rows, size_t columns, size_t h, size_t w) except 0:
    """How many samples a position has, each way: a multiple of 4."""
    cdef size_t factor = rows // h if h else 0
    if not factor or factor % 4 or h * factor != rows or w * factor != columns:
        raise ValueError(f"a field of {h}x{w} does not fit a plane of {rows}x{columns}")
    return factor


cdef int summed(size_t factor) except -1:
    if factor > <size_t>VCF_FACTOR_MAX:
        raise ValueError(f"{factor} samples of a position are more than {VCF_FACTOR_MAX}")
    return 0


cdef int alike(const float[:, ::1] a, const float[:, ::1] b) except -1:
    if a.shape[0] != b.shape[0] or a.shape[1] != b.shape[1]:
        raise ValueError(f"{a.shape[0]}x{a.shape[1]} and {b.shape[0]}x{b.shape[1]} differ")
    return 0


def warp(const float[:, ::1] plane, const float[:, ::1] dx, const float[:, ::1] dy,
         float scale, bint cubic, float[:, ::1] out):
    """A plane sampled at p + scale * (dx, dy)(p), the field interpolated; written to out.

    Args:
        plane: as large as out, or with cubic twice as large each way: then one of `enlarge`.

    Raises:
        ValueError: sizes do not fit.
    """
    cdef size_t rows = out.shape[0], columns = out.shape[1]
    cdef size_t factor = checked(rows, columns, dx.shape[0], dx.shape[1])
    cdef size_t zoom = 2 if cubic and <size_t>plane.shape[0] == 2 * rows else 1
    cdef int status
    alike(dx, dy)
    if <size_t>plane.shape[0] != zoom * rows or <size_t>plane.shape[1] != zoom * columns:
        raise ValueError(f"{plane.shape[0]}x{plane.shape[1]} and {rows}x{columns} differ")
    with nogil:
        status = vcf_warp(&plane[0, 0], zoom, rows, columns, &dx[0, 0], &dy[0, 0], factor, scale,
                          cubic, &out[0, 0])
    if status:
        raise MemoryError


def enlarge(const float[:, ::1] plane, float[:, ::1] out):
    """A plane with the samples halfway between its own, written to out, see fields.h.

    Raises:
        ValueError: out is not twice as large each way.
    """
    if (not plane.shape[0] or not plane.shape[1] or out.shape[0] != 2 * plane.shape[0]
            or out.shape[1] != 2 * plane.shape[1]):
        raise ValueError(f"{out.shape[0]}x{out.shape[1]} is not twice "
                         f"{plane.shape[0]}x{plane.shape[1]}")
    cdef int status
    with nogil:
        status = vcf_enlarge(&plane[0, 0], plane.shape[0], plane.shape[1], &out[0, 0])
    if status:
        raise MemoryError


def normal(const float[:, ::1] x, const float[:, ::1] a, b, const float[:, ::1] blend):
    """(20, h, w) sums of products of derivatives and errors, see fields.h.

    Args:
        b: as a, or None.

    Raises:
        ValueError: sizes do not fit.
    """
    cdef size_t factor = checked(x.shape[0], x.shape[1], blend.shape[0], blend.shape[1])
    cdef const float[:, ::1] second = a if b is None else b
    cdef const float *other = NULL
    cdef int status
    summed(factor)
    alike(x, a)
    alike(x, second)
    if b is not None:
        other = &second[0, 0]
    found = np.empty((VCF_NORMAL_SUMS, blend.shape[0], blend.shape[1]), np.float32)
    cdef float[:, :, ::1] sums = found
    with nogil:
        status = vcf_normal(&x[0, 0], &a[0, 0], other, &blend[0, 0], x.shape[0], x.shape[1],
                            factor, &sums[0, 0, 0])
    if status:
        raise MemoryError
    return found


def fitted(const float[:, :, ::1] field, const float[:, :, ::1] sums, damping, pull, float most):
    """(5, h, w) the field after a Gauss-Newton step, see fields.h.

    Args:
        field: (5, h, w). sums: (20, h, w) of `normal`. damping, pull: five numbers each.

    Raises:
        ValueError: sizes do not fit.
    """
    cdef vcf_fit fit
    cdef int status, i
    h, w = field.shape[1], field.shape[2]
    if (not h or not w or field.shape[0] != VCF_PARTS or sums.shape[0] != VCF_NORMAL_SUMS
            or sums.shape[1] != h or sums.shape[2] != w or len(damping) != VCF_PARTS
            or len(pull) != VCF_PARTS):
        raise ValueError(f"{sums.shape[0]}x{sums.shape[1]}x{sums.shape[2]} sums do not fit a field "
                         f"of {field.shape[0]}x{h}x{w}")
    for i in range(VCF_PARTS):
        fit.damping[i], fit.pull[i] = damping[i], pull[i]
    fit.most = most
    found = np.empty((VCF_PARTS, h, w), np.float32)
    cdef float[:, :, ::1] out = found
    with nogil:
        status = vcf_fitted(&field[0, 0, 0], &sums[0, 0, 0], field.shape[1], field.shape[2], &fit,
                            &out[0, 0, 0])
    if status:
        raise MemoryError
    return found


def errors(const float[:, ::1] x, const float[:, ::1] a, const float[:, ::1] b,
           const float[:, ::1] blend):
    """(h, w) squared errors of a and b blended, summed over each position's samples, see fields.h.

    Raises:
        ValueError: sizes do not fit.
    """
    cdef size_t factor = checked(x.shape[0], x.shape[1], blend.shape[0], blend.shape[1])
    cdef int status
    alike(x, a)
    alike(x, b)
    found = np.empty((blend.shape[0], blend.shape[1]), np.float32)
    cdef float[:, ::1] out = found
    with nogil:
        status = vcf_errors(&x[0, 0], &a[0, 0], &b[0, 0], &blend[0, 0], x.shape[0], x.shape[1],
                            factor, &out[0, 0])
    if status:
        raise MemoryError
    return found


def agreement(const float[:, ::1] a, const float[:, ::1] b, float left, float right,
              size_t factor):
    """(6, h, w) sums of products of the difference's derivatives and the difference, see fields.h.

    Raises:
        ValueError: sizes do not fit.
    """
    if not factor or a.shape[0] % factor or a.shape[1] % factor:
        raise ValueError(f"a plane of {a.shape[0]}x{a.shape[1]} has no blocks of {factor}")
    checked(a.shape[0], a.shape[1], a.shape[0] // factor, a.shape[1] // factor)
    summed(factor)
    alike(a, b)
    cdef int status
    found = np.empty((VCF_AGREEMENT_SUMS, a.shape[0] // factor, a.shape[1] // factor), np.float32)
    cdef float[:, :, ::1] sums = found
    with nogil:
        status = vcf_agreement(&a[0, 0], &b[0, 0], left, right, a.shape[0], a.shape[1], factor,
                               &sums[0, 0, 0])
    if status:
        raise MemoryError
    return found
