"""What the error of a prediction costs. Planes are (rows, columns) float32, see blocks.h."""

from libc.stddef cimport size_t


cdef extern from "blocks.h" nogil:
    int VCF_BLOCK
    double vcf_block_cost(const float *x, const float *predicted, size_t rows, size_t columns,
                          size_t inside_rows, size_t inside_columns, const float *basis,
                          const float *weights, float coded, float doubling)


def block_cost(const float[:, ::1] x, const float[:, ::1] predicted, size_t rows, size_t columns,
               const float[:, ::1] basis, const float[:, ::1] weights, float coded,
               float doubling):
    """The sum of what the coefficients of an error's 8x8 blocks cost.

    Args:
        x, predicted: both sides multiples of 8. rows, columns: so many count, the rest has no error.
        basis, weights, coded, doubling: see blocks.h, both first ones (8, 8).

    Raises:
        ValueError: sizes do not fit.
    """
    cdef double found
    if (not x.shape[0] or not x.shape[1] or x.shape[0] % VCF_BLOCK or x.shape[1] % VCF_BLOCK
            or predicted.shape[0] != x.shape[0] or predicted.shape[1] != x.shape[1]
            or rows > <size_t>x.shape[0] or columns > <size_t>x.shape[1]):
        raise ValueError(f"planes of {x.shape[0]}x{x.shape[1]} and {predicted.shape[0]}x"
                         f"{predicted.shape[1]} have no {rows}x{columns} in blocks")
    if (basis.shape[0] != VCF_BLOCK or basis.shape[1] != VCF_BLOCK
            or weights.shape[0] != VCF_BLOCK or weights.shape[1] != VCF_BLOCK):
        raise ValueError(f"basis or weights are not {VCF_BLOCK}x{VCF_BLOCK}")
    with nogil:
        found = vcf_block_cost(&x[0, 0], &predicted[0, 0], x.shape[0], x.shape[1], rows, columns,
                               &basis[0, 0], &weights[0, 0], coded, doubling)
    if found < 0:
        raise MemoryError
    return found
