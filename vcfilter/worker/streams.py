"""Streams of the codec worker: an encoder or a decoder each, with a thread for it."""

from __future__ import annotations

import struct
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from errno import EMFILE, ENFILE, ENOMEM, ENOSPC
from typing import TYPE_CHECKING

import numpy as np

from vcfilter.bitstream import SequenceHeader, StructureKind
from vcfilter.errors import BitstreamError, ConfigError, LimitError, ModelMismatchError
from vcfilter.frames import Frame, FrameType, Packet, VideoFormat
from vcfilter.options import LOOKS, EncoderOptions
from vcfilter.worker.protocol import (
    AHEAD_MAX,
    FORMAT_BYTES,
    FRAME_CORRUPT,
    FRAME_KEY,
    INBOX_BYTES_MAX,
    INBOX_MAX,
    Channel,
    ClientGone,
    Kind,
    Message,
    ProtocolError,
    SharedFrames,
    Status,
    read_format,
    write_format,
)

if TYPE_CHECKING:
    from vcfilter.codec import Decoder, Encoder


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamContext:
    """The part of a connection that its streams use.

    Args:
        channel: to the client.
        decoder: makes one from extradata and a look.
        encoder: makes one from a format and options.
        work: entered around work that the client may have to wait for.
    """

    channel: Channel
    decoder: Callable[[bytes, str], Decoder]
    encoder: Callable[[VideoFormat, EncoderOptions], Encoder]
    work: Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Waiting:
    """Something to code: a packet, a frame in a slot, or None, the end.

    Args:
        epoch: how often the stream had been flushed when it came.
        slot, pts, duration: of a frame.
        force_key: the frame has to become a keyframe.
    """

    epoch: int
    packet: Packet | None = None
    slot: int | None = None
    pts: int = 0
    duration: int = 0
    force_key: bool = False

    @property
    def size(self) -> int:
        """Bytes of memory that it takes."""
        return len(self.packet.data) if self.packet is not None else 0


class Stream(ABC):
    """One encoder or decoder and its thread.

    The connection's thread calls accept and close; all else happens in the stream's own.
    """

    def __init__(self, number: int, context: StreamContext) -> None:
        self.number = number
        self._channel = context.channel
        self._context, self._work = context, context.work
        self._changed = threading.Condition()
        self._inbox: deque[_Waiting] = deque()
        self._inbox_bytes = 0
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=f"stream {number}", daemon=True)

    def start(self) -> None:
        """Begin, by opening the codec."""
        self._thread.start()

    def close(self) -> None:
        """Accept no more messages, and end when the codec returns."""
        with self._changed:
            self._closed = True
            self._empty()

    @abstractmethod
    def accept(self, message: Message) -> None:
        """Queue the content of a message.

        Raises:
            ProtocolError, struct.error: it is not for this kind of stream, or malformed.
        """

    @abstractmethod
    def _open(self) -> None:
        """Make the codec and report that to the client."""

    @abstractmethod
    def _code(self, waiting: _Waiting) -> None:
        """Code one packet or frame, or what is left at the end, and answer."""

    @abstractmethod
    def _forget(self) -> None:
        """Release codec and memory now, not at the next garbage collection."""

    def _put(self, waiting: _Waiting) -> None:
        with self._changed:
            if self._closed:
                return
            if len(self._inbox) >= INBOX_MAX:
                raise ProtocolError(f"more than {INBOX_MAX} messages wait on stream {self.number}")
            if self._inbox_bytes + waiting.size > INBOX_BYTES_MAX:
                raise ProtocolError(
                    f"more than {INBOX_BYTES_MAX} bytes wait on stream {self.number}"
                )
            self._inbox.append(waiting)
            self._inbox_bytes += waiting.size
            self._changed.notify_all()

    def _empty(self) -> None:
        """Empty the inbox; the lock is held."""
        self._inbox.clear()
        self._inbox_bytes = 0
        self._changed.notify_all()

    def _run(self) -> None:
        try:
            with self._work():
                self._open()
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._closed or self._inbox)
                    if self._closed:
                        return
                    waiting = self._inbox.popleft()
                    self._inbox_bytes -= waiting.size
                self._code(waiting)
        except ClientGone:
            pass  # the thread that receives notices too
        except Exception as error:
            status, text = _failure(error)
            with suppress(ClientGone):
                self._channel.send(Kind.FAILED, self.number, struct.pack("<i", status) + text)
        finally:
            self.close()
            self._forget()

    def _done(self, epoch: int, lost: int, window: int, error: Exception | None) -> None:
        status, text = (Status.OK, b"") if error is None else _failure(error)
        head = struct.pack("<IIIi", epoch, lost, window, status)
        self._channel.send(Kind.DONE, self.number, head + text)


class DecoderStream(Stream):
    """Packets in, frames out."""

    def __init__(
        self, number: int, context: StreamContext, extradata: bytes, settings: bytes = b""
    ) -> None:
        super().__init__(number, context)
        self._extradata, self._settings = extradata, settings
        self._epoch = 0  # of the newest packet
        self._decoding = 0  # of the packet in the decoder
        self._decoder: Decoder | None = None
        self._frames: SharedFrames | None = None
        self._free: set[int] = set()
        self._format: VideoFormat | None = None  # the last one sent
        self._window = 2

    def accept(self, message: Message) -> None:
        if message.kind is Kind.SEND_PACKET:
            pts, duration, key = struct.unpack_from("<qqB", message.body)
            packet = Packet(data=message.body[17:], pts=pts, duration=duration, is_keyframe=key > 0)
            self._put(_Waiting(epoch=self._epoch, packet=packet))
        elif message.kind is Kind.DRAIN:
            self._put(_Waiting(epoch=self._epoch))
        elif message.kind is Kind.FLUSH:
            (epoch,) = struct.unpack("<I", message.body)
            with self._changed:
                self._epoch = epoch
                self._empty()
        elif message.kind is Kind.RELEASE:
            (slot,) = struct.unpack("<I", message.body)
            with self._changed:
                if self._closed:
                    return
                if self._frames is None or slot >= self._frames.count or slot in self._free:
                    raise ProtocolError(f"slot {slot} was released, which was not given out")
                self._free.add(slot)
                self._changed.notify_all()
        else:
            raise ProtocolError(f"{message.kind.name} was sent to a decoder")

    def _open(self) -> None:
        self._decoder = self._context.decoder(self._extradata, parse_look(self._settings))
        with suppress(BitstreamError):  # damaged or absent: the first keyframe has it
            structure = SequenceHeader.read(self._extradata).structure
            self._window = 1 if structure is StructureKind.LOW_DELAY else self._window
        self._send_format(self._decoder.video_format)
        self._channel.send(Kind.OPENED, self.number, struct.pack("<I", self._window))

    def _code(self, waiting: _Waiting) -> None:
        decoder = self._decoder
        assert decoder is not None
        if waiting.epoch != self._decoding:
            decoder.reset()
            self._decoding = waiting.epoch
        damaged, missing = decoder.dropped_damaged, decoder.dropped_missing_reference
        frames: list[Frame] = []
        error: Exception | None = None
        with self._work():
            try:
                frames = decoder.decode(waiting.packet)
            except (BitstreamError, ModelMismatchError) as failure:
                error = failure  # concerns this packet only; the decoder goes on
        refused = int(error is not None)
        damaged = decoder.dropped_damaged - damaged
        missing = decoder.dropped_missing_reference - missing
        for frame in frames:
            if frame.type is FrameType.KEY:  # frames before it belong to the GOP before
                self._send_format(decoder.video_format)
            if not self._show(frame, waiting.epoch):
                return
        # The packets of two segments: one is decoded while the other one is shown.
        if len(frames) > 1:
            self._window = min(max(self._window, 2 * len(frames)), AHEAD_MAX)
        if error is None and damaged + missing:
            error = _loss(damaged, missing)
        self._done(waiting.epoch, refused + damaged + missing, self._window, error)
        if waiting.packet is None:
            self._channel.send(Kind.DRAINED, self.number, struct.pack("<I", waiting.epoch))

    def _forget(self) -> None:
        self._decoder = self._frames = None

    def _send_format(self, found: VideoFormat | None) -> None:
        if found is None or found == self._format:
            return
        self._format = found
        self._channel.send(Kind.FORMAT, self.number, write_format(found))
        if self._frames is None:
            frames = SharedFrames(found, encoder=False)
            self._channel.send_memory(self.number, frames)
            with self._changed:
                self._frames, self._free = frames, set(range(frames.count))

    def _show(self, frame: Frame, epoch: int) -> bool:
        """Send a frame as soon as a slot is free; False after a flush or close."""
        assert self._frames is not None  # made before the first keyframe is shown
        with self._changed:
            self._changed.wait_for(lambda: self._free or self._closed or epoch != self._epoch)
            if self._closed or epoch != self._epoch:
                return False
            slot = min(self._free)  # the lowest: unused pages take no memory
            self._free.remove(slot)
        for target, plane in zip(self._frames.planes(slot), frame.planes, strict=True):
            np.copyto(target, plane)
        flags = FRAME_KEY * (frame.type is FrameType.KEY) | FRAME_CORRUPT * frame.corrupt
        body = struct.pack("<IIqqB", epoch, slot, frame.pts, frame.duration, flags)
        self._channel.send(Kind.FRAME, self.number, body)
        return True


class EncoderStream(Stream):
    """Frames in, packets out."""

    def __init__(self, number: int, context: StreamContext, request: bytes) -> None:
        super().__init__(number, context)
        self._request = request  # format and settings as they came
        self._depth = 8
        self._window = 0
        self._encoder: Encoder | None = None
        self._frames: SharedFrames | None = None

    def accept(self, message: Message) -> None:
        if message.kind is Kind.SEND_FRAME:
            slot, pts, duration, flags = struct.unpack("<IqqB", message.body)
            key = bool(flags & FRAME_KEY)
            self._put(_Waiting(epoch=0, slot=slot, pts=pts, duration=duration, force_key=key))
        elif message.kind is Kind.DRAIN:
            self._put(_Waiting(epoch=0))
        else:
            raise ProtocolError(f"{message.kind.name} was sent to an encoder")

    def _open(self) -> None:
        video_format = read_format(self._request[:FORMAT_BYTES])
        options = parse_settings(self._request[FORMAT_BYTES:])
        self._depth = video_format.bit_depth
        self._encoder = self._context.encoder(video_format, options)
        # Twice what the encoder holds: the next segment may come while one is coded.
        self._window = min(max(2 * self._encoder.delay, 1), AHEAD_MAX)
        self._frames = SharedFrames(video_format, encoder=True)
        self._channel.send_memory(self.number, self._frames)
        head = struct.pack("<I", self._window)
        self._channel.send(Kind.OPENED, self.number, head + self._encoder.extradata)

    def _code(self, waiting: _Waiting) -> None:
        assert self._encoder is not None
        frame = None if waiting.slot is None else self._take(waiting, waiting.slot)
        packets: list[Packet] = []
        error: Exception | None = None
        with self._work():
            try:
                packets = self._encoder.encode(frame, force_key=waiting.force_key)
                self._encoder.statistics.clear()  # a live stream has no end
            except ConfigError as failure:
                error = failure  # the frame is refused; the encoder goes on
        for packet in packets:
            head = struct.pack("<qqB", packet.pts, packet.duration, packet.is_keyframe)
            self._channel.send(Kind.PACKET, self.number, head + packet.data)
        self._done(0, int(error is not None), self._window, error)
        if frame is None:
            self._channel.send(Kind.DRAINED, self.number, struct.pack("<I", 0))

    def _forget(self) -> None:
        self._encoder = self._frames = None

    def _take(self, waiting: _Waiting, slot: int) -> Frame:
        """Copy a frame out of its slot: the encoder keeps it for a segment."""
        assert self._frames is not None
        if slot >= self._frames.count:
            raise ConfigError(f"slot {slot} is outside 0 to {self._frames.count - 1}")
        y, u, v = (plane.copy() for plane in self._frames.planes(slot))
        self._channel.send(Kind.RELEASED, self.number, struct.pack("<I", slot))
        if self._depth > 8:  # the upper bits come from the client unchecked
            y, u, v = (np.minimum(plane, (1 << self._depth) - 1) for plane in (y, u, v))
        return Frame(y=y, u=u, v=v, pts=waiting.pts, duration=waiting.duration)


def parse_settings(data: bytes) -> EncoderOptions:
    """Options of an encoder from "key=value:key=value"; of a key given twice the last holds.

    Raises:
        ConfigError: a key is unknown, or a value outside what is allowed.
    """
    options = EncoderOptions.from_mapping(_settings(data))
    if options.model is not None:  # it may be a path, and a client names no files
        raise ConfigError("the model is chosen by the worker's command (--model)")
    return options


def parse_look(data: bytes) -> str:
    """The look among a decoder's settings, likewise; it is their only key.

    Raises:
        ConfigError: a key is unknown. What the look may be, DecoderOptions checks.
    """
    settings = _settings(data)
    look = settings.pop("look", LOOKS[0])
    if settings:
        raise ConfigError(f"setting {next(iter(settings))!r} of a decoder is not 'look'")
    return look


def _settings(data: bytes) -> dict[str, str]:
    """Settings of "key=value:key=value".

    Raises:
        ConfigError: they are not that.
    """
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"settings are not UTF-8: {error}") from error
    settings: dict[str, str] = {}
    for setting in filter(None, text.split(":")):
        key, separator, value = setting.partition("=")
        if not separator:
            raise ConfigError(f"setting {setting!r} has no value: write {setting}=VALUE")
        settings[key] = value
    return settings


def _loss(damaged: int, missing: int) -> BitstreamError:
    """The error that reports packets that the decoder dropped."""
    reasons = [
        f"{count} {'packet is' if count == 1 else 'packets are'} {what}"
        for count, what in ((damaged, "damaged"), (missing, "without a reference"))
        if count
    ]
    return BitstreamError(f"{' and '.join(reasons)}: left out, decoding goes on")


def _failure(error: Exception) -> tuple[Status, bytes]:
    """The status and text that report an error to the client."""
    text = str(error) or type(error).__name__
    if isinstance(error, BitstreamError | LimitError | ModelMismatchError):
        status = Status.INVALID
    elif isinstance(error, ConfigError):
        status = Status.OPTION
    elif isinstance(error, MemoryError):
        status, text = Status.MEMORY, "the codec worker is out of memory"
    elif isinstance(error, OSError) and error.errno in (EMFILE, ENFILE, ENOMEM, ENOSPC):
        status, text = Status.MEMORY, f"the codec worker has no memory for frames: {text}"
    elif type(error).__name__ == "OutOfMemoryError":  # PyTorch's, which is not imported here
        status, text = Status.MEMORY, f"the codec worker's device is out of memory: {text}"
    else:
        status, text = Status.INTERNAL, f"{type(error).__name__}: {text}"
    return status, " ".join(text.split())[:400].encode()
