"""Reference structures: coding order, slots, bounds of what they promise."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import pytest

from vcfilter.bitstream import StructureKind
from vcfilter.codec.references import Slots
from vcfilter.codec.structure import (
    CHAIN_PATTERN,
    HIERARCHY_MAX,
    INTERVAL_MAX,
    LAYER_QP_OFFSET,
    GopStep,
    GopStructure,
    between_anchors,
    chain_step,
    coding_order,
    restart_step,
)
from vcfilter.errors import ConfigError
from vcfilter.frames import SLOTS, FrameStep, FrameType
from vcfilter.options import BFRAMES, EncoderOptions

LENGTHS = range(1, HIERARCHY_MAX + 1)


def check_order(
    steps: Iterable[GopStep], slots: Slots[int], coded: set[int], next_key: int = -1
) -> None:
    """Each frame once, after its references, which are all kept when it is coded."""
    for step in steps:
        assert step.number not in coded
        for reference in step.references:
            assert reference in coded
            assert reference == next_key or slots.get(reference) == reference
        coded.add(step.number)
        slots.store(step.step(30), step.number)


@pytest.mark.parametrize("length", LENGTHS)
def test_every_frame_once_after_its_references(length: int) -> None:
    steps = coding_order(length)
    layers = {0: 0, length: 0}
    coded = {0, length}
    check_order(steps, Slots(0), coded, length)
    assert coded == set(range(length + 1))
    for step in steps:
        assert all(layers[reference] < step.layer for reference in step.references)
        layers[step.number] = step.layer
    assert max(layers.values()) <= 6


@pytest.mark.parametrize("distance", range(1, INTERVAL_MAX + 1))
@pytest.mark.parametrize("slot", [0, 1])
def test_between_anchors(distance: int, slot: int) -> None:
    """Two anchors in slots 0 and 1; the next one takes the older one's place."""
    slots: Slots[int] = Slots(0)
    coded = {0, 20, 30}
    for number, place in ((20, slot), (30, 1 - slot)):
        step = FrameStep(type=FrameType.INTER, qp=0, layer=1, number=number, references=(-1,),
                         slot=place)  # fmt: skip
        slots.store(step, number)
    steps = between_anchors((30, 20), 30 + distance, slot)
    assert steps[0].references == (30, 20)
    assert (steps[0].number, steps[0].layer, steps[0].slot) == (30 + distance, 1, slot)
    check_order(steps, slots, coded)
    assert coded - {0, 20} == set(range(30, 31 + distance))
    assert slots.get(30) == 30  # the next anchor refers to it
    assert slots.get(30 + distance) == 30 + distance


def shown_in_order(steps: Sequence[GopStep], length: int, most: int, held: set[int]) -> None:
    """Frames become available in display order while few are held."""
    uses: dict[int, int] = {}
    for index, step in enumerate(steps):
        uses |= dict.fromkeys(step.references, index)
    shown = 1
    for index, step in enumerate(steps):
        held.add(step.number)
        while shown in held and shown < length:
            shown += 1
        held = {p for p in held if uses.get(p, -1) > index or p >= shown}
        assert len(held) <= most
    assert shown == length


@pytest.mark.parametrize("length", LENGTHS)
def test_frames_come_in_display_order_from_few_references(length: int) -> None:
    most = length.bit_length() + 2
    shown_in_order(coding_order(length), length, most, {0, length})
    if length <= INTERVAL_MAX:
        shown_in_order(between_anchors((0,), length), length + 1, most, {0})


def test_twelve_frames() -> None:
    steps = coding_order(12)
    assert [s.number for s in steps] == [6, 3, 1, 2, 4, 5, 9, 7, 8, 10, 11]
    assert steps[0] == GopStep(number=6, references=(0, 12), layer=1, slot=1, offset=3)
    assert steps[0].step(30).references == (-6, 6)
    assert [s.layer for s in steps] == [1, 2, 3, 4, 3, 4, 2, 3, 4, 3, 4]
    assert [s.slot for s in steps] == [1, 2, 3, None, 3, None, 2, 3, None, 3, None]

    tail = between_anchors((0,), 11)
    assert tail[0] == GopStep(number=11, references=(0,), layer=1, slot=1, offset=3)
    assert tail[0].step(30).references == (-11,)
    assert tail[1] == GopStep(number=5, references=(0, 11), layer=2, slot=2, offset=6)
    assert coding_order(1) == ()


@pytest.mark.parametrize("length", [0, 65, -1])
def test_lengths_out_of_range(length: int) -> None:
    with pytest.raises(ConfigError, match=str(length)):
        coding_order(length)


def test_offsets_cover_all_layers_and_rise() -> None:
    assert len(LAYER_QP_OFFSET) == 8
    assert LAYER_QP_OFFSET[0] == 0
    assert list(LAYER_QP_OFFSET) == sorted(LAYER_QP_OFFSET)


def test_a_step_gets_the_qp_of_its_layer() -> None:
    for step in coding_order(32):
        assert step.step(20).qp == 20 + LAYER_QP_OFFSET[step.layer]
        assert step.step(62).qp == 63 or step.layer == 0
        assert step.step(20).reference_numbers == step.references


def test_low_delay_refers_to_the_past_that_is_kept() -> None:
    slots: Slots[int] = Slots(0)
    coded = {0}
    for number in range(1, 100):
        step = chain_step(number)
        check_order([step], slots, coded)
        assert (step.layer, step.offset) == CHAIN_PATTERN[number % 4]
        assert step.references[0] == number - 1
        if number > 1:
            assert len(step.references) == 2
            assert step.references[1] % 4 == 0


@pytest.mark.parametrize("at", range(9, 17))
def test_a_chain_restarts_anywhere(at: int) -> None:
    for known in [0, *range(at - 4, at)]:
        slots: Slots[int] = Slots(0)
        coded = {0}
        check_order((chain_step(n) for n in range(1, at)), slots, coded)
        if slots.get(known) is None:
            continue
        restart = restart_step(at, known)
        check_order([restart], slots, coded)
        assert restart.references == (known,)
        for number in range(at + 1, at + 40):
            step = chain_step(number, at)
            check_order([step], slots, coded)
            assert min(step.references) >= at
            assert slots.get(at) == at  # for the next restart


def test_slots() -> None:
    def step(number: int, slot: int | None) -> FrameStep:
        return FrameStep(type=FrameType.INTER, qp=0, layer=1, number=number, references=(-1,),
                         slot=slot)  # fmt: skip

    slots: Slots[str] = Slots("key")
    slots.store(step(1, 3), "one")
    slots.store(step(2, None), "two")
    assert (slots.get(0), slots.get(1), slots.get(2)) == ("key", "one", None)
    other = slots.copy()
    other.store(step(4, 0), "four")
    assert sorted(other.frames()) == ["four", "one"]
    assert (slots.get(0), other.get(0), other.get(4)) == ("key", None, "four")


OPTIONS = [
    *({"keyint": keyint, "bframes": b} for keyint in (1, 2, 5, 12, 33, 64, 65, 250)
      for b in (None, *BFRAMES)),
    *({"keyint": keyint, "open_gop": False} for keyint in (2, 12, 64, 65)),
    *({"keyint": keyint, "structure": "low-delay", "ltr": 8} for keyint in (1, 2, 90000)),
    {"structure": "intra"},
]  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_what_the_options_ask_for(options: dict[str, object]) -> None:
    structure = GopStructure.of(EncoderOptions(**options))
    assert 1 <= structure.slots <= SLOTS
    assert 0 <= structure.reorder <= 255
    assert 0 <= structure.reach <= 65535
    kind = StructureKind[str(options.get("structure", "random-access")).replace("-", "_").upper()]
    intra = kind is StructureKind.INTRA or options.get("keyint") == 1
    assert structure.kind is (StructureKind.INTRA if intra else kind)
    if structure.kind is not StructureKind.RANDOM_ACCESS:
        assert structure.reorder == structure.delay == 0
    if structure.one_hierarchy and structure.open_gop:
        for length in range(1, structure.keyint + 1):
            steps = coding_order(length)
            assert all((s.slot or 0) < structure.slots for s in steps)
            distances = [abs(r - s.number) for s in steps for r in s.references]
            assert max(distances, default=0) <= structure.reach
            later = [r - s.number for s in steps for r in s.references]
            assert max(later, default=0) <= structure.reorder


def test_intra_ignores_what_it_has_no_use_for() -> None:
    structure = GopStructure.of(EncoderOptions(structure="intra", keyint=50))
    assert (structure.keyint, structure.scenecut, structure.open_gop) == (1, False, False)
    assert (structure.slots, structure.reach) == (1, 0)
    assert replace(structure, keyint=1) == structure
