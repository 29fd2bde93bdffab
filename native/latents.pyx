"""What the tables and the means of one step of a walk through a latent follow from.

Maps are (rows, columns, channels) float32, their channels one after the other, see walk.h.
"""

from libc.stddef cimport ptrdiff_t, size_t
from libc.stdint cimport int16_t, int32_t, int64_t

import numpy as np


cdef extern from "dense.h" nogil:
    int VCF_DENSE_ROWS
    float VCF_DENSE_MAX
    ctypedef struct vcf_dense:
        size_t inputs, outputs
        const int16_t *weights
    size_t vcf_dense_padded(size_t outputs)
    size_t vcf_dense_weights(size_t inputs, size_t outputs)
    void vcf_dense_pack(const float *weight, size_t inputs, size_t outputs, int16_t *packed)
    int vcf_dense_ways()
    void vcf_dense_sums(const vcf_dense *layer, const int16_t *x, size_t pitch, size_t rows,
                        const int32_t *start, int way, int32_t *sums)


cdef extern from "walk.h" nogil:
    ctypedef struct vcf_maps:
        const float *data
        ptrdiff_t row, column
        size_t rows, columns, channels
    ctypedef struct vcf_taps:
        size_t side
        const float *weight
        const float *bias
    ctypedef struct vcf_step:
        vcf_taps seen, symbols, activity
        size_t known, hidden
        vcf_dense first, second
    ctypedef struct vcf_step_frame:
        const int32_t *first
        const int32_t *second
        const float *last
        float lowest
    int vcf_indices(const vcf_step *step, const vcf_maps *seen, const vcf_maps *symbols,
                    const vcf_maps *activity, const int64_t *where, size_t count,
                    const vcf_step_frame *frame, float highest, float *out)
    ctypedef struct vcf_step_weights:
        const float *first
        const float *second
    int vcf_costs(const vcf_step *step, const vcf_step_weights *weights, const vcf_maps *seen,
                  const vcf_maps *symbols, const vcf_maps *activity, const int64_t *where,
                  size_t count, const vcf_step_frame *frame, const float *slopes,
                  const float *known, float *costs)
    int vcf_neighbours(const vcf_maps *maps, size_t side, const int64_t *where, size_t count,
                       float *out, size_t pitch)
    void vcf_store(const float *symbols, const float *levels, const int64_t *at, size_t count,
                   size_t channels, size_t low, size_t pitch, float *maps, float *seen)
    void vcf_values(const float *mean, const float *symbols, const float *steps, const int64_t *at,
                    size_t count, size_t channels, size_t low, size_t pitch, float *maps)


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


cdef int16_t[::1] packed(const float[:, ::1] weight):
    """A dense layer's weights as the loops take them."""
    found = np.empty(vcf_dense_weights(weight.shape[1], weight.shape[0]), np.int16)
    cdef int16_t[::1] out = found
    vcf_dense_pack(&weight[0, 0], weight.shape[1], weight.shape[0], &out[0])
    return found


def padded(values):
    """(N,) integers as int32, zeros behind them up to where a dense layer's sums begin anew."""
    found = np.zeros(vcf_dense_padded(len(values)), np.int32)
    found[: len(values)] = values
    return found


def dense_ways():
    """Ways of summing that this processor has: 1 to 3, each quicker than the one before."""
    return vcf_dense_ways()


def dense(const float[:, ::1] weight, const int16_t[:, ::1] x, const int32_t[::1] start, int way):
    """(rows, padded outputs) int32 sums of a dense layer of integers.

    Args:
        weight: (outputs, inputs). x: (rows up to 8, inputs, one more column of zeros where they
            are odd). start: `padded` sums to begin with. way: below `dense_ways`.

    Raises:
        ValueError: sizes do not fit.
    """
    cdef size_t inputs = weight.shape[1], outputs = weight.shape[0]
    if (not weight.shape[0] or not 0 < x.shape[0] <= VCF_DENSE_ROWS or not 0 <= way < dense_ways()
            or <size_t>x.shape[1] != (inputs + 1) // 2 * 2
            or <size_t>start.shape[0] != vcf_dense_padded(outputs)):
        raise ValueError("rows or sums do not fit the layer")
    cdef int16_t[::1] weights = packed(weight)
    cdef vcf_dense layer = vcf_dense(inputs, outputs, &weights[0])
    found = np.empty((x.shape[0], start.shape[0]), np.int32)
    cdef int32_t[:, ::1] sums = found
    with nogil:
        vcf_dense_sums(&layer, &x[0, 0], x.shape[1], x.shape[0], &start[0], way, &sums[0, 0])
    return found


cdef class StepTables:
    """What the table indices of one step follow from: filters and dense layers of integers.

    Args:
        near, near_bias: (high, side, side) and (high,), filters of what is seen.
        past, past_bias: (2 count, side, side) and (2 count,), of symbols and of activity.
        hidden: (units, inputs), first layer; inputs are what filters give, and known channels.
        linear: (count, inputs), sums of the same inputs that are added at the end.
        index: (count, units), second layer.
        known: channels of what is seen, from the lowest on, that are taken as they are.

    Raises:
        ValueError: sizes do not fit, or a dense layer's weight passes 32767.
    """

    cdef vcf_step step
    cdef vcf_step_weights weights
    cdef object kept  # the arrays that both point to

    def __init__(self, near, near_bias, past, past_bias, hidden, linear, index, size_t known):
        cdef size_t high = near.shape[0], count = linear.shape[0], units = hidden.shape[0]
        cdef size_t inputs = high + 2 * count + known
        if (past.shape[0] != 2 * count or hidden.shape[1] != inputs or linear.shape[1] != inputs
                or index.shape != (count, units) or not 0 < count <= high or not units or known > high
                or near_bias.shape != (high,) or past_bias.shape != (2 * count,)
                or any(f.shape[1] != f.shape[2] or f.shape[1] % 2 == 0 for f in (near, past))):
            raise ValueError("sizes of a step's layers do not fit each other")
        joint = np.ascontiguousarray(np.concatenate([hidden, linear]), np.float32)
        index = np.ascontiguousarray(index, np.float32)
        if not max(abs(joint).max(), abs(index).max()) <= VCF_DENSE_MAX:  # nor is it a number
            raise ValueError("a dense layer's weight does not fit 16 bits")
        parts = []
        for filters, bias in ((near, near_bias), (past[:count], past_bias[:count]),
                              (past[count:], past_bias[count:])):
            by_tap = np.ascontiguousarray(filters.transpose(1, 2, 0), np.float32)
            parts.append((by_tap, np.ascontiguousarray(bias, np.float32)))
        cdef int16_t[::1] first = packed(joint), second = packed(index)
        self.step.seen = taps_of(parts[0])
        self.step.symbols = taps_of(parts[1])
        self.step.activity = taps_of(parts[2])
        self.step.known, self.step.hidden = known, units
        self.step.first = vcf_dense(inputs, units + count, &first[0])
        self.step.second = vcf_dense(units, count, &second[0])
        cdef const float[:, ::1] outer = index, inner = joint
        self.weights = vcf_step_weights(&inner[0, 0], &outer[0, 0])
        self.kept = parts, first, second, joint, index

    def __deepcopy__(self, memo):
        return self

    def indices(self, const float[:, :, :] seen, const float[:, :, :] symbols,
                const float[:, :, :] activity, const int64_t[::1] where,
                const int32_t[::1] first, const int32_t[::1] second, const float[::1] last,
                float lowest, float highest, float[:, ::1] out):
        """Table indices at some positions, before rounding; exact.

        Args:
            seen: (rows, columns, high) activations of symbols so far, 0 where unknown.
            symbols, activity: (rows, columns, count) of the references.
            where: (N,) flat positions.
            first, second: `padded` sums that both layers begin with. last: (count,) integers that
                are added at the end, all in units of the sums.
            lowest, highest: bounds of indices. out: (N, count), written.

        Raises:
            ValueError: sizes do not fit, or a position lies outside.
        """
        cdef vcf_maps maps[3]
        cdef vcf_step_frame frame
        cdef int status
        self.check(maps, &frame, seen, symbols, activity, where, first, second, last)
        if out.shape[0] != where.shape[0] or <size_t>out.shape[1] != self.step.second.outputs:
            raise ValueError("there is no place for the result")
        if not where.shape[0]:
            return
        frame.lowest = lowest
        with nogil:
            status = vcf_indices(&self.step, &maps[0], &maps[1], &maps[2], &where[0],
                                 where.shape[0], &frame, highest, &out[0, 0])
        if status:
            raise MemoryError

    def costs(self, const float[:, :, :] seen, const float[:, :, :] symbols,
              const float[:, :, :] activity, const int64_t[::1] where,
              const int32_t[::1] first, const int32_t[::1] second, const float[::1] last,
              const float[:, ::1] slopes, const float[:, :, :] known, float[:, :, :] costs):
        """How the sum of all indices times their slopes changes with what is seen, added to costs.

        Args:
            seen to last: as of `indices`. slopes: (N, count), 0 where an index is cut off.
            known: as seen, 1 or 0, where something is added to costs, which are alike.

        Raises:
            ValueError: sizes or strides do not fit, or a position lies outside.
        """
        cdef vcf_maps maps[3]
        cdef vcf_step_frame frame
        cdef int status, n
        self.check(maps, &frame, seen, symbols, activity, where, first, second, last)
        for n in range(3):
            if not seen.shape[n] == known.shape[n] == costs.shape[n]:
                raise ValueError("maps are of different sizes")
            if not seen.strides[n] == known.strides[n] == costs.strides[n]:
                raise ValueError("maps lie differently in memory")
        if slopes.shape[0] != where.shape[0] or <size_t>slopes.shape[1] != self.step.second.outputs:
            raise ValueError("slopes do not fit the indices")
        if not where.shape[0]:
            return
        with nogil:
            status = vcf_costs(&self.step, &self.weights, &maps[0], &maps[1], &maps[2], &where[0],
                               where.shape[0], &frame, &slopes[0, 0], &known[0, 0, 0],
                               &costs[0, 0, 0])
        if status:
            raise MemoryError

    cdef int check(self, vcf_maps *maps, vcf_step_frame *frame, const float[:, :, :] seen,
                   const float[:, :, :] symbols, const float[:, :, :] activity,
                   const int64_t[::1] where, const int32_t[::1] first, const int32_t[::1] second,
                   const float[::1] last) except -1:
        """Maps and a frame's sums as the loops take them."""
        maps[0], maps[1] = maps_of(seen, where), maps_of(symbols, where)
        maps[2] = maps_of(activity, where)
        cdef size_t count = self.step.second.outputs, high = self.step.first.inputs
        high -= 2 * count + self.step.known
        if maps[0].channels != high or maps[1].channels != count or maps[2].channels != count:
            raise ValueError("channels of maps do not fit the step")
        if (<size_t>first.shape[0] != vcf_dense_padded(self.step.first.outputs)
                or <size_t>second.shape[0] != vcf_dense_padded(count)
                or <size_t>last.shape[0] != count):
            raise ValueError("a frame's sums do not fit the step")
        frame.first, frame.second, frame.last = &first[0], &second[0], &last[0]
        frame.lowest = 0
        return 0

cdef vcf_taps taps_of(part):
    """Of a filter by tap, (side, side, channels), and its bias."""
    cdef const float[:, :, ::1] by_tap = part[0]
    cdef const float[::1] bias = part[1]
    return vcf_taps(by_tap.shape[0], &by_tap[0, 0, 0], &bias[0])


cdef int check_place(const float[:, ::1] symbols, const int64_t[::1] at, Py_ssize_t low,
                     const float[:, ::1] maps) except -1:
    cdef Py_ssize_t n
    if (symbols.shape[0] != at.shape[0] or low < 0 or not symbols.shape[1]
            or low + symbols.shape[1] > maps.shape[1]):
        raise ValueError("symbols do not fit the maps")
    for n in range(at.shape[0]):
        if not 0 <= at[n] < maps.shape[0]:
            raise ValueError(f"position {at[n]} is not below {maps.shape[0]}")
    return 0


def store(const float[:, ::1] symbols, const float[::1] levels, const int64_t[::1] at,
          Py_ssize_t low, float[:, ::1] maps, float[:, ::1] seen):
    """Symbols of a step written to maps, and the levels of their magnitudes to others.

    Args:
        symbols: (N, count) integers. levels: (257,) of magnitudes, the last one of larger ones too.
        at: (N,) flat positions. low: the first of their channels.
        maps, seen: (positions, channels).

    Raises:
        ValueError: sizes do not fit, or a position lies outside.
    """
    check_place(symbols, at, low, maps)
    if levels.shape[0] != 257 or seen.shape[0] != maps.shape[0] or seen.shape[1] != maps.shape[1]:
        raise ValueError("levels or maps do not fit")
    if not at.shape[0]:
        return
    with nogil:
        vcf_store(&symbols[0, 0], &levels[0], &at[0], at.shape[0], symbols.shape[1], low,
                  maps.shape[1], &maps[0, 0], &seen[0, 0])


def values(const float[:, ::1] mean, const float[:, ::1] symbols, const float[::1] steps,
           const int64_t[::1] at, Py_ssize_t low, float[:, ::1] maps):
    """mean + symbols * steps of a step, written to maps.

    Args:
        mean, symbols: (N, count). steps: (count,). at, low, maps: as of `store`.

    Raises:
        ValueError: sizes do not fit, or a position lies outside.
    """
    check_place(symbols, at, low, maps)
    if (mean.shape[0] != symbols.shape[0] or mean.shape[1] != symbols.shape[1]
            or steps.shape[0] != symbols.shape[1]):
        raise ValueError("means or steps do not fit the symbols")
    if not at.shape[0]:
        return
    with nogil:
        vcf_values(&mean[0, 0], &symbols[0, 0], &steps[0], &at[0], at.shape[0], symbols.shape[1],
                   low, maps.shape[1], &maps[0, 0])


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
