"""Maps cut into the tiles of Winograd's F(4x4, 3x3), and back.

Maps are (rows, columns, channels) float32, their channels one after the other, see tiles.h.
"""

from libc.stddef cimport size_t


cdef extern from "tiles.h" nogil:
    int VCF_TILE, VCF_TILE_VALUES
    int vcf_tiles(const float *maps, size_t rows, size_t columns, size_t channels, size_t first,
                  size_t last, float *tiles)
    int vcf_untile(const float *tiles, size_t rows, size_t columns, size_t channels, size_t first,
                   size_t last, const float *gain, const float *shift, float *maps)


cdef int check(const float[:, :, ::1] maps, const float[:, :, ::1] tiles, Py_ssize_t first) except -1:
    cdef Py_ssize_t rows = maps.shape[0], columns = maps.shape[1], channels = maps.shape[2]
    if (not rows or not columns or not channels or first < 0
            or tiles.shape[0] > (rows + VCF_TILE - 1) // VCF_TILE - first
            or tiles.shape[1] != (columns + VCF_TILE - 1) // VCF_TILE
            or tiles.shape[2] != VCF_TILE_VALUES * channels):
        raise ValueError(f"{tiles.shape[0]}x{tiles.shape[1]}x{tiles.shape[2]} from line {first} on are no "
                         f"tiles of {rows}x{columns}x{channels}")
    return 0


def tile(const float[:, :, ::1] maps, Py_ssize_t first, float[:, :, ::1] tiles):
    """What the matrices are multiplied with.

    Args:
        tiles: (count, columns / 4, 36 * channels), rounded up: lines of tiles, first the first.

    Raises:
        ValueError: sizes do not fit.
    """
    cdef int status
    check(maps, tiles, first)
    if not tiles.shape[0]:
        return
    with nogil:
        status = vcf_tiles(&maps[0, 0, 0], maps.shape[0], maps.shape[1], maps.shape[2],
                           first, first + tiles.shape[0], &tiles[0, 0, 0])
    if status:
        raise MemoryError


def untile(const float[:, :, ::1] tiles, Py_ssize_t first, const float[::1] gain,
           const float[::1] shift, float[:, :, ::1] maps):
    """maps = gain * (what tiles of products stand for) + shift, where those lines lie.

    Args:
        tiles, first: see `tile`.
        gain, shift: (channels,).

    Raises:
        ValueError: sizes do not fit.
    """
    cdef int status
    check(maps, tiles, first)
    if gain.shape[0] != maps.shape[2] or shift.shape[0] != maps.shape[2]:
        raise ValueError(f"{gain.shape[0]} gains and {shift.shape[0]} shifts of {maps.shape[2]} "
                         "channels")
    if not tiles.shape[0]:
        return
    with nogil:
        status = vcf_untile(&tiles[0, 0, 0], maps.shape[0], maps.shape[1], maps.shape[2],
                            first, first + tiles.shape[0], &gain[0], &shift[0], &maps[0, 0, 0])
    if status:
        raise MemoryError
