"""The loop filter of reconstructed planes, and the sums that its coefficients follow from.

Planes are (rows, columns) float32, see filters.h.
"""

from libc.stddef cimport size_t

import numpy as np


cdef extern from "filters.h" nogil:
    int VCF_FEATURES, VCF_LOOP_SUMS
    int vcf_loop_filter(const float *plane, const float *guide, size_t rows, size_t columns,
                        float clip, float busy, const float *weights, float *out)
    int vcf_loop_sums(const float *plane, const float *guide, const float *target, size_t rows,
                      size_t columns, size_t inside_rows, size_t inside_columns, float clip,
                      float busy, double *sums)
    void vcf_descend(const double *products, size_t count, size_t free_, double price, double limit,
                     size_t sweeps, const double *source, double *rest, double *found)


cdef int alike(const float[:, ::1] a, const float[:, ::1] b) except -1:
    if a.shape[0] != b.shape[0] or a.shape[1] != b.shape[1] or not a.shape[0] or not a.shape[1]:
        raise ValueError(f"{a.shape[0]}x{a.shape[1]} and {b.shape[0]}x{b.shape[1]} differ, "
                         "or are empty")
    return 0


cdef const float *data_of(guide, const float[:, ::1] plane) except? NULL:
    """The guide's samples; none where it is None."""
    cdef const float[:, ::1] found
    if guide is None:
        return NULL
    found = guide
    alike(plane, found)
    return &found[0, 0]


def loop_filter(const float[:, ::1] plane, guide, float clip, float busy,
                const float[::1] weights, float[:, ::1] out):
    """out = plane + weights * features.

    Args:
        guide: a plane of the same size, or None: the third features are of activity.
        weights: (18,), of the first features of all pairs, then the second, then the third.

    Raises:
        ValueError: sizes do not fit.
    """
    alike(plane, out)
    if weights.shape[0] != VCF_FEATURES:
        raise ValueError(f"{weights.shape[0]} weights, not {VCF_FEATURES}")
    cdef const float *other = data_of(guide, plane)
    cdef int status
    with nogil:
        status = vcf_loop_filter(&plane[0, 0], other, plane.shape[0], plane.shape[1], clip, busy,
                                 &weights[0], &out[0, 0])
    if status:
        raise MemoryError


def loop_sums(const float[:, ::1] plane, guide, const float[:, ::1] target, size_t rows,
              size_t columns, float clip, float busy):
    """(189,) float64 sums of products over the first rows x columns samples, see filters.h.

    Args:
        guide: see `loop_filter`.

    Raises:
        ValueError: sizes do not fit.
    """
    alike(plane, target)
    if not 0 < rows <= <size_t>plane.shape[0] or not 0 < columns <= <size_t>plane.shape[1]:
        raise ValueError(f"{rows}x{columns} is no part of {plane.shape[0]}x{plane.shape[1]}")
    cdef const float *other = data_of(guide, plane)
    found = np.empty(VCF_LOOP_SUMS)
    cdef double[::1] sums = found
    cdef int status
    with nogil:
        status = vcf_loop_sums(&plane[0, 0], other, &target[0, 0], plane.shape[0],
                               plane.shape[1], rows, columns, clip, busy, &sums[0])
    if status:
        raise MemoryError
    return found


def descend(const double[:, ::1] products, const double[::1] errors, const double[::1] start,
            const double[::1] source, size_t first, double price, double limit, size_t sweeps):
    """Whole coefficients of least squares, their differences to a source paid for, see filters.h.

    Args:
        products: (N, N) of features. errors: (N,) of features and errors. start: (N,) where the
            descent begins. source: (N,). first: so many may change.
        price: squared error of a unit's difference. limit: largest magnitude.

    Returns:
        (N,) float64.

    Raises:
        ValueError: sizes do not fit.
    """
    cdef size_t count = products.shape[0]
    if (not count or <size_t>products.shape[1] != count or <size_t>errors.shape[0] != count
            or <size_t>start.shape[0] != count or <size_t>source.shape[0] != count
            or first > count):
        raise ValueError("sums and coefficients do not fit each other")
    found = np.array(start)
    left = np.asarray(errors) - np.asarray(products) @ found
    cdef double[::1] out = found, rest = left
    with nogil:
        vcf_descend(&products[0, 0], count, first, price, limit, sweeps, &source[0], &rest[0],
                    &out[0])
    return found
