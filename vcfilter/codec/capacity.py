"""How many processes of an encoder this machine has cores and memory for."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from vcfilter.frames import VideoFormat

_MEMORY_LIMITS = (
    "/sys/fs/cgroup/memory.max",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
)
"""Of a container, in version 2 and 1 of Linux's control groups."""
_PROCESS_BYTES = 400 << 20
_SAMPLE_BYTES = 600
"""What an encoding process needs without a GOP's frames, and more per luma sample of a frame
(measured: 1.6 GiB at 1920x1080)."""
_UNKNOWN_BYTES = 4 << 30


def usable_cores() -> int:
    """CPU cores that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return cores or 1


def available_memory() -> int:
    """Bytes that can be had without swapping, at most a container's limit.

    Linux tells them; elsewhere it is half of the machine's memory, or 4 GiB where not even that is
    known.
    """
    found = []
    with suppress(LookupError, OSError, ValueError):
        fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        found.append(int(fields["MemAvailable"].split()[0]) << 10)
    for name in _MEMORY_LIMITS:
        with suppress(OSError, ValueError):  # "max" is no number
            found.append(int(Path(name).read_text()))
    if not found:
        with suppress(AttributeError, OSError, ValueError):
            found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2)
    return min(found, default=_UNKNOWN_BYTES)


def fitting_processes(video_format: VideoFormat, gop_frames: int) -> int:
    """How many processes may code GOPs beside each other: one per usable core, at least one.

    Half of the available memory may be used. Each process takes what it needs itself and a GOP's
    frames twice, there and in the process that reads them; that one holds another GOP that waits,
    as it is and packed for sending, and one that is being read.

    Args:
        gop_frames: of the longest GOP.
    """
    samples = video_format.width * video_format.height
    gop = gop_frames * samples * 3 // 2 * (1 if video_format.bit_depth == 8 else 2)
    room = available_memory() // 2 - 3 * gop
    fitting = room // (_PROCESS_BYTES + _SAMPLE_BYTES * samples + 2 * gop)
    return max(1, min(usable_cores(), fitting))
