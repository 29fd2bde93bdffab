"""What the finish takes from luma and adds to it.

Planes are (rows, columns) float32, both multiples of 8, see bands.h.
"""

from libc.stddef cimport size_t


cdef extern from "bands.h" nogil:
    int VCF_BLOCK, VCF_BLOCK_SAMPLES, VCF_BANDS
    int vcf_coefficients(const float *luma, size_t rows, size_t columns, const float *basis,
                         float factor, float *out)
    int vcf_add_bands(const float *luma, size_t rows, size_t columns, const float *change,
                      float factor, const float *usual, const float *faint, float *out)


cdef int check(const float[:, ::1] luma, Py_ssize_t h, Py_ssize_t w) except -1:
    """A grid of h x w is that of luma's blocks."""
    if not h or not w or h * VCF_BLOCK != luma.shape[0] or w * VCF_BLOCK != luma.shape[1]:
        raise ValueError(f"a grid of {h}x{w} does not fit {luma.shape[0]}x{luma.shape[1]}")
    return 0


def coefficients(const float[:, ::1] luma, const float[:, ::1] basis, float factor,
                 float[:, :, ::1] out):
    """Compressed coefficients of each block, less the mean of the nine blocks around.

    Args:
        basis: (8, 8) of an orthonormal DCT, a row of it a frequency.
        out: (rows / 8, columns / 8, 64), rows of frequencies one after the other.

    Raises:
        ValueError: sizes do not fit.
    """
    cdef int status
    check(luma, out.shape[0], out.shape[1])
    if out.shape[2] != VCF_BLOCK_SAMPLES or basis.shape[0] != VCF_BLOCK \
            or basis.shape[1] != VCF_BLOCK:
        raise ValueError(f"{out.shape[2]} coefficients of a basis of {basis.shape[0]}x"
                         f"{basis.shape[1]}, not {VCF_BLOCK_SAMPLES} of {VCF_BLOCK}x{VCF_BLOCK}")
    with nogil:
        status = vcf_coefficients(&luma[0, 0], luma.shape[0], luma.shape[1], &basis[0, 0], factor,
                                  &out[0, 0, 0])
    if status:
        raise MemoryError


def add_bands(const float[:, ::1] luma, const float[:, :, ::1] change, float factor,
              const float[::1] usual, const float[::1] faint, float[:, ::1] out):
    """out = luma + factor * added + gains * bands, within 0 to 255; what is added is without what
    alternates from one sample to the next.

    Args:
        change: (rows / 8, columns / 8, 68) samples of a block that are added, and gains of four
            bands, to which usual * faint / (faint + energy) comes.
        usual, faint: (4,).

    Raises:
        ValueError: sizes do not fit.
    """
    cdef int status
    check(luma, change.shape[0], change.shape[1])
    if out.shape[0] != luma.shape[0] or out.shape[1] != luma.shape[1]:
        raise ValueError(f"{luma.shape[0]}x{luma.shape[1]} and {out.shape[0]}x{out.shape[1]} "
                         "differ")
    if (change.shape[2] != VCF_BLOCK_SAMPLES + VCF_BANDS or usual.shape[0] != VCF_BANDS
            or faint.shape[0] != VCF_BANDS):
        raise ValueError(f"{change.shape[2]} values of a block, {usual.shape[0]} and "
                         f"{faint.shape[0]} of bands, not {VCF_BLOCK_SAMPLES + VCF_BANDS} and "
                         f"{VCF_BANDS}")
    with nogil:
        status = vcf_add_bands(&luma[0, 0], luma.shape[0], luma.shape[1], &change[0, 0, 0], factor,
                               &usual[0], &faint[0], &out[0, 0])
    if status:
        raise MemoryError
