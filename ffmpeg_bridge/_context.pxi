# Input and output: callbacks, and what Muxer and Demuxer share.

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
        data = bytes(memoryview(data))
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
            return size - self.origin
        if whence == os.SEEK_SET:
            self.file.seek(int(offset) + self.origin, whence)  # Python's integers: no overflow
        else:
            self.file.seek(offset, whence)
        return self.file.tell() - self.origin
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
    cdef int64_t origin  # where in the file object the container begins
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
        self.origin = target.tell() if seekable else 0
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
        return f"<vcfilter._bridge.{type(self).__name__} {self.name!r} {state}>"


def url_of(name):
    """What libavformat calls a path: "file:" before all that is no protocol."""
    name = os.fsdecode(name)
    if "\0" in name:
        raise ValueError(f"path {name!r} has a null character")
    is_url = ("://" in name or name.startswith(PROTOCOLS)) and not os.path.exists(name)
    return name if is_url else f"file:{name}"


cdef bint is_path(target):
    return isinstance(target, (str, bytes, os.PathLike))
