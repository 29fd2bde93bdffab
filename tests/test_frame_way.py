"""A frame's way through the files: down from Encoder.encode to the packet, and back to the frame.

Two counts over vcfilter/codec and vcfilter/models, on functions that call another file:

- Calls upward: a file calls one that waits for it. There are none.
- Returns: a reader who opens every function when it is first called, in that order, comes to a
  file that was left before.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest
from fake_model import FakeModel
from small_model import write_small_model
from synthetic import clip

import vcfilter
from vcfilter.codec import Decoder, Encoder, segment
from vcfilter.codec import decoder as decoder_module
from vcfilter.frames import Packet, VideoFormat
from vcfilter.models import store
from vcfilter.models.base import Model
from vcfilter.options import EncoderOptions, Runtime

SMALL = VideoFormat(width=64, height=48)
PACKAGE = Path(vcfilter.__file__).parent
TESTS = Path(__file__).parent
ROOMS = ("codec", "models", "bitstream", "entropy", "tests")


class Way:
    """Calls between files while `work` runs.

    Attributes:
        upward: (caller, callee) of calls into a file that waits for the caller.
        files: of the functions that call another file, in order of their first call.
    """

    def __init__(self, work: Callable[[], object]) -> None:
        self.upward: set[tuple[str, str]] = set()
        self._stack: list[tuple[CodeType, str] | None] = []
        self._order: dict[CodeType, str] = {}
        self._leaving: set[CodeType] = set()
        sys.setprofile(self._event)
        try:
            work()
        finally:
            sys.setprofile(None)

    @property
    def files(self) -> list[str]:
        own = [(code, file) for code, file in self._order.items() if code in self._leaving]
        return [file for _, file in own if file.startswith(("codec/", "models/"))]

    def returns(self, room: str) -> int:
        """Returns to files of a room."""
        count, left, current = 0, set(), ""
        for file in self.files:
            if file != current:
                count += file in left and file.startswith(room)
                left.add(current)
                current = file
        return count

    def _event(self, frame: FrameType, event: str, _: Any) -> None:
        if event == "return" and self._stack:
            self._stack.pop()
        if event != "call":
            return
        file = _file_of(frame.f_code.co_filename)
        if file is None:
            self._stack.append(None)
            return
        code = frame.f_code
        waiting = [entry for entry in self._stack if entry is not None]
        self._order.setdefault(code, file)
        if waiting and waiting[-1][1] != file:
            caller = waiting[-1]
            self._leaving.add(caller[0])
            if any(entry[1] == file for entry in waiting):
                self.upward.add((f"{caller[1]} {caller[0].co_name}", f"{file} {code.co_name}"))
        self._stack.append((code, file))


def _file_of(name: str) -> str | None:
    """The file below vcfilter or the repository's root; None where it is of no room."""
    path = Path(name)
    for root in (PACKAGE, TESTS.parent):
        if path.is_relative_to(root) and path.relative_to(root).parts[0] in ROOMS:
            return path.relative_to(root).as_posix()
    return None


@pytest.fixture(params=["fake", "hierarchical"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Model:
    if request.param == "fake":
        return FakeModel()
    write_small_model(tmp_path / "small.safetensors")
    return store.load(str(tmp_path / "small.safetensors"), Runtime(device="cpu"))


def ways(model: Model, structure: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Way, Way]:
    """Of encoding and of decoding five frames behind a keyframe, so fine that all are coded."""
    monkeypatch.setattr(decoder_module, "reads_ahead", lambda *_: False)  # all in this thread
    key, *frames = clip(6, SMALL)
    options = EncoderOptions(qp=24, structure=structure, preset="ultrafast", scenecut=False)
    encoder = Encoder(SMALL, options, model=model)
    packets: list[Packet] = encoder.encode(key)

    def encode() -> None:
        for frame in (*frames, None):
            packets.extend(encoder.encode(frame))

    down = Way(encode)
    decoder = Decoder(encoder.extradata, model=model)
    decoder.decode(packets[0])
    up = Way(lambda: [decoder.decode(packet) for packet in (*packets[1:], None)])
    assert len(packets) == 6
    return down, up


@pytest.mark.parametrize("structure", ["low-delay", "random-access"])
def test_no_file_calls_one_that_waits_for_it(
    model: Model, structure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    down, up = ways(model, structure, monkeypatch)
    assert {"codec/encoder.py", "codec/segment.py"} <= set(down.files)
    assert "codec/decoder.py" in up.files
    assert (down.upward, up.upward) == (set(), set())


@pytest.mark.parametrize("structure", ["low-delay", "random-access"])
def test_returns_to_a_file_that_was_left(
    model: Model, structure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The decoder's are the protocol's doors: parse, reconstruct, planes.

    An encoder's mode decision comes back to the search, which tells what motion leaves after it is
    fitted. Where anchors are looked for, the keyframe is coded together with the first inter
    frames: its way is counted with theirs, and the temporal filter asks for motion again.
    """
    down, up = ways(model, structure, monkeypatch)
    assert down.returns("codec/") <= 3
    assert up.returns("codec/") <= 2
    assert down.returns("models/") <= 4
    assert up.returns("models/") <= 3


def test_a_call_upward_is_found() -> None:
    class Upward(FakeModel):
        def encode(self, *args: Any) -> Any:
            coded = super().encode(*args)
            segment._sections([(0, args[1].qp)], coded)
            return coded

    encoder = Encoder(SMALL, EncoderOptions(keyint=1), model=Upward())
    way = Way(lambda: encoder.encode(clip(1, SMALL)[0]))
    assert ("tests/test_frame_way.py encode", "codec/segment.py _sections") in way.upward
