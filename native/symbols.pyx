"""Symbols of a latent: rate-distortion optimal rounding."""

from libc.stddef cimport size_t
from libc.stdint cimport int32_t, uint8_t

import numpy as np


cdef extern from "symbols.h" nogil:
    void vcf_quantise(const float *u, const uint8_t *index, size_t count, const float *bits,
                      size_t width, const float *weights, float weight, float level_max,
                      int32_t *symbols)


def quantise(const float[::1] u, const uint8_t[::1] index, const float[:, ::1] bits,
             weight, float level_max):
    """Integers near u that are cheapest in squared error plus weighted rate.

    Args:
        u: (N,) float32 values in quantiser steps.
        index: (N,) uint8 tables, each below the number of rows of bits.
        bits: (tables, levels) float32 cost of each magnitude.
        weight: squared steps per bit: a number, or (N,) float32.
        level_max: largest magnitude that comes out.

    Returns:
        (N,) int32 symbols.

    Raises:
        ValueError: lengths differ or a table is out of range.
    """
    cdef size_t count = u.shape[0]
    cdef const float[::1] weights
    cdef const float *each = NULL
    cdef float one = 0.0
    if index.shape[0] != u.shape[0]:
        raise ValueError(f"{u.shape[0]} values, {index.shape[0]} tables")
    symbols = np.zeros(count, dtype=np.int32)
    if count == 0:
        return symbols
    if np.max(index) >= bits.shape[0]:
        raise ValueError(f"table {np.max(index)} is not below {bits.shape[0]}")
    if isinstance(weight, np.ndarray):
        weights = weight
        if weights.shape[0] != u.shape[0]:
            raise ValueError(f"{u.shape[0]} values, {weights.shape[0]} weights")
        each = &weights[0]
    else:
        one = weight
    cdef int32_t[::1] out = symbols
    with nogil:
        vcf_quantise(&u[0], &index[0], count, &bits[0, 0], bits.shape[1], each, one, level_max,
                     &out[0])
    return symbols
