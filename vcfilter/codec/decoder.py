"""From packets to frames."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vcfilter.bitstream import (
    FrameHeader,
    SequenceHeader,
    VersionError,
    packet_crc,
    packet_size_max,
    read_packet,
    reference_check,
)
from vcfilter.codec.engine import load_model, parse_frame, restore_frame, spare_core
from vcfilter.errors import BitstreamError, ModelMismatchError
from vcfilter.frames import Frame, FrameType, Packet, VideoFormat
from vcfilter.options import DecoderOptions, Runtime

if TYPE_CHECKING:
    from vcfilter.models.hierarchical.video import Parsed, Past, Reference, VideoModel

REFERENCES_MAX = 16
"""Inter frames held as references at a time; the encoder's order needs 7 at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Coded:
    """A packet that is not decoded yet."""

    header: FrameHeader
    payload: bytes
    crc: int
    pts: int
    duration: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Decoded:
    """A reconstruction, for output and as reference."""

    reference: Reference
    coded: _Coded


class Decoder:
    """Decodes packets, given in display order, into frames in display order.

    A frame comes out as soon as what it needs is there: a keyframe at once, inter frames
    when the keyframe (or the last frame) that ends their segment has come. At most one
    segment of packets and a few references are held. Where the networks leave a core, a
    thread reads the symbols of the next inter frame while they restore one.

    Packets that are damaged, or whose references are missing or were other ones, are dropped
    and counted; decoding goes on with what can be decoded rightly. A frame that does come
    out is the one that was encoded.

    Args:
        extradata: the track's sequence header; None if unknown (keyframes hold it too).
        options: see DecoderOptions.
        runtime: where and how networks run.
        strict: raise BitstreamError instead of dropping.
        device: a PyTorch device name; "auto" takes CUDA where there is one.
        threads: threads of the networks; 0 leaves it to PyTorch.
        weights: path of a weights file; None takes the shipped model.
        model: a model that is already loaded, instead of device, threads and weights.

    Attributes:
        video_format: what the frames are; None before the first keyframe without extradata.
        dropped_damaged: packets dropped because they are damaged.
        dropped_missing_reference: packets dropped because a reference is missing.

    Raises:
        ModelMismatchError: extradata names another model than the loaded one.
        BitstreamError: extradata are of an unknown version, or damaged and strict is set.
    """

    def __init__(
        self,
        extradata: bytes | None = None,
        options: DecoderOptions | None = None,
        *,
        runtime: Runtime | None = None,
        strict: bool = False,
        device: str = "auto",
        threads: int = 0,
        weights: str | None = None,
        model: VideoModel | None = None,
    ) -> None:
        self.video_format: VideoFormat | None = None
        self.dropped_damaged = 0
        self.dropped_missing_reference = 0
        if options is not None:
            strict, weights = options.strict, options.model
        if runtime is not None:
            device, threads = runtime.device, runtime.threads
        self._strict = strict
        self._model = model if model is not None else load_model(weights, device, threads)
        self._output: list[Frame] = []
        spare = spare_core(self._model)
        self._parser = ThreadPoolExecutor(1, "vcfilter-parse") if spare else None
        self._start_segment(None)
        if extradata:
            self._read_extradata(extradata)

    def decode(self, packet: Packet | None) -> list[Frame]:
        """Take the next packet and return the frames that are now ready, in display order.

        Args:
            packet: None at the end of the stream: the last frames come, and the decoder is
                ready for another stream.

        Raises:
            BitstreamError: a keyframe of another size, depth or model than before, or of an
                unknown version; with strict, also whatever else would be dropped. Decoding
                may go on with the next packet, and frames that were ready come with it.
            ModelMismatchError: the first keyframe names another model than the loaded one.
        """
        if packet is None:
            self._end_segment(None)
        else:
            self._accept(packet)
        frames, self._output = self._output, []
        return frames

    def reset(self) -> None:
        """Forget all packets and references, as after a seek; the counters stay."""
        self._output = []
        self._start_segment(None)

    def _start_segment(self, key: _Decoded | None) -> None:
        self._left = key
        self._right: _Decoded | None = None
        self._length: int = 0  # of the segment, once known
        self._last: int = 0  # position of the newest packet
        self._next: int = 1  # position of the next frame to show
        self._waiting: dict[int, _Coded] = {}
        self._opened: dict[int, _Coded] = {}  # taken from there, their references not all decoded
        self._decoded: dict[int, _Decoded] = {}
        self._ahead: tuple[_Coded, Future[Parsed]] | None = None  # what is being read ahead

    def _read_extradata(self, extradata: bytes) -> None:
        try:
            self._use(SequenceHeader.read(extradata))
        except VersionError:
            raise
        except BitstreamError:
            if self._strict:
                raise  # otherwise the first keyframe tells

    def _use(self, sequence: SequenceHeader) -> None:
        """Take over a sequence header, if the model and the frames so far allow it."""
        model_id, fmt, known = sequence.model_id, sequence.video_format, self.video_format
        if model_id != self._model.model_id:
            text = (
                f"the stream needs the model {model_id.hex()}, "
                f"loaded is {self._model.model_id.hex()}: give the weights it was coded with"
            )
            raise ModelMismatchError(text) if known is None else BitstreamError(text)
        if known is not None and (known.width, known.height, known.bit_depth) != (
            fmt.width,
            fmt.height,
            fmt.bit_depth,
        ):
            raise BitstreamError(
                f"the stream changes from {known.width}x{known.height} at {known.bit_depth} bit "
                f"to {fmt.width}x{fmt.height} at {fmt.bit_depth} bit: decode its parts one by one"
            )
        self.video_format = fmt

    def _accept(self, packet: Packet) -> None:
        try:
            sequence, header, payload = read_packet(packet.data)
        except VersionError:
            self._end_segment(None)
            raise
        except BitstreamError as error:
            if packet.is_keyframe:
                self._end_segment(None)
            self._drop_damaged(error)
            return
        if sequence is not None:
            try:
                self._use(sequence)
            except (BitstreamError, ModelMismatchError):
                self._end_segment(None)
                raise
        if self.video_format is not None:
            limit = packet_size_max(self.video_format)
            if len(packet.data) > limit:
                self._drop_damaged(f"a packet has {len(packet.data)} bytes, {limit} are allowed")
                return
        coded = _Coded(
            header=header,
            payload=payload,
            crc=packet_crc(packet.data),
            pts=packet.pts,
            duration=packet.duration,
        )
        if header.kind is FrameType.KEY:
            self._accept_key(coded)
        else:
            self._accept_inter(coded)

    def _accept_key(self, coded: _Coded) -> None:
        try:
            reference = self._restore(coded, self._parse(coded, ()), ())
        except BitstreamError as error:
            self._end_segment(None)
            self._drop_damaged(error)
            return
        key = _Decoded(reference=reference, coded=coded)
        try:
            self._end_segment(key)
        finally:
            self._start_segment(key)
            self._show(key)

    def _accept_inter(self, coded: _Coded) -> None:
        header = coded.header
        if header.position <= self._last or self._length not in (0, header.segment_length):
            self._end_segment(None)  # of another segment, whose keyframe did not come
        if self._left is None:
            self._drop_missing("the keyframe before it is missing")
            return
        self._last, self._length = header.position, header.segment_length
        self._waiting[header.position] = coded
        self._advance(final=False)

    def _end_segment(self, right: _Decoded | None) -> None:
        """Decode what can be decoded, now that no packet of the segment will come."""
        self._right = right
        try:
            self._advance(final=True)
        finally:
            self._start_segment(None)

    def _advance(self, final: bool) -> None:
        """Show frames up to the first one that must wait for a packet."""
        while self._next <= self._last:
            position = self._next
            if not final and self._must_wait(position, set()):
                return
            decoded = self._obtain(position)
            self._next += 1
            if decoded is not None:
                self._show(decoded)
            self._release(final or self._last == self._length - 1)

    def _must_wait(self, position: int, seen: set[int]) -> bool:
        """Whether something that this frame needs, directly or not, may still come."""
        seen.add(position)
        coded = self._waiting.get(position)
        if coded is None:
            return False
        return any(
            needed > self._last or (needed not in seen and self._must_wait(needed, seen))
            for needed in coded.header.references
        )

    def _obtain(self, position: int) -> _Decoded | None:
        """The frame at this position, decoded now if need be; None if it cannot be had."""
        if position == 0:
            return self._left
        if position == self._length:
            return self._right
        if position in self._decoded:
            return self._decoded[position]
        # Taken out first: should frames refer to each other in a circle, it ends here.
        coded = self._waiting.pop(position, None)
        if coded is None:
            return None
        self._opened[position] = coded
        references = [self._obtain(needed) for needed in coded.header.references]
        del self._opened[position]
        present = [reference for reference in references if reference is not None]
        if len(present) < len(references):
            self._drop_missing("a reference is missing")
            return None
        check = reference_check(*(reference.coded.crc for reference in present))
        if check != coded.header.reference_check:
            self._drop_missing("its references are not the ones it was coded from")
            return None
        try:
            if any(r.coded.header.layer >= coded.header.layer for r in present):
                raise BitstreamError("an inter frame refers to one of its own layer or a higher")
            if len(self._decoded) >= REFERENCES_MAX:
                raise BitstreamError(f"a segment needs more than {REFERENCES_MAX} references")
            ahead, self._ahead = self._ahead, None
            if ahead is not None and ahead[0] is coded:
                parsed = ahead[1].result()
            else:
                parsed = self._parse(coded, [reference.reference for reference in present])
            self._look_ahead(position, parsed)
            reference = self._restore(coded, parsed, present)
        except BitstreamError as error:
            self._drop_damaged(error)
            return None
        self._decoded[position] = _Decoded(reference=reference, coded=coded)
        return self._decoded[position]

    def _parse(self, coded: _Coded, past: Sequence[Past]) -> Parsed:
        assert self.video_format is not None  # a keyframe's header came before
        return parse_frame(self._model, coded.header, coded.payload, past, self.video_format)

    def _restore(self, coded: _Coded, parsed: Parsed, references: Sequence[_Decoded]) -> Reference:
        assert self.video_format is not None  # a keyframe's header came before
        past = [reference.reference for reference in references]
        return restore_frame(self._model, coded.header, parsed, past, self.video_format)

    def _look_ahead(self, position: int, parsed: Parsed) -> None:
        """Start reading the symbols of the frame that will be restored after this one.

        What is read ahead is a guess: whether that frame may be decoded is checked when it is.
        """
        coded = self._following() if self._parser is not None else None
        if self._parser is None or coded is None:
            return
        past: list[Past] = []
        for needed in coded.header.references:
            decoded = self._decoded.get(needed)
            if needed == position:
                past.append(parsed)
            elif decoded is not None:
                past.append(decoded.reference)
            elif needed == 0 and self._left is not None:
                past.append(self._left.reference)
            elif needed == self._length and self._right is not None:
                past.append(self._right.reference)
            else:
                return
        self._ahead = coded, self._parser.submit(self._parse, coded, past)

    def _following(self) -> _Coded | None:
        """What will be restored next: the frame that waits for this one, or the next to be shown,
        or what either must be decoded from first."""
        if self._opened:
            coded: _Coded | None = next(reversed(self._opened.values()))
        else:
            waiting = (self._waiting.get(p) for p in range(self._next, self._last + 1))
            coded = next((found for found in waiting if found is not None), None)
        seen: set[int] = set()
        while coded is not None:
            deeper = [p for p in coded.header.references if p in self._waiting and p not in seen]
            if not deeper:
                break
            seen.add(deeper[0])
            coded = self._waiting[deeper[0]]
        return coded

    def _release(self, complete: bool) -> None:
        """Forget shown frames that no waiting packet refers to.

        Args:
            complete: no packet of the segment will come. Otherwise any frame may still be
                referred to, and only as many are kept as can be allowed.
        """
        shown = [position for position in self._decoded if position < self._next]
        if complete:
            needed = {p for c in self._waiting.values() for p in c.header.references}
            shown = [position for position in shown if position not in needed]
        else:
            shown = sorted(shown)[: max(len(self._decoded) - REFERENCES_MAX + 1, 0)]
        for position in shown:
            del self._decoded[position]

    def _show(self, decoded: _Decoded) -> None:
        assert self.video_format is not None  # a keyframe's header came before
        y, u, v = self._model.frame_planes(decoded.reference, self.video_format)
        coded = decoded.coded
        self._output.append(
            Frame(y=y, u=u, v=v, pts=coded.pts, duration=coded.duration, type=coded.header.kind)
        )

    def _drop_damaged(self, error: BitstreamError | str) -> None:
        self.dropped_damaged += 1
        if self._strict:
            raise error if isinstance(error, BitstreamError) else BitstreamError(error)

    def _drop_missing(self, reason: str) -> None:
        self.dropped_missing_reference += 1
        if self._strict:
            raise BitstreamError(f"an inter frame cannot be decoded: {reason}")
