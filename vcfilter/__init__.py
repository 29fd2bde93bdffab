"""vcfilter: a neural video codec that lives in FFmpeg's world.

    import vcfilter

    with vcfilter.open("holiday.mkv") as video:
        for frame in video.decode(video=0):     # av.VideoFrame
            ...

Files: open(), encode_file(), decode_file(). Below them, without files: Encoder and Decoder,
which turn Frames into Packets and back. All but the errors is imported on first use: a program that
is interrupted while it starts should not stand in the import of NumPy, PyAV or PyTorch.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from vcfilter.errors import (
    BitstreamError,
    ConfigError,
    ExistingFileError,
    LimitError,
    MediaError,
    MissingFileError,
    ModelMismatchError,
    VcfilterError,
)

if TYPE_CHECKING:
    from vcfilter.codec import Decoder, Encoder, EncoderStatistics
    from vcfilter.frames import Frame, FrameType, Packet, VideoFormat
    from vcfilter.interpolation.interpolator import Interpolator
    from vcfilter.interpolation.options import InterpolationOptions
    from vcfilter.options import PRESETS, DecoderOptions, EncoderOptions, Limits, Runtime
    from vcfilter.stream.decoders import neural_frames
    from vcfilter.stream.encoders import MediaCodec
    from vcfilter.stream.filters import FrameFilter
    from vcfilter.stream.input import InputContainer, OutputContainer, StreamPacket, open
    from vcfilter.stream.interpolated import interpolate
    from vcfilter.stream.pixels import frame_of, to_video_frame
    from vcfilter.stream.transcode import Progress, TranscodeReport, decode_file, encode_file

__version__ = "0.1.0"

# Read when PyTorch loads OpenMP, so it stands before all that imports PyTorch: on a busy machine
# threads that wait by spinning cost a factor of six in encoding. GNU's threads spin for some
# microseconds, which is what most waits take: half as fast again on two idle cores, a fifth
# slower where others keep both busy. A policy set outside goes first.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")

_LATE = {
    **dict.fromkeys(("Frame", "FrameType", "Packet", "VideoFormat"), "vcfilter.frames"),
    **dict.fromkeys(
        ("PRESETS", "DecoderOptions", "EncoderOptions", "Limits", "Runtime"), "vcfilter.options"
    ),
    "Decoder": "vcfilter.codec",
    "Encoder": "vcfilter.codec",
    "EncoderStatistics": "vcfilter.codec",
    "InputContainer": "vcfilter.stream.input",
    "InterpolationOptions": "vcfilter.interpolation.options",
    "Interpolator": "vcfilter.interpolation.interpolator",
    "MediaCodec": "vcfilter.stream.encoders",
    "OutputContainer": "vcfilter.stream.input",
    "FrameFilter": "vcfilter.stream.filters",
    "Progress": "vcfilter.stream.transcode",
    "StreamPacket": "vcfilter.stream.input",
    "TranscodeReport": "vcfilter.stream.transcode",
    "decode_file": "vcfilter.stream.transcode",
    "encode_file": "vcfilter.stream.transcode",
    "frame_of": "vcfilter.stream.pixels",
    "interpolate": "vcfilter.stream.interpolated",
    "neural_frames": "vcfilter.stream.decoders",
    "open": "vcfilter.stream.input",
    "to_video_frame": "vcfilter.stream.pixels",
}

__all__ = [
    "PRESETS",
    "BitstreamError",
    "ConfigError",
    "Decoder",
    "DecoderOptions",
    "Encoder",
    "EncoderOptions",
    "EncoderStatistics",
    "ExistingFileError",
    "Frame",
    "FrameFilter",
    "FrameType",
    "InputContainer",
    "InterpolationOptions",
    "Interpolator",
    "LimitError",
    "Limits",
    "MediaCodec",
    "MediaError",
    "MissingFileError",
    "ModelMismatchError",
    "OutputContainer",
    "Packet",
    "Progress",
    "Runtime",
    "StreamPacket",
    "TranscodeReport",
    "VcfilterError",
    "VideoFormat",
    "__version__",
    "decode_file",
    "encode_file",
    "frame_of",
    "interpolate",
    "neural_frames",
    "open",
    "to_video_frame",
]


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_LATE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
