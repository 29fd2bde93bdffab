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

from ffmpeg_bridge._libav cimport *
from ffmpeg_bridge.values import (
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


# --- values ----------------------------------------------------------------------------------


cdef str text(const char *string):
    return "" if string == NULL else (<bytes>string).decode("utf-8", "replace")


cdef object error(int code, str name, bint with_log=True):
    """The exception for libav's error code."""
    cdef char buffer[256]
    buffer[0] = 0
    av_strerror(code, buffer, sizeof(buffer))
    message = text(buffer)
    if with_log:
        line = text(bridge_log_last())
        if line and line != message:
            message = f"{message} ({line})"
    if code == AVERROR_INVALIDDATA:
        return InvalidDataError(_errno.EINVAL, message, name)
    number = -code if 0 < -code < 4096 else _errno.EINVAL
    return ERROR_CLASSES.get(number, BridgeError)(number, message, name)


cdef object to_fraction(AVRational value):
    """None where the value is undefined (0/0 or n/0) or zero."""
    return Fraction(value.num, value.den) if value.num and value.den else None


cdef AVRational to_rational(object value, str what) except *:
    cdef AVRational result
    result.num, result.den = 0, 1
    if value is not None:
        value = Fraction(value)
        if not (-2**31 < value.numerator < 2**31 and value.denominator < 2**31):
            raise ValueError(f"{what} {value} does not fit in 31 bits over 31 bits")
        result.num, result.den = value.numerator, value.denominator
    return result


cdef object to_ticks(int64_t value):
    return None if value == AV_NOPTS_VALUE else value


cdef int64_t from_ticks(object value) except? -1:
    return AV_NOPTS_VALUE if value is None else value


cdef dict to_dict(const AVDictionary *dictionary):
    result = {}
    cdef AVDictionaryEntry *entry = av_dict_get(dictionary, "", NULL, AV_DICT_IGNORE_SUFFIX)
    while entry != NULL:
        result[text(entry.key)] = text(entry.value)
        entry = av_dict_get(dictionary, "", entry, AV_DICT_IGNORE_SUFFIX)
    return result


cdef int set_dict(AVDictionary **dictionary, object values) except -1:
    for key, value in values.items():
        if av_dict_set(dictionary, key.encode(), str(value).encode("utf-8", "replace"), 0) < 0:
            raise MemoryError
    return 0


cdef str tag_text(uint32_t tag):
    return tag.to_bytes(4, "little").decode("latin-1") if tag else ""


cdef uint32_t tag_number(str tag) except? 0:
    data = tag.encode("latin-1")
    if len(data) not in (0, 4):
        raise ValueError(f"codec tag {tag!r} does not have 4 characters")
    return int.from_bytes(data, "little")


cdef int codec_id(str name) except -1:
    if not name:
        return AV_CODEC_ID_NONE
    cdef const AVCodecDescriptor *descriptor = avcodec_descriptor_get_by_name(name.encode())
    if descriptor == NULL:
        raise BridgeError(_errno.EINVAL, f"this FFmpeg knows no codec named {name!r}")
    return descriptor.id


cdef str codec_name(int codec):
    cdef const AVCodecDescriptor *descriptor = avcodec_descriptor_get(codec)
    return "" if descriptor == NULL or codec == AV_CODEC_ID_NONE else text(descriptor.name)


cdef dict side_data_types():
    cdef const char *name
    result = {}
    for number in range(AV_PKT_DATA_NB):
        name = av_packet_side_data_name(number)
        if name != NULL:
            result[text(name)] = number
    return result


cdef dict SIDE_DATA = side_data_types()
cdef dict SIDE_DATA_NAMES = {number: name for name, number in SIDE_DATA.items()}


cdef StreamInfo_of(AVStream *stream):
    """Everything libavformat knows of a stream, by value."""
    cdef AVCodecParameters *par = stream.codecpar
    cdef const AVPacketSideData *entry
    cdef double angle
    cdef int i
    cdef AVRational aspect = stream.sample_aspect_ratio
    if not aspect.num or not aspect.den:
        aspect = par.sample_aspect_ratio
    is_video = par.codec_type == AVMEDIA_TYPE_VIDEO
    is_audio = par.codec_type == AVMEDIA_TYPE_AUDIO
    metadata = to_dict(stream.metadata)
    rotation, side_data, has_matrix = 0, [], False
    for i in range(bridge_stream_nb_side_data(stream)):
        entry = bridge_stream_side_data(stream, i)
        if entry.type not in SIDE_DATA_NAMES:
            continue
        side_data.append((SIDE_DATA_NAMES[entry.type], (<char *>entry.data)[:entry.size]))
        if entry.type == AV_PKT_DATA_DISPLAYMATRIX and entry.size >= 36:
            angle = av_display_rotation_get(<const int32_t *>entry.data)
            rotation = 0 if math.isnan(angle) else round(-angle) % 360
            has_matrix = True
    for key in [key for key in metadata if key.lower() == "rotate"]:
        tagged = metadata.pop(key)
        if not has_matrix and is_video and tagged in ("90", "180", "270"):
            rotation = int(tagged)
    return StreamInfo(
        kind=KIND_NAMES.get(par.codec_type, "data"),
        codec=codec_name(par.codec_id),
        codec_tag=tag_text(par.codec_tag),
        index=stream.index,
        extradata=(<char *>par.extradata)[:par.extradata_size] if par.extradata != NULL else b"",
        time_base=to_fraction(stream.time_base) or Fraction(1, 1000),
        start_time=to_ticks(stream.start_time),
        duration=to_ticks(stream.duration),
        disposition=stream.disposition,
        metadata=metadata,
        width=par.width,
        height=par.height,
        sample_aspect_ratio=to_fraction(aspect),
        frame_rate=to_fraction(stream.avg_frame_rate),
        pixel_format=text(av_get_pix_fmt_name(par.format)) if is_video else "",
        color_primaries=par.color_primaries,
        color_trc=par.color_trc,
        colorspace=par.color_space,
        color_range=par.color_range,
        chroma_location=par.chroma_location,
        rotation=rotation,
        field_order=par.field_order,
        video_delay=par.video_delay,
        sample_rate=par.sample_rate,
        channels=par.ch_layout.nb_channels,
        channel_layout=bridge_channel_mask(par),
        sample_format=text(av_get_sample_fmt_name(par.format)) if is_audio else "",
        frame_size=par.frame_size,
        initial_padding=par.initial_padding,
        trailing_padding=par.trailing_padding,
        seek_preroll=par.seek_preroll,
        bits_per_coded_sample=par.bits_per_coded_sample,
        bits_per_raw_sample=par.bits_per_raw_sample,
        block_align=par.block_align,
        profile=par.profile,
        level=par.level,
        bit_rate=par.bit_rate,
        side_data=tuple(side_data),
        attached_picture=(
            (<char *>stream.attached_pic.data)[:stream.attached_pic.size]
            if stream.attached_pic.data != NULL
            else b""
        ),
    )


cdef int fill_stream(AVStream *stream, const AVOutputFormat *container, info) except -1:
    """Write a StreamInfo into a new stream of the container."""
    cdef AVCodecParameters *par = stream.codecpar
    cdef unsigned int ignored = 0
    cdef uint8_t *target
    if info.kind not in KINDS:
        raise ValueError(f"stream kind {info.kind!r} is not one of {', '.join(KINDS)}")
    for field in ("width", "height", "sample_rate", "channels", "bit_rate"):
        if getattr(info, field) < 0:
            raise ValueError(f"stream {field} {getattr(info, field)} is negative")
    par.codec_type = KINDS[info.kind]
    par.codec_id = codec_id(info.codec)
    # A tag of the source's container means something else, or nothing, in another one.
    tag = tag_number(info.codec_tag)
    if (
        par.codec_id == AV_CODEC_ID_NONE
        or container.codec_tag == NULL
        or av_codec_get_id(container.codec_tag, tag) == par.codec_id
        or not av_codec_get_tag2(container.codec_tag, par.codec_id, &ignored)
    ):
        par.codec_tag = tag
    extradata = bytes(info.extradata)
    if extradata:
        if len(extradata) > 2**31 - 1 - AV_INPUT_BUFFER_PADDING_SIZE:
            raise ValueError(f"extradata has {len(extradata)} bytes: more than 2 GiB")
        par.extradata = <uint8_t *>av_mallocz(len(extradata) + AV_INPUT_BUFFER_PADDING_SIZE)
        if par.extradata == NULL:
            raise MemoryError
        memcpy(par.extradata, <const char *>extradata, len(extradata))
        par.extradata_size = len(extradata)
    par.bit_rate = info.bit_rate
    par.bits_per_coded_sample = info.bits_per_coded_sample
    par.bits_per_raw_sample = info.bits_per_raw_sample
    par.profile = info.profile
    par.level = info.level
    par.width = info.width
    par.height = info.height
    if info.kind == "video":
        par.sample_aspect_ratio = to_rational(info.sample_aspect_ratio, "sample aspect ratio")
        stream.sample_aspect_ratio = par.sample_aspect_ratio
        par.field_order = info.field_order
        par.color_range = info.color_range
        par.color_primaries = info.color_primaries
        par.color_trc = info.color_trc
        par.color_space = info.colorspace
        par.chroma_location = info.chroma_location
        par.video_delay = info.video_delay
        par.format = AV_PIX_FMT_NONE
        if info.pixel_format:
            par.format = av_get_pix_fmt(info.pixel_format.encode())
        stream.avg_frame_rate = to_rational(info.frame_rate, "frame rate")
    elif info.kind == "audio":
        par.format = AV_SAMPLE_FMT_NONE
        if info.sample_format:
            par.format = av_get_sample_fmt(info.sample_format.encode())
        par.sample_rate = info.sample_rate
        par.block_align = info.block_align
        par.frame_size = info.frame_size
        par.initial_padding = info.initial_padding
        par.trailing_padding = info.trailing_padding
        par.seek_preroll = info.seek_preroll
        if bridge_set_channel_layout(par, info.channel_layout, info.channels) < 0:
            raise ValueError(f"channel layout {info.channel_layout:#x} is no speaker mask")
    stream.time_base = to_rational(info.time_base, "time base")
    stream.disposition = info.disposition
    if info.duration is not None:
        stream.duration = info.duration
    side_data = list(info.side_data)
    metadata = dict(info.metadata)
    if info.kind == "attachment":  # Matroska's muxer insists on both
        metadata.setdefault("filename", f"attachment{stream.index}")
        metadata.setdefault("mimetype", "application/octet-stream")
    if info.rotation:
        if not any(name == "Display Matrix" for name, _ in side_data):
            side_data.append(("Display Matrix", rotation_matrix(info.rotation)))
        if ROTATE_TAG and text(container.name) in ("matroska", "webm"):
            metadata["rotate"] = str(info.rotation)
    for name, data in side_data:
        if name not in SIDE_DATA:
            continue
        target = bridge_stream_new_side_data(stream, SIDE_DATA[name], len(data))
        if target == NULL:
            raise MemoryError
        memcpy(target, <const char *>data, len(data))
    set_dict(&stream.metadata, metadata)
    return 0


cdef bytes rotation_matrix(double clockwise):
    cdef int32_t matrix[9]
    av_display_rotation_set(matrix, clockwise)
    return (<char *>matrix)[:sizeof(matrix)]


# --- input and output ------------------------------------------------------------------------


cdef int interrupted(void *opaque) noexcept nogil:
    return check_signals(opaque)


cdef int check_signals(void *opaque) noexcept with gil:
    cdef Context self = <Context>opaque
    if self.pending is None and not self.abandoned:
        try:
            PyErr_CheckSignals()
        except BaseException as exception:
            self.pending = exception
    return self.abandoned or self.pending is not None


cdef int read_file(void *opaque, uint8_t *buffer, int size) noexcept with gil:
    cdef Context self = <Context>opaque
    cdef Py_ssize_t length
    if self.abandoned or self.pending is not None:
        return AVERROR_EXIT
    try:
        PyErr_CheckSignals()
        data = self.read(size)
        if data is None:
            raise BlockingIOError(_errno.EAGAIN, f"{self.name} has no data yet")
        data = bytes(data)
        length = len(data)
        if length > size:
            raise ValueError(f"{self.name}: read({size}) returned {length} bytes")
        memcpy(buffer, <const char *>data, length)
        return length if length else AVERROR_EOF
    except BaseException as exception:
        self.pending = exception
        return AVERROR_EXIT


cdef int write_file(void *opaque, bridge_write_buffer *buffer, int size) noexcept with gil:
    cdef Context self = <Context>opaque
    if self.abandoned or self.pending is not None:
        return AVERROR_EXIT
    try:
        data = memoryview((<const char *>buffer)[:size])
        while data:
            PyErr_CheckSignals()  # a signal may have cut the last write short
            written = self.file.write(data)
            if written is None:
                raise BlockingIOError(_errno.EAGAIN, f"{self.name} takes no data now")
            if not 0 < written <= len(data):
                raise ValueError(f"{self.name}: write() of {len(data)} bytes returned {written}")
            data = data[written:]
        return size
    except BaseException as exception:
        self.pending = exception
        return AVERROR_EXIT


cdef int64_t seek_file(void *opaque, int64_t offset, int whence) noexcept with gil:
    cdef Context self = <Context>opaque
    if self.abandoned or self.pending is not None:
        return AVERROR_EXIT
    try:
        whence &= ~AVSEEK_FORCE
        if whence == AVSEEK_SIZE:
            here = self.file.tell()
            self.file.seek(0, os.SEEK_END)
            size = self.file.tell()
            self.file.seek(here)
            return size
        self.file.seek(offset, whence)
        return self.file.tell()
    except BaseException as exception:
        self.pending = exception
        return AVERROR_EXIT


cdef class Context:
    """What Muxer and Demuxer share: the format context, its input or output, its errors."""

    cdef AVFormatContext *ctx
    cdef AVIOContext *pb  # over a Python file object; NULL where libavformat opened the file
    cdef AVPacket *packet
    cdef object file
    cdef object read
    cdef object pending  # exception of a callback, raised by check()
    cdef bint abandoned  # callbacks do nothing any more
    cdef bint busy
    cdef bint opened
    cdef readonly str name

    cdef int enter(self) except -1:
        """Start a call into libav; one at a time, also against calls from within callbacks."""
        if self.busy:
            raise RuntimeError(f"{self.name} is in use by another call")
        if not self.opened:
            raise ValueError(f"{self.name or 'this file'} is closed")
        self.busy = True
        bridge_log_clear()
        return 0

    cdef int check(self, int code) except -1:
        """End a call into libav: raise what a callback raised, or libav's error."""
        self.busy = False
        if self.pending is not None:
            pending, self.pending = self.pending, None
            raise pending
        if code < 0:
            raise error(code, self.name)
        return 0

    cdef int open_file(self, target, bint writable) except -1:
        """Make pb for a Python file object."""
        cdef unsigned char *buffer
        self.file = target
        name = getattr(target, "name", None)
        self.name = name if isinstance(name, str) else f"<{type(target).__name__}>"
        needed = "write" if writable else "read"
        if not hasattr(target, needed):
            raise TypeError(f"{target!r} is neither a path nor a binary file with {needed}()")
        if not writable:
            self.read = getattr(target, "read1", None) or target.read
        seekable = bool(target.seekable()) if hasattr(target, "seekable") else hasattr(target, "seek")
        buffer = <unsigned char *>av_malloc(BUFFER_SIZE)
        if buffer == NULL:
            raise MemoryError
        self.pb = bridge_avio_alloc(
            buffer, BUFFER_SIZE, writable, seekable, <void *>self, read_file, write_file, seek_file
        )
        if self.pb == NULL:
            av_free(buffer)
            raise MemoryError
        self.pb.seekable = AVIO_SEEKABLE_NORMAL if seekable else 0
        return 0

    cdef void free_file(self) noexcept:
        if self.pb != NULL:
            av_freep(&self.pb.buffer)
            avio_context_free(&self.pb)

    def __repr__(self):
        state = "open" if self.opened else "closed"
        return f"<ffmpeg_bridge.{type(self).__name__} {self.name!r} {state}>"


def url_of(name):
    """What libavformat calls a path: "file:" before all that is no protocol."""
    name = os.fsdecode(name)
    if "\0" in name:
        raise ValueError(f"path {name!r} has a null character")
    is_url = ("://" in name or name.startswith(PROTOCOLS)) and not os.path.exists(name)
    return name if is_url else f"file:{name}"


cdef bint is_path(target):
    return isinstance(target, (str, bytes, os.PathLike))


cdef class Muxer(Context):
    """Writes a container file.

    Add streams and chapters, fill `metadata`, call write_header(), write packets, close().
    As a context manager it closes at the end and abandons the file where the block raised.

    A seekable target learns its duration at close(); for a pipe set `duration` (seconds, a number)
    before the header if it is known.

    Args:
        target: path, or binary file object (written from its present position; not closed).
            Without seek() the container is written in one go, as for a pipe.
        format: FFmpeg's name of the container.
        options: FFmpeg's options of the muxer ("fflags": "bitexact", ...).

    Raises:
        BridgeError: unknown container, or the target cannot be opened.
    """

    cdef public dict metadata
    cdef public object duration
    cdef dict options
    cdef dict delays  # of streams whose times the muxer fails to delay: index to samples, 1/48000 s
    cdef bint matroska
    cdef bint header_written
    cdef bint ended

    def __init__(self, target, format="matroska", options=None):
        cdef int code
        cdef const char *format_text
        cdef const char *url_text
        cdef AVIOContext **io
        if self.ctx != NULL or self.name is not None:
            raise RuntimeError("this Muxer is initialised already")
        self.metadata = {}
        self.delays = {}
        self.options = {str(key): str(value) for key, value in (options or {}).items()}
        self.name = os.fsdecode(target) if is_path(target) else "output"
        format_bytes = format.encode()
        format_text = format_bytes
        if av_guess_format(format_text, NULL, NULL) == NULL:
            raise BridgeError(_errno.EINVAL, f"this FFmpeg writes no container named {format!r}")
        url_bytes = os.fsencode(url_of(target)) if is_path(target) else b""
        url_text = url_bytes
        self.opened = True
        self.enter()
        try:
            self.check(avformat_alloc_output_context2(&self.ctx, NULL, format_text, url_text))
            self.busy = True
            self.matroska = text(self.ctx.oformat.name) in ("matroska", "webm")
            self.ctx.interrupt_callback.callback = interrupted
            self.ctx.interrupt_callback.opaque = <void *>self
            self.packet = av_packet_alloc()
            if self.packet == NULL:
                raise MemoryError
            if not is_path(target):
                self.open_file(target, True)
                self.ctx.pb = self.pb
            elif not self.ctx.oformat.flags & AVFMT_NOFILE:
                io = &self.ctx.pb
                with nogil:
                    code = avio_open2(
                        io, url_text, AVIO_FLAG_WRITE, &self.ctx.interrupt_callback, NULL
                    )
                self.check(code)
        except BaseException:
            self.release()
            raise
        self.busy = False

    def __dealloc__(self):
        self.release()

    cdef int release(self) noexcept:
        """Free everything; returns libav's code of closing the file. Calls no Python file."""
        cdef int code = 0
        self.abandoned = True
        self.opened = False
        self.busy = False
        with nogil:
            av_packet_free(&self.packet)
            if self.ctx != NULL:
                if self.pb == NULL and self.ctx.pb != NULL:
                    code = avio_closep(&self.ctx.pb)
                avformat_free_context(self.ctx)
                self.ctx = NULL
        self.free_file()
        self.file = None
        return code

    @property
    def format_name(self):
        """FFmpeg's name of the container."""
        self.enter()
        self.busy = False
        return text(self.ctx.oformat.name)

    def add_stream(self, info):
        """Add a stream before the header is written; returns its index in the file.

        Raises:
            BridgeError: this FFmpeg does not know the codec.
            ValueError: a field is out of range, or the header is written already.
        """
        cdef AVStream *stream
        self.before_header("streams come first")
        codec_id(info.codec)
        stream = avformat_new_stream(self.ctx, NULL)
        if stream == NULL:
            raise MemoryError
        try:
            fill_stream(stream, self.ctx.oformat, info)
        except BaseException:
            self.release()  # a half-filled stream cannot be taken back
            raise
        if ADD_OPUS_DELAY and self.matroska and info.codec == "opus" and info.initial_padding:
            self.delays[stream.index] = info.initial_padding
        return stream.index

    def add_chapter(self, chapter):
        """Add a chapter before the header is written."""
        cdef AVChapter *entry
        self.before_header("chapters come first")
        time_base = to_rational(chapter.time_base, "time base")
        id_, start, end = <int64_t>chapter.id, <int64_t>chapter.start, <int64_t>chapter.end
        entry = bridge_new_chapter(self.ctx)
        if entry == NULL:
            raise MemoryError
        entry.id, entry.start, entry.end, entry.time_base = id_, start, end, time_base
        set_dict(&entry.metadata, chapter.metadata)

    cdef int before_header(self, str what) except -1:
        self.enter()
        self.busy = False
        if self.header_written:
            raise ValueError(f"{self.name}: {what}, the header is written already")
        return 0

    def write_header(self):
        """Write the container's header; from here on streams and tags are fixed.

        Raises:
            BridgeError: the container cannot hold these streams, an option is unknown, or the
                target cannot be written.
        """
        cdef int code
        cdef AVDictionary *options = NULL
        self.before_header("write_header() is called once")
        if self.ctx.nb_streams == 0:
            raise ValueError(f"{self.name}: no stream was added")
        chosen = dict(self.options)
        if self.matroska:
            chosen.setdefault("default_mode", "passthrough")  # dispositions as they were given
            # Else audio that begins before zero (AAC's priming) would move the pictures.
            chosen.setdefault("avoid_negative_ts", "disabled")
        try:
            set_dict(&self.ctx.metadata, self.metadata)
            is_pipe = self.ctx.pb != NULL and not self.ctx.pb.seekable & AVIO_SEEKABLE_NORMAL
            if self.duration is not None and is_pipe:
                self.ctx.duration = round(self.duration * AV_TIME_BASE)
            set_dict(&options, chosen)
            self.enter()
            with nogil:
                code = avformat_write_header(self.ctx, &options)
            unknown = to_dict(options)
            self.header_written = code >= 0
            self.check(code)
            if unknown:
                raise BridgeError(
                    _errno.EINVAL, f"the muxer has no option {', '.join(unknown)}", self.name
                )
        except BaseException:
            self.release()
            raise
        finally:
            av_dict_free(&options)

    def stream_time_base(self, int index):
        """Seconds per tick of a stream, as the container wants it; final after write_header()."""
        return to_fraction(self.stream(index).time_base)

    cdef AVStream *stream(self, int index) except NULL:
        self.enter()
        self.busy = False
        if not 0 <= index < <int>self.ctx.nb_streams:
            raise ValueError(f"stream {index} is not one of the {self.ctx.nb_streams} there are")
        return self.ctx.streams[index]

    def write_packet(self, packet):
        """Write one packet, interleaved by dts with those of the other streams.

        Its times are converted to the stream's time base. Packets of one stream come in the
        order of their dts.

        Raises:
            BridgeError: the container refuses it or the target cannot be written.
        """
        cdef int code
        cdef int size
        cdef AVStream *stream = self.stream(packet.stream_index)
        cdef AVPacket *target = self.packet
        cdef uint8_t *side
        cdef int64_t delay
        cdef const uint8_t[::1] data
        if not self.header_written or self.ended:
            raise ValueError(f"{self.name}: packets are written between header and trailer")
        time_base = to_rational(packet.time_base, "time base")
        if time_base.num <= 0:
            raise ValueError(f"time base {packet.time_base} is not positive")
        if packet.pts is None and packet.dts is None:
            raise ValueError(f"{self.name}: packet of stream {stream.index} has no pts and no dts")
        size = len(packet.data)
        try:
            av_packet_unref(target)
            if av_new_packet(target, size) < 0:
                raise MemoryError
            if size:
                data = packet.data
                memcpy(target.data, &data[0], size)
            target.stream_index = packet.stream_index
            target.pts = from_ticks(packet.pts)
            target.dts = from_ticks(packet.dts)
            target.duration = packet.duration
            target.flags = AV_PKT_FLAG_KEY if packet.is_keyframe else 0
            if packet.stream_index in self.delays:
                delay = av_rescale_q(self.delays[packet.stream_index], OPUS_RATE, time_base)
                if target.pts != AV_NOPTS_VALUE:
                    target.pts += delay
                if target.dts != AV_NOPTS_VALUE:
                    target.dts += delay
            av_packet_rescale_ts(target, time_base, stream.time_base)
            if self.matroska and AV_NOPTS_VALUE < target.pts < -32768:
                raise ValueError(
                    f"{self.name}: pts {packet.pts} is {-target.pts / 1000} s before zero; "
                    "Matroska holds 32.768 s at most"
                )
            for name, content in packet.side_data:
                if name not in SIDE_DATA:
                    continue
                side = av_packet_new_side_data(target, SIDE_DATA[name], len(content))
                if side == NULL:
                    raise MemoryError
                memcpy(side, <const char *>content, len(content))
        except BaseException:
            av_packet_unref(target)
            raise
        self.enter()
        with nogil:
            code = av_interleaved_write_frame(self.ctx, target)
        self.check(code)

    def close(self):
        """Write what is left and the trailer, and release everything.

        Raises:
            BridgeError: the file could not be completed (a full disk shows here at the latest).
        """
        cdef int code = 0
        cdef int closing
        if not self.opened:
            return
        self.enter()
        try:
            if self.header_written and not self.ended:
                self.ended = True
                with nogil:
                    code = av_write_trailer(self.ctx)
                    if self.ctx.pb != NULL:
                        avio_flush(self.ctx.pb)
                        if code >= 0:
                            code = self.ctx.pb.error
                self.check(code)
                if self.file is not None and hasattr(self.file, "flush"):
                    self.file.flush()
        finally:
            closing = self.release()
        if closing < 0:
            raise error(closing, self.name)

    def abort(self):
        """Release everything without a trailer; what was written stays as it is."""
        if self.busy:
            raise RuntimeError(f"{self.name} is in use by another call")
        if self.opened:
            self.release()

    def __enter__(self):
        return self

    def __exit__(self, kind, value, traceback):
        if kind is None:
            self.close()
        else:
            self.abort()


cdef class Demuxer(Context):
    """Reads a container file: iterate over it for its packets.

    Args:
        source: path, or binary file object (read from its present position; not closed).
        format: FFmpeg's name of the container; None finds out.
        options: FFmpeg's options of the demuxer.

    Raises:
        BridgeError: the source cannot be opened or read, or is no media file.
    """

    cdef tuple known_streams

    def __init__(self, source, format=None, options=None):
        cdef int code
        cdef const AVInputFormat *input_format = NULL
        cdef const char *url_text
        cdef AVDictionary *chosen = NULL
        if self.ctx != NULL or self.name is not None:
            raise RuntimeError("this Demuxer is initialised already")
        self.known_streams = ()
        self.name = os.fsdecode(source) if is_path(source) else "input"
        if format is not None:
            input_format = av_find_input_format(format.encode())
            if input_format == NULL:
                raise BridgeError(_errno.EINVAL, f"this FFmpeg reads no container named {format!r}")
        url_bytes = os.fsencode(url_of(source)) if is_path(source) else b""
        url_text = url_bytes
        self.opened = True
        self.enter()
        try:
            self.packet = av_packet_alloc()
            self.ctx = avformat_alloc_context()
            if self.packet == NULL or self.ctx == NULL:
                raise MemoryError
            self.ctx.interrupt_callback.callback = interrupted
            self.ctx.interrupt_callback.opaque = <void *>self
            if not is_path(source):
                self.open_file(source, False)
                self.ctx.pb = self.pb
            wanted = {str(key): str(value) for key, value in (options or {}).items()}
            if not is_path(source):  # a hostile playlist in it opens no files; libav's own for paths
                wanted.setdefault("protocol_whitelist", "crypto,data")
            set_dict(&chosen, wanted)
            with nogil:
                code = avformat_open_input(&self.ctx, url_text, input_format, &chosen)
            self.check(code)
            unknown = to_dict(chosen)
            if unknown:
                raise BridgeError(
                    _errno.EINVAL, f"the demuxer has no option {', '.join(unknown)}", self.name
                )
            self.enter()
            with nogil:
                code = avformat_find_stream_info(self.ctx, NULL)
            self.check(0 if self.ctx.nb_streams else code)
        except BaseException:
            self.release()
            raise
        finally:
            av_dict_free(&chosen)

    def __dealloc__(self):
        self.release()

    cdef int release(self) noexcept:
        self.abandoned = True
        self.opened = False
        self.busy = False
        with nogil:
            av_packet_free(&self.packet)
            avformat_close_input(&self.ctx)
        self.free_file()
        self.file = self.read = None
        return 0

    @property
    def streams(self):
        """Tuple of StreamInfo; some containers (MPEG-TS) may show further streams later on."""
        self.enter()
        self.busy = False
        if len(self.known_streams) != self.ctx.nb_streams:
            self.known_streams = tuple(
                StreamInfo_of(self.ctx.streams[i]) for i in range(self.ctx.nb_streams)
            )
        return self.known_streams

    @property
    def chapters(self):
        """Tuple of Chapter."""
        cdef AVChapter *chapter
        self.enter()
        self.busy = False
        result = []
        for i in range(self.ctx.nb_chapters):
            chapter = self.ctx.chapters[i]
            result.append(
                Chapter(
                    id=chapter.id,
                    start=chapter.start,
                    end=chapter.end,
                    time_base=to_fraction(chapter.time_base) or Fraction(1, 1000),
                    metadata=to_dict(chapter.metadata),
                )
            )
        return tuple(result)

    @property
    def metadata(self):
        """Tags of the whole file."""
        self.enter()
        self.busy = False
        return to_dict(self.ctx.metadata)

    @property
    def format_name(self):
        """FFmpeg's name of the container ("matroska,webm")."""
        self.enter()
        self.busy = False
        return text(self.ctx.iformat.name)

    @property
    def duration(self):
        """Fraction of seconds; None when unknown."""
        self.enter()
        self.busy = False
        ticks = to_ticks(self.ctx.duration)
        return None if ticks is None else Fraction(ticks, AV_TIME_BASE)

    @property
    def start_time(self):
        """Time of the first packet in seconds as a Fraction; None when unknown."""
        self.enter()
        self.busy = False
        ticks = to_ticks(self.ctx.start_time)
        return None if ticks is None else Fraction(ticks, AV_TIME_BASE)

    def read_packet(self):
        """The next packet of any stream, or None at the end.

        Raises:
            BridgeError: the source cannot be read on.
        """
        cdef int code = 0
        cdef AVPacket *packet = self.packet
        cdef AVPacketSideData *entry
        for _ in range(100):
            self.enter()
            with nogil:
                code = av_read_frame(self.ctx, packet)
            if code != AGAIN:
                break
            self.check(0)
            time.sleep(0.01)
        if code == AVERROR_EOF and self.pending is None:
            # libavformat reports some read errors as an end: the input knows better.
            code = self.ctx.pb.error if self.ctx.pb != NULL else 0
            self.check(0 if code == AVERROR_EOF else code)
            return None
        try:
            self.check(code)
            side_data = []
            for i in range(packet.side_data_elems):
                entry = &packet.side_data[i]
                if entry.type in SIDE_DATA_NAMES:
                    content = (<char *>entry.data)[:entry.size]
                    side_data.append((SIDE_DATA_NAMES[entry.type], content))
            time_base = to_fraction(self.ctx.streams[packet.stream_index].time_base)
            return BridgePacket(
                stream_index=packet.stream_index,
                data=(<char *>packet.data)[:packet.size] if packet.size else b"",
                pts=to_ticks(packet.pts),
                dts=to_ticks(packet.dts),
                duration=packet.duration,
                is_keyframe=bool(packet.flags & AV_PKT_FLAG_KEY),
                time_base=time_base or Fraction(1, 1000),
                side_data=tuple(side_data),
            )
        finally:
            av_packet_unref(packet)

    def seek(self, int stream_index, timestamp, bint backward=True):
        """Go to a keyframe of a stream; the next packet read is the first from there on.

        Args:
            stream_index: stream whose keyframes and time base count; -1 leaves the choice to
                libavformat and takes the timestamp in microseconds.
            timestamp: in ticks.
            backward: the last keyframe at or before it, else the first at or after it.

        Raises:
            BridgeError: there is no such place, or the source cannot seek.
        """
        cdef int code
        cdef int64_t ticks = timestamp
        cdef int flags = AVSEEK_FLAG_BACKWARD if backward else 0
        self.enter()
        if not -1 <= stream_index < <int>self.ctx.nb_streams:
            self.busy = False
            raise ValueError(
                f"stream {stream_index} is not one of the {self.ctx.nb_streams} there are"
            )
        with nogil:
            code = av_seek_frame(self.ctx, stream_index, ticks, flags)
        self.check(code)

    def close(self):
        """Release everything."""
        if self.busy:
            raise RuntimeError(f"{self.name} is in use by another call")
        if self.opened:
            self.release()

    def __iter__(self):
        return self

    def __next__(self):
        packet = self.read_packet()
        if packet is None:
            raise StopIteration
        return packet

    def __enter__(self):
        return self

    def __exit__(self, kind, value, traceback):
        self.close()


def supports(format, info):
    """Whether a container can hold a stream: asks libavformat, then writes a trial header.

    Args:
        format: FFmpeg's name of the container ("matroska").
        info: the stream.

    Raises:
        BridgeError: this FFmpeg knows no such container.
    """
    cdef const AVOutputFormat *container = av_guess_format(format.encode(), NULL, NULL)
    cdef AVFormatContext *ctx = NULL
    cdef AVDictionary *options = NULL
    cdef AVStream *stream
    cdef uint8_t *written = NULL
    if container == NULL:
        raise BridgeError(_errno.EINVAL, f"this FFmpeg writes no container named {format!r}")
    if info.kind == "attachment":
        return text(container.name) == "matroska"
    try:
        codec = codec_id(info.codec)
    except BridgeError:
        return False
    if codec != AV_CODEC_ID_NONE and not avformat_query_codec(
        container, codec, FF_COMPLIANCE_EXPERIMENTAL
    ):
        return False
    if container.flags & AVFMT_NOFILE:
        return True
    bridge_log_clear()
    try:
        if avformat_alloc_output_context2(&ctx, container, NULL, NULL) < 0:
            raise MemoryError
        stream = avformat_new_stream(ctx, NULL)
        if stream == NULL or avio_open_dyn_buf(&ctx.pb) < 0:
            raise MemoryError
        fill_stream(stream, container, info)
        return avformat_write_header(ctx, &options) >= 0
    finally:
        av_dict_free(&options)
        if ctx != NULL:
            if ctx.pb != NULL:
                avio_close_dyn_buf(ctx.pb, &written)
                av_free(written)
            avformat_free_context(ctx)
