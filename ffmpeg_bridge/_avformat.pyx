# cython: language_level=3, boundscheck=False, embedsignature=True
"""Muxer and Demuxer over the system's libavformat, public API only.

Every call that may block or work for long runs without the GIL. Python file objects are reached
through AVIOContext callbacks that take it back; what they raise comes out of the call that
caused it. A signal handler's exception (Ctrl-C) stops libav's own input and output too.
"""

import errno as _errno
import math
import os
import time
from fractions import Fraction

from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t
from libc.string cimport memcpy

from _libav cimport *
from vcfilter._bridge.values import (
    ERROR_CLASSES,
    BridgeError,
    BridgePacket,
    Chapter,
    InvalidDataError,
    StreamInfo,
)

cdef int BUFFER_SIZE = 1 << 16
cdef AVRational OPUS_RATE
OPUS_RATE.num, OPUS_RATE.den = 1, 48000
cdef int AGAIN = AVERROR(_errno.EAGAIN)

cdef dict KIND_NAMES = {
    AVMEDIA_TYPE_VIDEO: "video",
    AVMEDIA_TYPE_AUDIO: "audio",
    AVMEDIA_TYPE_SUBTITLE: "subtitle",
    AVMEDIA_TYPE_ATTACHMENT: "attachment",
}
cdef dict KINDS = {name: kind for kind, name in KIND_NAMES.items()} | {"data": AVMEDIA_TYPE_DATA}

# Names that libavformat reads as protocols; anything else is a file, also with a colon in it.
cdef tuple PROTOCOLS = ("pipe:", "fd:", "file:", "data:", "concat:", "subfile,", "cache:", "crypto:")

# Before FFmpeg 7 the Matroska muxer drops a display matrix; its old tag then carries the rotation.
cdef bint ROTATE_TAG = avformat_version() >> 16 < 61
# Before FFmpeg 6.1 it states Opus's initial padding as codec delay but does not add it to the times.
cdef bint ADD_OPUS_DELAY = avformat_version() < (60 << 16 | 16 << 8)

bridge_log_install()

include "_values.pxi"
include "_context.pxi"
include "_muxer.pxi"
include "_demuxer.pxi"
