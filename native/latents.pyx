"""What the tables and the means of one step of a walk through a latent follow from.

Maps are (rows, columns, channels) float32, their channels one after the other, see walk.h.
"""

from libc.stddef cimport ptrdiff_t, size_t
from libc.stdint cimport int64_t

import numpy as np


cdef extern from "walk.h" nogil:
    ctypedef struct vcf_maps:
        const float *data
        ptrdiff_t row, column
        size_t rows, columns, channels
    int vcf_filter(const vcf_maps *maps, const float *weight, const float *bias, size_t side,
                   const int64_t *where, size_t count, float *out, size_t pitch)
    int vcf_neighbours(const vcf_maps *maps, size_t side, const int64_t *where, size_t count,
                       float *out, size_t pitch)


cdef vcf_maps maps_of(const float[:, :, :] maps, const int64_t[::1] where) except *:
    cdef vcf_maps found
    if 0 in (<object>maps).shape or maps.strides[2] != sizeof(float):
        raise ValueError("maps are empty, or their channels are not one after the other")
    found.data = &maps[0, 0, 0]
    found.row = maps.strides[0] // <ptrdiff_t>sizeof(float)
    found.column = maps.strides[1] // <ptrdiff_t>sizeof(float)
    found.rows, found.columns, found.channels = maps.shape[0], maps.shape[1], maps.shape[2]
    cdef int64_t places = maps.shape[0] * maps.shape[1]
    cdef Py_ssize_t n
    for n in range(where.shape[0]):
        if not 0 <= where[n] < places:
            raise ValueError(f"position {where[n]} is not below {places}")
    return found


def filtered(const float[:, :, :] maps, const float[:, :, :] weight, const float[::1] bias,
             const int64_t[::1] where, float[:, ::1] out, size_t first):
    """Activations, 0 to 255, of one filter per channel at some positions; exact in integers.

    Args:
        weight: (channels, side, side), side odd. bias: (channels,). Both in units of 1/512.
        where: (N,) flat positions. out: (N, M), written from column `first` on.

    Raises:
        ValueError: sizes do not fit, or a position lies outside.
    """
    cdef vcf_maps from_ = maps_of(maps, where)
    cdef size_t side = weight.shape[1], channels = maps.shape[2]
    cdef int status
    if (weight.shape[0] != maps.shape[2] or bias.shape[0] != maps.shape[2]
            or weight.shape[2] != weight.shape[1] or side % 2 == 0):
        raise ValueError("weights do not fit the maps")
    if out.shape[0] != where.shape[0] or first + channels > <size_t>out.shape[1]:
        raise ValueError("there is no place for the result")
    if not where.shape[0]:
        return
    cdef const float[:, :, ::1] weights = np.ascontiguousarray(weight)
    with nogil:
        status = vcf_filter(&from_, &weights[0, 0, 0], &bias[0], side, &where[0], where.shape[0],
                            &out[0, first], out.shape[1])
    if status:
        raise MemoryError


def neighbours(const float[:, :, :] maps, size_t side, const int64_t[::1] where, float[:, ::1] out,
               size_t first):
    """The side x side neighbours of some positions with all their channels.

    Args:
        where: (N,) flat positions. out: (N, M), written from column `first` on.

    Raises:
        ValueError: sizes do not fit, or a position lies outside.
    """
    cdef vcf_maps from_ = maps_of(maps, where)
    cdef int status
    if side % 2 == 0 or out.shape[0] != where.shape[0]:
        raise ValueError("there is no place for the result")
    if first + side * side * from_.channels > <size_t>out.shape[1]:
        raise ValueError("there is no place for the result")
    if not where.shape[0]:
        return
    with nogil:
        status = vcf_neighbours(&from_, side, &where[0], where.shape[0], &out[0, first],
                                out.shape[1])
    if status:
        raise MemoryError
