# Reading.

# Containers that are lists of other files: read only where a URL was given.
cdef tuple PLAYLISTS = ("hls", "applehttp", "concat", "dash", "imf", "webm_dash_manifest", "sdp")


cdef str single_file_formats():
    """Names of all other containers, as libavformat's option format_whitelist takes them."""
    cdef void *position = NULL
    cdef const AVInputFormat *each = av_demuxer_iterate(&position)
    names = []
    while each != NULL:
        names += [name for name in text(each.name).split(",") if name not in PLAYLISTS]
        each = av_demuxer_iterate(&position)
    return ",".join(names)


cdef str SINGLE_FILES = single_file_formats()


cdef class Demuxer(Context):
    """Reads a container file: iterate over it for its packets.

    A file opens no other file, whatever it says: playlists and concat scripts are refused. Only
    URLs, and containers that are sequences of files ("image2"), may open more.

    Args:
        source: path, or binary file object (read from its present position; not closed).
        format: FFmpeg's name of the container; None finds out.
        options: FFmpeg's options of the demuxer.

    Raises:
        BridgeError: the source cannot be opened or read, or is no media file.
    """

    cdef tuple known_streams
    cdef AVIOContext *owned  # of a local file, opened here

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
        url = url_of(source) if is_path(source) else ""
        many_files = input_format != NULL and input_format.flags & AVFMT_NOFILE
        alone = not is_path(source) or (url.startswith("file:") and not many_files)
        if many_files and url.startswith("file:"):  # a pattern of names; a wildcard has no protocol
            url = os.path.join(".", os.fsdecode(source))
        url_bytes = os.fsencode(url)
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
            elif alone:
                with nogil:
                    code = avio_open2(
                        &self.owned, url_text, AVIO_FLAG_READ, &self.ctx.interrupt_callback, NULL
                    )
                self.check(code)
                self.enter()
                self.ctx.pb = self.owned
            wanted = {str(key): str(value) for key, value in (options or {}).items()}
            if alone:
                wanted.setdefault("protocol_whitelist", "crypto,data")
                wanted.setdefault("format_whitelist", SINGLE_FILES)
            set_dict(&chosen, wanted)
            with nogil:
                code = avformat_open_input(&self.ctx, url_text, input_format, &chosen)
            if code < 0 and alone and self.pending is None and "whitelist" in text(bridge_log_last()):
                self.busy = False
                raise InvalidDataError(_errno.EINVAL, "it refers to other files", self.name)
            self.check(code)
            unknown = to_dict(chosen)
            if unknown:
                raise BridgeError(
                    _errno.EINVAL, f"the demuxer has no option {', '.join(unknown)}", self.name
                )
            self.enter()
            with nogil:
                code = avformat_find_stream_info(self.ctx, NULL)
            if self.ctx.nb_streams:
                code = 0
            elif code >= 0:
                code = AVERROR_INVALIDDATA
            self.check(code)
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
            avio_closep(&self.owned)
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
    def clock_may_jump(self):
        """Whether times of this container may be discontinuous (AVFMT_TS_DISCONT: MPEG-TS)."""
        self.enter()
        self.busy = False
        return bool(self.ctx.iformat.flags & AVFMT_TS_DISCONT)

    @property
    def bit_rate(self):
        """Bit/s of the whole file; 0 when unknown."""
        self.enter()
        self.busy = False
        return max(0, self.ctx.bit_rate)

    @property
    def size(self):
        """Bytes of the whole file; None when unknown, as of a pipe."""
        cdef int64_t size
        self.enter()
        size = avio_size(self.ctx.pb) if self.ctx.pb != NULL else -1
        self.check(0)
        return size if size >= 0 else None

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
                discard=bool(packet.flags & AV_PKT_FLAG_DISCARD),
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
        if code == -1 and self.pending is None:  # libav's word for "not found", not EPERM
            self.busy = False
            raise BridgeError(
                _errno.EINVAL, f"no place to seek to at {ticks} in stream {stream_index}", self.name
            )
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
