"""What the finish takes from luma and adds to it.

Planes are (rows, columns) float32, both multiples of 8, see bands.h.
"""

from libc.stddef cimport size_t


cdef extern from "bands.h" nogil:
    int VCF_BLOCK, VCF_BLOCK_SAMPLES, VCF_BANDS
    int vcf_blocks(const float *luma, size_t rows, size_t columns, float factor, float *blocks)
    int vcf_bands(const float *luma, size_t rows, size_t columns, float *soft, float *energy)
    int vcf_add_bands(const float *luma, const float *soft, size_t rows, size_t columns,
                      const float *gains, const float *added, size_t pitch, float factor,
                      float *out)


cdef int alike(const float[:, ::1] a, const float[:, ::1] b) except -1:
    if a.shape[0] != b.shape[0] or a.shape[1] != b.shape[1]:
        raise ValueError(f"{a.shape[0]}x{a.shape[1]} and {b.shape[0]}x{b.shape[1]} differ")
    return 0


cdef int check(const float[:, ::1] luma, Py_ssize_t h, Py_ssize_t w) except -1:
    """A grid of h x w is that of the blocks of luma."""
    if not h or not w or h * VCF_BLOCK != luma.shape[0] or w * VCF_BLOCK != luma.shape[1]:
        raise ValueError(f"a grid of {h}x{w} does not fit {luma.shape[0]}x{luma.shape[1]}")
    return 0


def blocks(const float[:, ::1] luma, float factor, float[:, :, ::1] out):
    """Each block's samples less the mean of the nine blocks around, times a factor.

    Args:
        out: (rows / 8, columns / 8, 64).

    Raises:
        ValueError: sizes do not fit.
    """
    cdef int status
    check(luma, out.shape[0], out.shape[1])
    if out.shape[2] != VCF_BLOCK_SAMPLES:
        raise ValueError(f"blocks of {out.shape[2]} samples, not {VCF_BLOCK_SAMPLES}")
    with nogil:
        status = vcf_blocks(&luma[0, 0], luma.shape[0], luma.shape[1], factor, &out[0, 0, 0])
    if status:
        raise MemoryError


def bands(const float[:, ::1] luma, float[:, ::1] soft, float[:, :, ::1] energy):
    """The mean squares of luma's finest bands.

    Args:
        soft: as large as luma: luma after a low-pass both ways is written there.
        energy: (4, rows / 8, columns / 8) of the nine blocks around each are written there.

    Raises:
        ValueError: sizes do not fit.
    """
    cdef int status
    alike(luma, soft)
    check(luma, energy.shape[1], energy.shape[2])
    if energy.shape[0] != VCF_BANDS:
        raise ValueError(f"{energy.shape[0]} bands, not {VCF_BANDS}")
    with nogil:
        status = vcf_bands(&luma[0, 0], luma.shape[0], luma.shape[1], &soft[0, 0],
                           &energy[0, 0, 0])
    if status:
        raise MemoryError


def add_bands(const float[:, ::1] luma, const float[:, ::1] soft, const float[:, :, ::1] gains,
              const float[:, :, ::1] added, float factor, float[:, ::1] out):
    """out = luma + gains * bands + factor * added, within 0 to 255.

    Args:
        soft: see `bands`. gains: (4, rows / 8, columns / 8), spread bilinearly.
        added: (rows / 8, columns / 8, 64 or more), the first 64 are a block's samples.

    Raises:
        ValueError: sizes do not fit.
    """
    cdef int status
    alike(luma, soft)
    alike(luma, out)
    check(luma, gains.shape[1], gains.shape[2])
    check(luma, added.shape[0], added.shape[1])
    if gains.shape[0] != VCF_BANDS or added.shape[2] < VCF_BLOCK_SAMPLES:
        raise ValueError(f"{gains.shape[0]} bands of {VCF_BANDS}, {added.shape[2]} samples of "
                         f"{VCF_BLOCK_SAMPLES}")
    with nogil:
        status = vcf_add_bands(&luma[0, 0], &soft[0, 0], luma.shape[0], luma.shape[1],
                               &gains[0, 0, 0], &added[0, 0, 0], added.shape[2], factor,
                               &out[0, 0])
    if status:
        raise MemoryError
