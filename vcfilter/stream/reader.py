"""Reading a neural picture track: packets from a container, frames from packets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from vcfilter._bridge import BridgeError, BridgePacket, StreamInfo
from vcfilter.codec import Decoder
from vcfilter.errors import BitstreamError, MediaError
from vcfilter.frames import Frame, Packet, VideoFormat
from vcfilter.stream.media import Cut, Warn
from vcfilter.stream.raw import MediaDemuxer
from vcfilter.stream.source import Source, reason_of
from vcfilter.stream.track import is_neural


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderOptions:
    """How a neural stream is decoded.

    Args:
        strict: damage is an error, not a dropped frame.
        device: a PyTorch device name; "auto" takes CUDA where there is one.
        threads: threads of the networks; 0 leaves it to PyTorch.
        weights: path of a weights file; None takes the shipped model.
    """

    strict: bool = False
    device: str = "auto"
    threads: int = 0
    weights: str | None = None

    def decoder(self, extradata: bytes | None) -> Decoder:
        """A decoder for a track with these extradata."""
        return Decoder(
            extradata,
            strict=self.strict,
            device=self.device,
            threads=self.threads,
            weights=self.weights,
        )


class NeuralPictures:
    """The pictures of one neural video stream.

    Damaged packets, and those whose references are missing, are dropped; what was dropped is
    told in a warning at the end.

    Args:
        demuxer: closed with this object.
        info: the stream.
        options: see DecoderOptions.
        cut: the part wanted; its first frame is found from the keyframe before it.
        seekable: whether the demuxer can seek.
        warn: called with one sentence for each thing that is lost.
    """

    def __init__(
        self,
        demuxer: MediaDemuxer,
        info: StreamInfo,
        options: DecoderOptions,
        cut: Cut,
        *,
        seekable: bool,
        warn: Warn,
    ) -> None:
        self._demuxer = demuxer
        self._info = info
        self._cut = cut
        self._seekable = seekable
        self._warn = warn
        self.decoder = options.decoder(info.extradata)
        self.packets = 0

    @property
    def time_base(self) -> Fraction:
        return self._info.time_base

    @property
    def frame_rate(self) -> Fraction | None:
        return self._info.frame_rate

    @property
    def video_format(self) -> VideoFormat | None:
        return self.decoder.video_format

    def frames(self) -> Iterator[Frame]:
        """The frames in display order.

        Raises:
            BitstreamError: damage, where options are strict; a change of size.
            MediaError: nothing can be decoded.
        """
        count = 0
        for frame in self._decoded():
            time = frame.pts * self.time_base
            if self._cut.before(time):
                continue
            if self._cut.after(time):
                break
            count += 1
            yield frame
        damaged, missing = self.decoder.dropped_damaged, self.decoder.dropped_missing_reference
        if damaged:
            self._warn(f"{damaged} damaged packets were dropped")
        if missing:
            self._warn(f"{missing} frames were dropped because a reference is missing")
        if not count and not self._cut.start:
            raise MediaError("the video stream has no frame that can be decoded")

    def close(self) -> None:
        self._demuxer.close()

    def _decoded(self) -> Iterator[Frame]:
        if self._cut.start is not None and self._seekable:
            try:
                self._demuxer.seek(self._info.index, int(self._cut.start / self.time_base))
            except BridgeError:
                self._warn("the source cannot seek: it is read from its start")
        for packet in video_packets(self._demuxer, self._info.index, self._warn):
            self.packets += 1
            yield from self.decoder.decode(neural_packet(packet))
        yield from self.decoder.decode(None)


def video_packets(demuxer: MediaDemuxer, index: int, warn: Warn) -> Iterator[BridgePacket]:
    """One stream's packets; a file that breaks off ends early, with a warning."""
    count = 0
    while True:
        try:
            packet = demuxer.read_packet()
        except BridgeError as error:
            if not count:
                raise MediaError(f"{demuxer.name} cannot be read: {reason_of(error)}") from error
            warn(f"the source breaks off after {count} packets: {reason_of(error)}")
            return
        if packet is None:
            return
        if packet.stream_index == index:
            count += 1
            yield packet


def neural_packet(packet: BridgePacket) -> Packet:
    """The codec's view of a container's packet."""
    ticks = packet.pts if packet.pts is not None else packet.dts
    return Packet(
        data=packet.data,
        pts=ticks if ticks is not None else 0,
        duration=packet.duration,
        is_keyframe=packet.is_keyframe,
    )


def neural_stream(demuxer: MediaDemuxer, name: str) -> StreamInfo:
    """The first neural video stream.

    Raises:
        MediaError: there is none.
    """
    for info in demuxer.streams:
        if is_neural(info):
            return info
    kinds = ", ".join(info.codec or info.kind for info in demuxer.streams) or "nothing"
    raise MediaError(f"{name} has no neural video stream (it has {kinds})")


def neural_frames(path: str, options: DecoderOptions | None = None) -> Iterator[Frame]:
    """Decoded frames of a neural file, pts in ticks of its time base.

    Raises:
        MediaError: the file cannot be read or has no neural video stream.
        BitstreamError: damage, where options are strict.
    """
    source = Source(path, readers=1)
    with source.demuxer() as demuxer:
        info = neural_stream(demuxer, source.title)
        pictures = NeuralPictures(
            demuxer,
            info,
            options or DecoderOptions(),
            Cut(),
            seekable=not source.is_pipe,
            warn=lambda text: None,
        )
        yield from pictures.frames()


__all__ = [
    "BitstreamError",
    "DecoderOptions",
    "NeuralPictures",
    "neural_frames",
    "neural_packet",
    "neural_stream",
    "video_packets",
]
