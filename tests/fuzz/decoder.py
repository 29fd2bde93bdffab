"""The decoder's state machine on the fake model, fed with streams whose packets are changed, lost,
doubled, swapped and joined.

Input: a byte of flags (1 checks computed, 2 strict, 4 extradata first, 8 and 16 levels), then
records: a byte (1 keyframe, 2 not shown, 4 a reset, 8 the end, 16 only the first frame is asked
for), and a packet.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import islice
from typing import Any

from fake_model import FakeModel

from fuzz import record, records
from fuzz.streams import coded_streams, set_checks
from vcfilter.bitstream import SequenceHeader
from vcfilter.codec import Decoder
from vcfilter.codec import decoder as module
from vcfilter.errors import VcfilterError
from vcfilter.frames import FrameStep, Packet
from vcfilter.options import DecoderOptions, Limits

CHECKED, STRICT, EXTRADATA, LEVELS = 1, 2, 4, 8
KEY, HIDDEN, RESET, END, ABANDON = 1, 2, 4, 8, 16
LIMITS = Limits(pixels=48 * 48, frames=200, seconds=10, memory=1 << 24)
PACKETS_MAX = 200

module.reads_ahead = lambda *_: False  # one thread: equal inputs take equal ways


class BoundsError(Exception):
    """A frame is decoded that no sequence header allows."""


class BoundedModel(FakeModel):
    """Args of parse are within the bounds of one of `sequences`."""

    def __init__(self) -> None:
        super().__init__()
        self.sequences: list[SequenceHeader] = []

    def parse(self, step: FrameStep, mode: bytes, sections: Sequence[bytes], *rest: Any) -> Any:
        for header in self.sequences:
            near = all(-header.reach <= d <= header.reorder for d in step.references)
            if near and len(sections) <= header.levels and (step.slot or 0) < header.slots:
                return super().parse(step, mode, sections, *rest)
        raise BoundsError(step)


def seeds() -> list[bytes]:
    """Whole streams, and the same with packets lost, doubled, swapped, hidden and joined."""
    found = []
    source = random.Random(7)
    for flags in (0, CHECKED, STRICT, CHECKED | EXTRADATA, EXTRADATA | LEVELS, 2 * LEVELS):
        set_checks(bool(flags & CHECKED))
        streams = coded_streams()
        for extradata, packets in streams:
            whole = [(bytes((p.is_keyframe,)), p.data) for p in packets]
            lossy = [part for part in whole if source.random() < 0.8]
            hidden = [(bytes((h[0] | HIDDEN * (source.random() < 0.5),)), d) for h, d in whole]
            doubled = [part for part in whole for _ in range(source.choice((1, 1, 2)))]
            swapped = sorted(whole, key=lambda _: source.random())
            other = source.choice(streams)[1]
            joined = [*whole[:5], (b"\x04", b""), *whole[5:], (bytes((16,)), other[0].data)]
            for parts in (whole, lossy, hidden, doubled, swapped, joined):
                parts = [*parts, (bytes((END,)), b"")]
                if flags & EXTRADATA:
                    parts = [(b"\0", extradata), *parts]
                found.append(bytes((flags,)) + b"".join(record(*part) for part in parts))
    return found


def run(data: bytes) -> None:
    """Decode a stream."""
    flags, parts = data[0] if data else 0, records(data[1:], 1)[:PACKETS_MAX]
    set_checks(bool(flags & CHECKED))
    extradata = parts.pop(0)[1] if flags & EXTRADATA and parts else None
    options = DecoderOptions(
        strict=bool(flags & STRICT), levels=flags // LEVELS % 4 or None, limits=LIMITS
    )
    model = BoundedModel()
    try:
        decoder = Decoder(extradata, options, model=model)
    except VcfilterError:
        return
    used = decoder._use

    def use(sequence: SequenceHeader) -> None:
        model.sequences.append(sequence)
        used(sequence)

    decoder._use = use  # type: ignore[method-assign]
    if decoder._sequence is not None:
        model.sequences.append(decoder._sequence)
    shown = sent = 0
    for pts, ((head,), body) in enumerate(parts):
        if head & RESET:
            decoder.reset()
        packet = Packet(data=body, pts=pts, duration=1, is_keyframe=bool(head & KEY))
        sent += 1
        try:
            frames = decoder.frames(None if head & END else packet, show=not head & HIDDEN)
            for frame in islice(frames, 1 if head & ABANDON else None):
                assert decoder.video_format is not None
                shown += 1
                assert 0 <= frame.pts <= pts
        except VcfilterError:
            pass
        assert len(decoder._decoded_frames) <= module._HELD_MAX
    counted = decoder.dropped_damaged + decoder.dropped_missing_reference
    assert shown <= sent
    assert shown + counted <= 2 * sent
