"""From packets to frames: waits, looks up references and hands out frames in display order."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from vcfilter.bitstream import (
    FrameHeader,
    PacketInfo,
    SequenceHeader,
    VersionError,
    packet_size_max,
    read_packet,
)
from vcfilter.codec.references import Slots
from vcfilter.codec.runtime import find_model, load_model, spare_core, threads_of
from vcfilter.errors import BitstreamError, ModelMismatchError
from vcfilter.frames import Frame, FrameStep, Packet, VideoFormat
from vcfilter.models.base import Context, Model, Reference, Symbols
from vcfilter.options import DecoderOptions, Runtime


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Coded:
    """A packet that is not decoded yet."""

    info: PacketInfo
    pts: int
    duration: int
    shown: bool

    @property
    def header(self) -> FrameHeader:
        return self.info.header

    @property
    def step(self) -> FrameStep:
        return self.info.header.step

    @property
    def sections(self) -> tuple[bytes, ...]:
        return tuple(section.data for section in self.info.sections)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Decoded:
    """A reconstruction, for output and as reference."""

    reference: Reference
    coded: _Coded


class _Gop:
    """What is held of one GOP.

    Args:
        key: its keyframe, decoded.
    """

    def __init__(self, key: _Decoded) -> None:
        self.key = key
        self.identity = key.coded.info.identity
        self.slots: Slots[_Decoded] = Slots(key)
        self.next_key: _Decoded | None = None
        self.newest = 0  # number of the newest packet
        self.next = 1  # number of the next frame to show
        self.waiting: dict[int, _Coded] = {}
        self.opened: dict[int, _Coded] = {}  # taken from there, their references not all decoded
        self.hidden: dict[int, _Decoded] = {}  # decoded, and not shown yet


class Decoder:
    """Decodes packets, given in display order, into frames in display order.

    A frame comes out as soon as what it needs is there: a keyframe at once, an inter frame when
    the newest of its references has come. At most the packets that the sequence header promises
    and a few references are held. Where the networks leave a core, a thread reads the symbols of
    the next inter frame while they make the pixels of one.

    Packets that are damaged, or whose references are missing or were other ones, are dropped
    and counted; decoding goes on with what can be decoded rightly. A frame that does come
    out is the one that was encoded.

    Args:
        extradata: the track's sequence header; None if unknown (keyframes hold it too).
        options: see DecoderOptions.
        runtime: where and how networks run.
        model: a model that is already loaded, instead of the one that the stream names.

    Attributes:
        video_format: what the frames are; None before the first keyframe without extradata.
        dropped_damaged: packets dropped because they are damaged, or of another GOP.
        dropped_missing_reference: packets dropped because a reference is missing.
        lost_levels: frames decoded without quality levels that are damaged.

    Raises:
        ModelMismatchError: extradata name a model that cannot be found, or another than `model`.
        BitstreamError: extradata are of an unknown version, or damaged and strict is set.
    """

    def __init__(
        self,
        extradata: bytes | None = None,
        options: DecoderOptions | None = None,
        *,
        runtime: Runtime | None = None,
        model: Model | None = None,
    ) -> None:
        self.video_format: VideoFormat | None = None
        self.dropped_damaged = 0
        self.dropped_missing_reference = 0
        self.lost_levels = 0
        self._options = options if options is not None else DecoderOptions()
        self._runtime = runtime if runtime is not None else Runtime()
        if model is None and self._options.model is not None:
            model = load_model(self._options.model, self._runtime)
        self._model = model
        self._sequence: SequenceHeader | None = None
        self._output: list[Frame] = []
        self._parser: ThreadPoolExecutor | None = None
        self._gop: _Gop | None = None
        self._ahead: tuple[_Coded, Future[Symbols]] | None = None  # what is being read ahead
        if extradata:
            try:
                self._use(SequenceHeader.read(extradata))
            except VersionError:
                raise
            except BitstreamError:
                if self._options.strict:
                    raise  # otherwise the first keyframe tells

    @property
    def model(self) -> Model | None:
        """The model in use; None before the stream names one."""
        return self._model

    def decode(self, packet: Packet | None, *, show: bool = True) -> list[Frame]:
        """Take the next packet and return the frames that are now ready, in display order.

        Args:
            packet: None at the end of the stream: the last frames come, and the decoder is
                ready for another stream.
            show: False: its frame will not come out, and is decoded only if others need it.

        Raises:
            BitstreamError: a keyframe of another size, depth or model than before, or of an
                unknown version; with strict, also whatever else would be dropped. Decoding
                may go on with the next packet, and frames that were ready come with it.
            ModelMismatchError: the first keyframe names a model that cannot be found.
        """
        with threads_of(self._runtime):
            if packet is None:
                self._end_gop(None)
            else:
                self._accept(packet, show)
        frames, self._output = self._output, []
        return frames

    def reset(self) -> None:
        """Forget all packets and references, as after a seek; the counters stay."""
        self._output = []
        self._gop = self._ahead = None

    def _use(self, sequence: SequenceHeader) -> None:
        """Take over a sequence header, if the model and the frames so far allow it."""
        fmt, known = sequence.video_format, self.video_format
        if self._model is None:
            self._model = find_model(sequence.model_id, self._runtime)
        if sequence.model_id != self._model.info.id:
            text = (
                f"the stream needs the model {sequence.model_id.hex()}, "
                f"in use is {self._model.info.id.hex()}: give the model it was coded with"
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
        self._sequence = sequence
        if self._parser is None and spare_core(self._model, self._runtime):
            self._parser = ThreadPoolExecutor(1, "vcfilter-parse")

    def _accept(self, packet: Packet, show: bool) -> None:
        gop = self._gop
        try:
            info = read_packet(
                packet.data,
                key_identity=gop.identity if gop else None,
                after=gop.newest if gop else 0,
            )
            if info.sequence is None and self.video_format is not None:
                self._check_bounds(info)
        except VersionError:
            self._end_gop(None)
            raise
        except BitstreamError as error:
            if packet.is_keyframe:
                self._end_gop(None)
            self._drop_damaged(error)
            return
        coded = _Coded(info=info, pts=packet.pts, duration=packet.duration, shown=show)
        if info.sequence is not None:
            self._accept_key(info.sequence, coded)
        elif gop is None:
            self._drop_missing("the keyframe before it is missing")
        else:
            gop.newest = coded.step.number
            gop.waiting[gop.newest] = coded
            self._advance(gop, final=False)

    def _check_bounds(self, info: PacketInfo) -> None:
        """Raise BitstreamError unless an inter packet keeps what the sequence header promises."""
        sequence, step = self._sequence, info.header.step
        assert sequence is not None
        reach = max(abs(distance) for distance in step.references)
        if reach > sequence.reach:
            raise BitstreamError(f"a reference lies {reach} frames away, {sequence.reach} may be")
        if max(step.references) > sequence.reorder:
            raise BitstreamError(
                f"a reference comes {max(step.references)} frames later, {sequence.reorder} may be"
            )
        if step.slot is not None and step.slot >= sequence.slots:
            raise BitstreamError(f"slot {step.slot} is named, there are {sequence.slots}")
        limit = packet_size_max(sequence.video_format)
        if info.size > limit:
            raise BitstreamError(f"a packet has {info.size} bytes, {limit} are allowed")

    def _accept_key(self, sequence: SequenceHeader, coded: _Coded) -> None:
        try:
            self._use(sequence)
        except (BitstreamError, ModelMismatchError):
            self._end_gop(None)
            raise
        try:
            limit = packet_size_max(sequence.video_format)
            if coded.info.size > limit:
                raise BitstreamError(f"a packet has {coded.info.size} bytes, {limit} are allowed")
            reference = self._reconstruct(coded, self._parse(coded, ()), ())
        except BitstreamError as error:
            self._end_gop(None)
            self._drop_damaged(error)
            return
        key = _Decoded(reference=reference, coded=coded)
        try:
            self._end_gop(key)
        finally:
            self._gop = _Gop(key)
            self._show(key)

    def _end_gop(self, next_key: _Decoded | None) -> None:
        """Decode what can be decoded, now that no packet of the GOP will come."""
        gop, self._gop = self._gop, None
        if gop is None:
            return
        gop.next_key = next_key
        try:
            self._advance(gop, final=True)
        finally:
            self._ahead = None

    def _advance(self, gop: _Gop, final: bool) -> None:
        """Show frames up to the first one that must wait for a packet."""
        assert self._sequence is not None
        while gop.next <= gop.newest:
            number = gop.next
            overdue = gop.newest - number > self._sequence.reorder
            if not (final or overdue) and self._must_wait(gop, number, set()):
                return
            gop.next += 1
            coded = gop.waiting.get(number)
            if coded is not None and not coded.shown:
                self._pass_by(gop, coded)
                continue
            decoded = gop.hidden.pop(number, None) or self._obtain(gop, number)
            if decoded is not None and decoded.coded.shown:
                self._show(decoded)

    def _pass_by(self, gop: _Gop, coded: _Coded) -> None:
        """Leave a frame that is not shown undecoded for as long as no other may need it."""
        if coded.step.slot is None:
            del gop.waiting[coded.step.number]
        elif coded.step.layer == 1:  # later ones of layer 1 refer to it, and it to earlier ones
            self._obtain(gop, coded.step.number)
            for number in [n for n in gop.waiting if n < coded.step.number]:
                del gop.waiting[number]

    def _must_wait(self, gop: _Gop, number: int, seen: set[int]) -> bool:
        """Whether something that this frame needs, directly or not, may still come."""
        seen.add(number)
        coded = gop.waiting.get(number)
        if coded is None:
            return False
        return any(
            needed > gop.newest or (needed not in seen and self._must_wait(gop, needed, seen))
            for needed in coded.step.reference_numbers
        )

    def _held(self, gop: _Gop, coded: _Coded, number: int) -> _Decoded | None:
        """A reference of a frame, if it is decoded and the right one."""
        check, numbers = coded.header.next_key, coded.step.reference_numbers
        if check is not None and number == max(numbers):
            key = gop.next_key
            return key if key and key.coded.info.identity & 0xFFFF == check else None
        return gop.slots.get(number)

    def _obtain(self, gop: _Gop, number: int) -> _Decoded | None:
        """The frame of this number, decoded now; None if it cannot be had."""
        # Taken out first: should frames refer to each other in a circle, it ends here.
        coded = gop.waiting.pop(number, None)
        if coded is None:
            return None
        gop.opened[number] = coded
        references = []
        for needed in coded.step.reference_numbers:
            found = self._held(gop, coded, needed)
            if found is None and self._obtain(gop, needed) is not None:
                found = self._held(gop, coded, needed)
            references.append(found)
        del gop.opened[number]
        present = [reference for reference in references if reference is not None]
        if len(present) < len(references):
            self._drop_missing("a reference is missing or not the one it was coded from")
            return None
        try:
            ahead, self._ahead = self._ahead, None
            if ahead is not None and ahead[0] is coded:
                symbols = ahead[1].result()
            else:
                symbols = self._parse(coded, [r.reference.context for r in present])
            self._look_ahead(gop, number, symbols)
            reference = self._reconstruct(coded, symbols, [r.reference for r in present])
        except BitstreamError as error:
            self._drop_damaged(error)
            return None
        decoded = _Decoded(reference=reference, coded=coded)
        gop.slots.store(coded.step, decoded)
        if number >= gop.next:
            gop.hidden[number] = decoded
        return decoded

    def _parse(self, coded: _Coded, contexts: Sequence[Context]) -> Symbols:
        """The symbols of a packet; safe in another thread.

        Raises:
            BitstreamError: they are invalid. The check was right, so they were made that way.
        """
        assert self._model is not None and self.video_format is not None  # a keyframe came
        header, size = coded.header, coded.info.size
        try:
            return self._model.parse(
                header.step, header.mode, coded.sections, contexts, self.video_format
            )
        except BitstreamError:
            raise
        except (ArithmeticError, AssertionError, LookupError, ValueError) as error:
            raise BitstreamError(f"a packet of {size} bytes is invalid: {error}") from error
        except BaseException as error:
            # pyo3's PanicException is a BaseException that cannot be imported.
            if type(error).__name__ != "PanicException":
                raise
            raise BitstreamError(f"a packet of {size} bytes is invalid: {error}") from error

    def _reconstruct(
        self, coded: _Coded, symbols: Symbols, references: Sequence[Reference]
    ) -> Reference:
        assert self._model is not None and self.video_format is not None  # a keyframe came
        header = coded.header
        return self._model.reconstruct(
            header.step, header.mode, symbols, references, self.video_format
        )

    def _look_ahead(self, gop: _Gop, number: int, symbols: Symbols) -> None:
        """Start reading the symbols of the frame that will be decoded after this one.

        What is read ahead is a guess: whether that frame may be decoded is checked when it is.

        Args:
            number: of the frame whose pixels are being made. symbols: its.
        """
        coded = self._following(gop) if self._parser is not None else None
        if self._parser is None or coded is None:
            return
        contexts: list[Context] = []
        for needed in coded.step.reference_numbers:
            held = self._held(gop, coded, needed)
            if needed == number:
                contexts.append(symbols.context)
            elif held is not None:
                contexts.append(held.reference.context)
            else:
                return
        self._ahead = coded, self._parser.submit(self._parse_ahead, coded, contexts)

    def _parse_ahead(self, coded: _Coded, contexts: Sequence[Context]) -> Symbols:
        with threads_of(self._runtime):
            return self._parse(coded, contexts)

    def _following(self, gop: _Gop) -> _Coded | None:
        """What will be decoded next: the frame that waits for this one, or the next to be shown,
        or what either must be decoded from first."""
        if gop.opened:
            coded: _Coded | None = next(reversed(gop.opened.values()))
        else:
            waiting = (gop.waiting.get(n) for n in range(gop.next, gop.newest + 1))
            coded = next((found for found in waiting if found is not None), None)
        seen: set[int] = set()
        while coded is not None:
            numbers = coded.step.reference_numbers
            deeper = [n for n in numbers if n in gop.waiting and n not in seen]
            if not deeper:
                break
            seen.add(deeper[0])
            coded = gop.waiting[deeper[0]]
        return coded

    def _show(self, decoded: _Decoded) -> None:
        if not decoded.coded.shown:
            return
        assert self._model is not None and self.video_format is not None  # a keyframe came
        y, u, v = self._model.planes(decoded.reference, self.video_format)
        coded = decoded.coded
        self.lost_levels += coded.info.lost_levels
        self._output.append(
            Frame(y=y, u=u, v=v, pts=coded.pts, duration=coded.duration, type=coded.step.type)
        )

    def _drop_damaged(self, error: BitstreamError) -> None:
        self.dropped_damaged += 1
        if self._options.strict:
            raise error

    def _drop_missing(self, reason: str) -> None:
        self.dropped_missing_reference += 1
        if self._options.strict:
            raise BitstreamError(f"an inter frame cannot be decoded: {reason}")
