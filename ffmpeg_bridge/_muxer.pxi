# Writing.

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

    @property
    def equal_times(self):
        """Whether two packets of one stream may have one dts (AVFMT_TS_NONSTRICT)."""
        self.enter()
        self.busy = False
        return bool(self.ctx.oformat.flags & AVFMT_TS_NONSTRICT)

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
        """Add a chapter before the header is written.

        Raises:
            ValueError: it begins before zero or ends before it begins.
        """
        cdef AVChapter *entry
        self.before_header("chapters come first")
        time_base = to_rational(chapter.time_base, "time base")
        id_, start, end = <int64_t>chapter.id, <int64_t>chapter.start, <int64_t>chapter.end
        if not 0 <= start <= end:
            raise ValueError(f"chapter {id_} lasts from {start} to {end} ticks: not 0 <= start <= end")
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
            ValueError: the stream or the times are out of range; in Matroska pictures begin at
                zero or later.
        """
        cdef int code
        cdef int size
        cdef Py_ssize_t length = len(packet.data)
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
        if length > 2**31 - 1 - AV_INPUT_BUFFER_PADDING_SIZE:
            raise ValueError(f"{self.name}: a packet of {length} bytes is longer than 2 GiB")
        size = <int>length
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
            # Readers guess times before zero from durations: right for sound, lost for pictures.
            earliest = 0 if stream.codecpar.codec_type == AVMEDIA_TYPE_VIDEO else -32768
            if self.matroska and AV_NOPTS_VALUE < target.pts < earliest:
                raise ValueError(
                    f"{self.name}: pts {packet.pts} of stream {stream.index} is {-target.pts} ms "
                    f"before zero, Matroska takes at most {-earliest}: shift all streams"
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

    def flush(self):
        """Hand what the container wrote so far to the file; packets held for interleaving stay."""
        cdef int code = 0
        self.enter()
        with nogil:
            if self.header_written and self.ctx.pb != NULL:
                code = av_write_frame(self.ctx, NULL)
                avio_flush(self.ctx.pb)
                if code >= 0:
                    code = self.ctx.pb.error
        self.check(min(code, 0))

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


def can_write(format):
    """Whether this FFmpeg writes a container of that name."""
    return av_guess_format(format.encode(), NULL, NULL) != NULL


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
