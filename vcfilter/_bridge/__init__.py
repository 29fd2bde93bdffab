"""Muxer and Demuxer over the system's libavformat; independent of the codec in vcfilter.

PyAV reads and writes ordinary media; this package writes and reads streams that FFmpeg has no
decoder for (FourCC VCF1), and copies any other stream by value.
"""

from vcfilter._bridge._avformat import Demuxer, Muxer, can_write, supports
from vcfilter._bridge.values import (
    DISPOSITION_ATTACHED_PICTURE,
    DISPOSITION_DEFAULT,
    BridgeBrokenPipeError,
    BridgeError,
    BridgeFileNotFoundError,
    BridgeIsADirectoryError,
    BridgePacket,
    BridgePermissionError,
    Chapter,
    InvalidDataError,
    StreamInfo,
    StreamKind,
)

__all__ = [
    "DISPOSITION_ATTACHED_PICTURE",
    "DISPOSITION_DEFAULT",
    "BridgeBrokenPipeError",
    "BridgeError",
    "BridgeFileNotFoundError",
    "BridgeIsADirectoryError",
    "BridgePacket",
    "BridgePermissionError",
    "Chapter",
    "Demuxer",
    "InvalidDataError",
    "Muxer",
    "StreamInfo",
    "StreamKind",
    "can_write",
    "supports",
]
