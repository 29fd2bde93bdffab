"""From packets to frames in display order: reordering, references, output."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import TypeAlias
from weakref import WeakSet

from vcfilter.bitstream import (
    VERSION,
    PacketInfo,
    SequenceHeader,
    VersionError,
    level_sizes,
    packet_size_max,
    read_packet,
)
from vcfilter.codec.budget import Budget
from vcfilter.codec.gop import Coded, Entry, Gop
from vcfilter.codec.runtime import find_finish, find_model, load_model, reads_ahead, threads_of
from vcfilter.errors import BitstreamError, ConfigError, LimitError, ModelMismatchError
from vcfilter.frames import LEVELS_MAX, SLOTS, CodedMotion, Frame, Packet, VideoFormat
from vcfilter.models.base import Context, Finish, Model, Reference, Symbols
from vcfilter.options import LOOKS, DecoderOptions, Runtime, check_type

_HELD_MAX = 3 * SLOTS
"""Most decoded frames that are held: those in slots, those that wait for output, and references of
frames that are not decoded yet. Streams of this encoder need 16 at most."""
_SKIPPED_MAX = 64
"""Most hidden frames in a row before those in slots are decoded."""
_AHEAD = 6
"""Most frames whose symbols are read ahead, in `_PARSERS` threads: a hierarchy has few frames that
do not need each other, and symbols of a frame take as much memory as its planes."""
_PARSERS = 3

Parsing: TypeAlias = "Future[tuple[Symbols, float]]"
"""Gives symbols, and the CPU seconds that they took."""


class Decoder:
    """Decodes packets, given in display order, into frames in display order.

    A frame comes out as soon as what it needs is there: a keyframe at once, an inter frame when
    the newest of its references has come. At most the packets that the sequence header states
    and 24 decoded frames are held. On a GPU threads parse the next inter frames while one is
    reconstructed.

    Packets that are damaged, or whose references are missing or were other ones, are dropped
    and counted; decoding goes on with the frames that do not depend on them. Every frame
    that comes out is the one that was encoded.

    Args:
        extradata: the track's sequence header; None if unknown (keyframes hold it too).
        options: see DecoderOptions.
        runtime: where and how networks run.
        model: a model that is already loaded, instead of the one that the stream names.
        motion: frames bring the motion that they were coded with.

    Attributes:
        video_format: what the frames are; None before the first keyframe without extradata.
        dropped_damaged: packets dropped because they are damaged, or of another GOP.
        dropped_missing_reference: packets dropped because a reference is missing.
        lost_levels: frames decoded without quality levels that are damaged.

    Raises:
        LimitError: frames of the size in extradata are larger, or take more memory, than
            options.limits allow.
        ModelMismatchError: extradata name a model that cannot be found, or another than `model`,
            or one that has no finish for the look.
        BitstreamError: extradata are of an unknown version, or damaged and strict is set.
        ConfigError: options or runtime are of another type.
    """

    def __init__(
        self,
        extradata: bytes | None = None,
        options: DecoderOptions | None = None,
        *,
        runtime: Runtime | None = None,
        model: Model | None = None,
        motion: bool = False,
    ) -> None:
        self.video_format: VideoFormat | None = None
        self.dropped_damaged = 0
        self.dropped_missing_reference = 0
        self.lost_levels = 0
        self._options = options if options is not None else DecoderOptions()
        self._runtime = runtime if runtime is not None else Runtime()
        check_type("options", self._options, DecoderOptions, "DecoderOptions")
        check_type("runtime", self._runtime, Runtime, "a Runtime")
        self._levels = self._options.levels
        self._motion = motion
        self._budget = Budget(self._options.limits, _HELD_MAX)
        sequence = self._read_extradata(extradata) if extradata else None
        if sequence is not None:
            self._budget.check_size(sequence.video_format)
        if model is None and self._options.model is not None:
            model = load_model(self._options.model, self._runtime)
        self._model = model
        self._finish: Finish | None = None  # of the look; known with the model
        self._sequence: SequenceHeader | None = None
        self._work: deque[Iterator[Frame]] = deque()  # packets that are not decoded to the end
        self._ready: deque[Frame] = deque()  # what `decode` could not return for an error
        self._parser: ThreadPoolExecutor | None = None
        self._gop: Gop | None = None
        self._ahead: dict[Entry, Parsing] = {}  # what is being read ahead, in coding order
        self._decoded_frames: WeakSet[Entry] = WeakSet()  # decoded, and held somewhere
        if sequence is not None:
            self._use(sequence)

    @property
    def model(self) -> Model | None:
        """The model in use; None before the stream names one."""
        return self._model

    @property
    def delay(self) -> int | None:
        """Most packets that are held before a frame comes; None before a header tells it."""
        return None if self._sequence is None else self._sequence.reorder

    @property
    def levels(self) -> int | None:
        """The operating point, see DecoderOptions; it may be changed between any two packets."""
        return self._levels

    @levels.setter
    def levels(self, levels: int | None) -> None:
        self._levels = replace(self._options, levels=levels).levels

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
            LimitError: one of options.limits is exceeded.
            ConfigError: it is no Packet.
        """
        frames: list[Frame] = []
        try:
            frames.extend(self.frames(packet, show=show))
        except BaseException:
            self._ready.extend(frames)
            raise
        return frames

    def frames(self, packet: Packet | None, *, show: bool = True) -> Iterator[Frame]:
        """Take the next packet and decode the frames that are now ready one by one.

        As `decode`, but each frame is decoded when it is asked for, so that no more than one is
        held beside the references. What an iterator was not asked for comes with that of the next
        packet, before its own frames.

        Raises:
            ConfigError: it is no Packet. When a frame is asked for, also what `decode` raises.
        """
        if packet is not None and not isinstance(packet, Packet):
            raise ConfigError(f"a {type(packet).__name__} is no Packet")
        if packet is not None and not isinstance(packet.data, bytes | bytearray):
            raise ConfigError(f"a packet's data are {type(packet.data).__name__}, not bytes")
        self._work.append(self._end_gop(None) if packet is None else self._accept(packet, show))
        return self._decoded()

    def _decoded(self) -> Iterator[Frame]:
        """The frames of all packets that are not decoded to the end."""
        while self._ready:
            yield self._ready.popleft()
        while self._work:
            work, frame = self._work[0], None
            try:
                # Left before a frame is returned: the caller's time does not count.
                with threads_of(self._runtime), self._budget.working():
                    frame = next(work, None)
            finally:
                if frame is None:
                    self._work.popleft()
            if frame is not None:
                yield frame

    def reset(self) -> None:
        """Forget all packets and references, as after a seek; the counters stay."""
        while self._work:
            self._work.pop().close()  # type: ignore[attr-defined]  # a generator
        self._ready.clear()
        self._gop = None
        self._drop_ahead()

    def _read_extradata(self, extradata: bytes) -> SequenceHeader | None:
        """Their sequence header; None: damaged, the first keyframe's is used."""
        try:
            return SequenceHeader.read(extradata)
        except VersionError:
            raise
        except BitstreamError:
            if self._options.strict:
                raise
            return None

    def _use(self, sequence: SequenceHeader) -> None:
        """Take over a sequence header, if the model and the frames so far allow it."""
        fmt, known = sequence.video_format, self.video_format
        self._budget.check_size(fmt)
        if self._model is None:
            self._model = find_model(sequence.model_id, self._runtime)
        info = self._model.info
        needed, used = (sequence.model_id, sequence.numerics), (info.id, info.numerics)
        if needed != used:
            text = (
                f"the stream needs the model {needed[0].hex()} with arithmetic {needed[1]}, "
                f"in use is {used[0].hex()} with {used[1]}: give the model it was coded with"
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
        if self._options.look != LOOKS[0] and self._finish is None:
            self._finish = find_finish(info.id, self._runtime)
        self._budget.check_memory(fmt, self._model)
        self.video_format = fmt
        self._sequence = sequence
        if self._parser is None and reads_ahead(self._model):
            self._parser = ThreadPoolExecutor(_PARSERS, "vcfilter-parse")

    def _accept(self, packet: Packet, show: bool) -> Iterator[Frame]:
        gop = self._gop
        try:
            info = read_packet(
                packet.data,
                key_identity=gop.identity if gop else None,
                after=gop.newest if gop else 0,
            )
            if info.sequence is None and self._sequence is not None:
                info = _within_bounds(info, self._sequence)
        except BitstreamError as error:
            if packet.is_keyframe:
                yield from self._end_gop(None)
            # A later version is recognised by one byte only, which in this stream is damage.
            later = isinstance(error, VersionError) and error.version > VERSION
            if isinstance(error, VersionError) and not (later and self._sequence is not None):
                raise
            self._drop_damaged(error)
            return
        info = _at_point(info, self._levels)
        try:
            self._check_levels(info)
        except BitstreamError:
            if packet.is_keyframe:
                yield from self._end_gop(None)
            raise
        coded = Coded(info=info, pts=packet.pts, duration=packet.duration, shown=show)
        if info.sequence is not None:
            yield from self._accept_key(info.sequence, coded)
        elif gop is None:
            self._drop_missing("the keyframe before it is missing")
        else:
            gop.newest = coded.step.number
            gop.waiting[gop.newest] = coded
            yield from self._advance(gop, final=False)

    def _accept_key(self, sequence: SequenceHeader, coded: Coded) -> Iterator[Frame]:
        try:
            self._use(sequence)
        except (BitstreamError, LimitError, ModelMismatchError):
            yield from self._end_gop(None)
            raise
        try:
            coded.info = _within_bounds(coded.info, sequence)
            self._check_levels(coded.info)
            self._budget.check_seconds()
            reference = self._reconstruct(coded, self._parse(coded, ()), ())
        except BitstreamError as error:
            yield from self._end_gop(None)
            self._drop_damaged(error)
            return
        key = Entry(coded=coded, reference=reference)
        self._decoded_frames.add(key)
        try:
            yield from self._end_gop(key)
        except BitstreamError:
            yield from self._show(key)
            raise
        finally:
            self._gop = Gop(key)
        yield from self._show(key)

    def _end_gop(self, next_key: Entry | None) -> Iterator[Frame]:
        """Decode what can be decoded, now that no packet of the GOP will come."""
        gop, self._gop = self._gop, None
        if gop is None:
            return
        gop.next_key = next_key
        try:
            yield from self._advance(gop, final=True)
        finally:
            self._drop_ahead()

    def _advance(self, gop: Gop, final: bool) -> Iterator[Frame]:
        """Show frames up to the first one that must wait for a packet."""
        assert self._sequence is not None
        while gop.next <= gop.newest:
            number = gop.next
            overdue = gop.newest - number > self._sequence.reorder
            if not (final or overdue) and self._must_wait(gop, number):
                return
            gop.next += 1
            self._place(gop, number)
            if number not in gop.placed:
                continue
            entry = gop.placed.pop(number)
            if entry is None:
                self._drop_missing()
            elif entry.coded.shown:
                self._decode(gop, entry, final)
                yield from self._show(entry)
            else:
                self._skip(gop)

    def _skip(self, gop: Gop) -> None:
        """A frame is not shown: it is decoded when another needs it, but the number of packets
        that wait for that is bounded."""
        gop.skipped += 1
        if gop.skipped >= _SKIPPED_MAX:
            gop.skipped = 0
            for entry in gop.slots.frames():
                self._decode(gop, entry, False)

    def _must_wait(self, gop: Gop, number: int) -> bool:
        """Whether a direct or indirect reference of this frame may still come."""
        seen, stack = {number}, [number]
        while stack:
            coded = gop.waiting.get(stack.pop())
            for needed in coded.step.reference_numbers if coded is not None else ():
                if needed > gop.newest:
                    return True
                if needed not in seen:
                    seen.add(needed)
                    stack.append(needed)
        return False

    def _held(self, gop: Gop, coded: Coded, number: int) -> Entry | None:
        """A reference of a frame, if it is there and the right one."""
        check, numbers = coded.header.next_key, coded.step.reference_numbers
        if check is not None and number == max(numbers):
            key = gop.next_key
            return key if key and key.coded.info.identity & 0xFFFF == check else None
        return gop.slots.get(number)

    def _place(self, gop: Gop, number: int) -> None:
        """Put a frame that waits in its place in coding order: behind all that it refers to."""
        # Removed first: references in a circle end here.
        coded = gop.waiting.pop(number, None)
        if coded is None:
            return
        references = []
        for needed in coded.step.reference_numbers:
            found = self._held(gop, coded, needed)
            if found is None and needed in gop.waiting:
                self._place(gop, needed)
                found = self._held(gop, coded, needed)
            if found is not None:
                references.append(found)
        if len(references) < len(coded.step.references):
            gop.placed[number] = None
            return
        gop.places += 1
        entry = Entry(
            coded=coded,
            place=gop.places,
            references=tuple(references),
            reference_pts=tuple(each.coded.pts for each in references),
        )
        gop.slots.store(coded.step, entry)
        gop.placed[number] = entry

    def _decode(self, gop: Gop, entry: Entry, final: bool) -> None:
        """Decode a frame and what it needs, as far as it is not decoded yet.

        Args:
            final: no packet of the GOP will come.
        """
        needed = deque(entry.needed() if entry.open else ())
        while needed:  # none is held for longer than others need it
            each = needed.popleft()
            try:
                self._reference(gop, each, needed, final)
            finally:
                each.failed = each.reference is None
                each.references = ()

    def _reference(self, gop: Gop, entry: Entry, following: Iterable[Entry], final: bool) -> None:
        """Decode one frame whose references were tried before.

        Args:
            following: what is decoded after it, for the same frame to show.
        """
        ahead = self._ahead.pop(entry, None)
        references = [e.reference for e in entry.references if e.reference is not None]
        if len(references) < len(entry.references):
            self._drop_missing()
            return
        self._budget.check_seconds()
        try:
            if len(self._decoded_frames) >= _HELD_MAX:
                raise BitstreamError(f"more than {_HELD_MAX} decoded frames would have to be held")
            if ahead is not None:
                symbols, seconds = ahead.result()
                self._budget.add_seconds(seconds)
            else:
                symbols = self._parse(entry.coded, [r.context for r in references])
            if self._parser is not None:
                upcoming = itertools.chain(following, self._upcoming(gop, entry, final))
                self._look_ahead(self._parser, upcoming, entry, symbols)
            entry.reference = self._reconstruct(entry.coded, symbols, references)
        except BitstreamError as error:
            self._drop_damaged(error)
            return
        self._decoded_frames.add(entry)

    def _upcoming(self, gop: Gop, current: Entry, final: bool) -> Iterator[Entry]:
        """The frames that will be decoded for the next ones to show, as far as they are known.

        Args:
            current: the last of those that a frame needs, which is being decoded.
        """
        for number in range(gop.next, gop.newest + 1):
            if number in gop.waiting:
                if not final and self._must_wait(gop, number):
                    return
                self._place(gop, number)
            entry = gop.placed.get(number)
            if entry is not None and entry.coded.shown:
                yield from (each for each in entry.needed() if each.open and each is not current)

    def _look_ahead(
        self,
        parser: ThreadPoolExecutor,
        upcoming: Iterator[Entry],
        current: Entry,
        symbols: Symbols,
    ) -> None:
        """Have threads read the symbols of frames that will be decoded soon.

        Args:
            upcoming: in coding order; some may come more than once.
            current: the frame whose pixels are being made; symbols: its.
        """
        for entry in upcoming:
            if entry in self._ahead:
                continue
            if len(self._ahead) >= _AHEAD:
                return
            contexts: list[Context | Parsing] = []
            for needed in entry.references:
                if needed is current:
                    contexts.append(symbols.context)
                elif needed.reference is not None:
                    contexts.append(needed.reference.context)
                elif needed in self._ahead:
                    contexts.append(self._ahead[needed])
                else:
                    return
            self._ahead[entry] = parser.submit(self._parse_ahead, entry.coded, contexts)

    def _parse_ahead(
        self, coded: Coded, contexts: Sequence[Context | Parsing]
    ) -> tuple[Symbols, float]:
        # Frames are parsed in the order in which they were handed in: the first of those that are
        # not parsed yet waits for none.
        known = [c.result()[0].context if isinstance(c, Future) else c for c in contexts]
        began = time.thread_time()
        with threads_of(self._runtime):
            symbols = self._parse(coded, known)
        return symbols, time.thread_time() - began

    def _drop_ahead(self) -> None:
        """Forget what is being read ahead."""
        for parsing in self._ahead.values():
            parsing.cancel()
        self._ahead.clear()

    def _check_levels(self, info: PacketInfo) -> None:
        if info.lost_levels and self._options.strict:
            self.dropped_damaged += 1
            raise BitstreamError(
                f"quality levels of a packet of {info.size} bytes are damaged or cut short"
            )

    def _parse(self, coded: Coded, contexts: Sequence[Context]) -> Symbols:
        """The symbols of a packet, without levels that are invalid; safe in another thread.

        Raises:
            BitstreamError: the base is invalid although its check matches; with strict, a level.
        """
        while True:
            try:
                return self._parse_sections(coded, contexts)
            except BitstreamError:
                kept = coded.info.sections[:-1]
                if self._options.strict or not kept:
                    raise
                coded.info = replace(coded.info, sections=kept, lost_levels=True)

    def _parse_sections(self, coded: Coded, contexts: Sequence[Context]) -> Symbols:
        """The symbols of all sections of a packet.

        Raises:
            BitstreamError: they are invalid although the packet's check matches.
        """
        assert self._model is not None and self.video_format is not None  # a keyframe came
        header, size = coded.header, coded.info.size
        levels = [section.qp for section in coded.info.sections[1:]]
        most = self._model.info.references
        if len(contexts) > most:
            raise BitstreamError(f"a frame has {len(contexts)} references, the model uses {most}")
        try:
            return self._model.parse(
                header.step,
                header.mode,
                coded.sections,
                contexts,
                self.video_format,
                levels,
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
        self, coded: Coded, symbols: Symbols, references: Sequence[Reference]
    ) -> Reference:
        assert self._model is not None and self.video_format is not None  # a keyframe came
        header = coded.header
        return self._model.reconstruct(
            header.step, header.mode, symbols, references, self.video_format
        )

    def _show(self, entry: Entry) -> Iterator[Frame]:
        coded = entry.coded
        if not coded.shown or entry.reference is None:
            return
        self._budget.count_frame()
        assert self._model is not None and self.video_format is not None  # a keyframe came
        shown = entry.reference
        if self._finish is not None:
            step = replace(coded.step, qp=entry.qp)
            shown = self._finish.apply(shown, step, self.video_format)
        y, u, v = self._model.planes(shown, self.video_format)
        self.lost_levels += coded.info.lost_levels
        yield Frame(
            y=y,
            u=u,
            v=v,
            pts=coded.pts,
            duration=coded.duration,
            type=coded.step.type,
            bidirectional=max(coded.step.references, default=0) > 0,
            motion=self._motion_of(entry) if self._motion else None,
        )

    def _motion_of(self, entry: Entry) -> CodedMotion:
        assert self._model is not None and entry.reference is not None
        fields = self._model.motion(entry.reference)
        return CodedMotion(
            pts=entry.coded.pts, fields=dict(zip(entry.reference_pts, fields, strict=False))
        )

    def _drop_damaged(self, error: BitstreamError) -> None:
        self.dropped_damaged += 1
        if self._options.strict:
            raise error

    def _drop_missing(self, reason: str = "a reference is missing or damaged") -> None:
        self.dropped_missing_reference += 1
        if self._options.strict:
            raise BitstreamError(f"an inter frame cannot be decoded: {reason}")


def _at_point(info: PacketInfo, levels: int | None) -> PacketInfo:
    """A packet without the sections above an operating point; their losses do not count."""
    if levels is None or levels >= LEVELS_MAX:
        return info
    kept = tuple(section for section in info.sections if section.level < levels)
    # What follows a level that is lost is of a higher one.
    whole = len(kept) < len(info.sections) or (bool(kept) and kept[-1].level == levels - 1)
    return replace(info, sections=kept, lost_levels=info.lost_levels and not whole)


def _within_bounds(info: PacketInfo, sequence: SequenceHeader) -> PacketInfo:
    """A packet without the levels that are outside the bounds of the sequence header.

    Raises:
        BitstreamError: its base is.
    """
    step = info.header.step
    reach = max((abs(distance) for distance in step.references), default=0)
    if reach > sequence.reach:
        raise BitstreamError(
            f"a reference lies {reach} frames away, at most {sequence.reach} are stated"
        )
    later = max(step.references, default=0)
    if later > sequence.reorder:
        raise BitstreamError(
            f"a reference comes {later} frames later, at most {sequence.reorder} are stated"
        )
    if step.slot is not None and step.slot >= sequence.slots:
        raise BitstreamError(f"slot {step.slot} is used, the stream states {sequence.slots} slots")
    limit, sizes = packet_size_max(sequence.video_format), level_sizes(info)
    if info.base_size > limit:
        raise BitstreamError(f"a packet has {info.base_size} bytes, {limit} are allowed")
    kept = tuple(
        section
        for section in info.sections
        if section.level < sequence.levels and sizes[section.level] <= limit
    )
    lost = info.lost_levels or len(kept) < len(info.sections)
    return replace(info, sections=kept, lost_levels=lost)
