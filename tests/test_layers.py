"""Quality levels: any mix of them parses alike, thinning is cutting, damage costs quality only."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from clips import make_film
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from synthetic import clip

import vcfilter
from vcfilter.bitstream import level_sizes, read_packet, thin, thin_packet
from vcfilter.cli.main import main
from vcfilter.codec import Decoder, Encoder
from vcfilter.codec.segment import Coding
from vcfilter.entropy import tables
from vcfilter.entropy.coder import DecodingCoder
from vcfilter.errors import BitstreamError, ConfigError
from vcfilter.frames import Frame, Packet, VideoFormat
from vcfilter.metrics import frame_psnr
from vcfilter.models import store
from vcfilter.models.hierarchical.model import HierarchicalModel
from vcfilter.models.hierarchical.refinement import (
    OWN,
    OWN_TABLES,
    Below,
    ratio,
    rescaled,
    rescaled_activations,
    with_own_tables,
)
from vcfilter.options import DecoderOptions, EncoderOptions, Runtime
from vcfilter.stream import thinning
from vcfilter.stream.remux import copy_file
from vcfilter.stream.thinning import Thinning

FORMAT = VideoFormat(width=72, height=56)
FRAMES, LEVELS = 8, 3
CPU = Runtime(device="cpu")


class Recording:
    """A model that notes what it parses, the integers of each frame, and what it encodes."""

    def __init__(self, model: HierarchicalModel) -> None:
        self._model = model
        self.parsed: list[Any] = []
        self.coded: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def parse(self, *args: Any) -> Any:
        self.parsed.append((args, self._model.parse(*args)))
        return self.parsed[-1][1]

    def encode(self, *args: Any, **options: Any) -> Any:
        self.coded.append(self._model.encode(*args, **options))
        return self.coded[-1]


@pytest.fixture(scope="module")
def model() -> HierarchicalModel:
    found = store.find(None, CPU)
    assert isinstance(found, HierarchicalModel)
    return found


@pytest.fixture(scope="module")
def frames() -> list[Frame]:
    return clip(FRAMES, FORMAT, noise=2.0)


def encode(frames: Sequence[Frame], model: Any, **options: Any) -> tuple[Encoder, list[Packet]]:
    options = {"qp": 22, "keyint": 7, "preset": "ultrafast", "scenecut": False, **options}
    encoder = Encoder(FORMAT, EncoderOptions(**options), model=model, runtime=CPU)
    return encoder, [p for frame in [*frames, None] for p in encoder.encode(frame)]


@pytest.fixture(scope="module")
def coded(model: HierarchicalModel, frames: list[Frame]) -> list[Packet]:
    encoder, packets = encode(frames, model, layers=LEVELS)
    assert {len(read_packet(p.data).sections) for p in packets} >= {LEVELS}
    shown = decode(packets, model)
    measured = np.mean(quality(frames, shown))
    assert encoder.statistics.psnr == pytest.approx(measured, abs=0.01)  # rounding of samples
    return packets


def decode(packets: Sequence[Packet], model: Any, threads: int = 0, **options: Any) -> list[Frame]:
    runtime = Runtime(device="cpu", threads=threads)
    decoder = Decoder(None, DecoderOptions(strict=True, **options), model=model, runtime=runtime)
    return [frame for packet in [*packets, None] for frame in decoder.decode(packet)]


def quality(frames: Sequence[Frame], shown: Sequence[Frame]) -> list[float]:
    return [frame_psnr(a, b, 8).weighted for a, b in zip(frames, shown, strict=True)]


def mixed(packets: Sequence[Packet], kept: Sequence[int]) -> list[Packet]:
    return [thin_packet(p, n) for p, n in zip(packets, kept, strict=True)]


def same_integers(mine: Any, others: Any) -> None:
    """The base and its context are equal, and the levels that both have."""
    for name in ("symbols", "activity", "motion_symbols", "motion_activity"):
        assert torch.equal(getattr(mine.context, name), getattr(others.context, name))
    assert (mine.image is None) == (others.image is None)
    assert mine.image is None or torch.equal(mine.image, others.image)
    for a, b in zip(mine.levels, others.levels, strict=False):
        assert a.drop == b.drop
        assert torch.equal(a.symbols, b.symbols)


@pytest.fixture(scope="module")
def whole(coded: list[Packet], model: HierarchicalModel) -> list[Any]:
    """Arguments and integers of each frame where nothing is dropped."""
    found = Recording(model)
    decode(coded, found)
    return found.parsed


@pytest.fixture(scope="module")
def base_quality(coded: list[Packet], frames: list[Frame], model: HierarchicalModel) -> list[float]:
    """PSNR of each frame where all levels are dropped."""
    return quality(frames, decode(mixed(coded, [1] * FRAMES), model))


@pytest.mark.slow
def test_each_level_gains(
    coded: list[Packet], frames: list[Frame], model: HierarchicalModel
) -> None:
    by_level = [
        np.mean(quality(frames, decode(mixed(coded, [n] * FRAMES), model))) for n in (1, 2, 3)
    ]
    assert by_level[0] + 1 < by_level[1] and by_level[1] + 1 < by_level[2]


@pytest.mark.parametrize("structure", ["random-access", "low-delay"])
def test_the_encoder_follows_the_bases(
    frames: list[Frame], model: HierarchicalModel, structure: str
) -> None:
    """What it takes a decoder of the bases alone to show is what that shows."""
    recording = Recording(model)
    _, packets = encode(frames, recording, layers=2, structure=structure)
    followed = [found.reference.lowest for found in recording.coded]
    assert any(found is not None for found in followed)
    expected = [
        model.planes(lowest or found.reference, FORMAT)
        for lowest, found in zip(followed, recording.coded, strict=True)
    ]
    for shown in decode(mixed(packets, [1] * FRAMES), model):
        apart = [
            max(
                int(np.abs(a.astype(int) - b).max()) for a, b in zip(shown.planes, own, strict=True)
            )
            for own in expected
        ]
        assert min(apart) <= 1
        assert sorted(apart)[1] > 1  # other frames are told from it


def test_any_mix_parses_alike(
    coded: list[Packet],
    frames: list[Frame],
    model: HierarchicalModel,
    whole: list[Any],
    base_quality: list[float],
) -> None:
    @settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.integers(1, LEVELS), min_size=FRAMES, max_size=FRAMES))
    def check(kept: list[int]) -> None:
        some = Recording(model)
        shown = decode(mixed(coded, kept), some)
        for (_, mine), (_, others) in zip(some.parsed, whole, strict=True):
            same_integers(mine, others)
        found = quality(frames, shown)
        assert all(mine >= least - 0.3 for mine, least in zip(found, base_quality, strict=True))

    check()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("mkldnn", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_mix_parses_alike_everywhere(
    coded: list[Packet],
    frames: list[Frame],
    model: HierarchicalModel,
    whole: list[Any],
    base_quality: list[float],
    threads: int,
    channels_last: bool,
    mkldnn: bool,
    dtype: torch.dtype,
) -> None:
    """Each frame has the integers that it has where nothing is dropped, whatever computes them."""
    net = copy.deepcopy(model.net).to(dtype)
    other = HierarchicalModel(net, model.tables, model.info, torch.device("cpu"))
    other.net.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    rng = np.random.default_rng(threads + 2 * channels_last + 4 * mkldnn + 8 * (dtype.itemsize > 4))
    kept = [int(n) for n in rng.integers(1, LEVELS + 1, FRAMES)]
    some = Recording(other)
    with torch.backends.mkldnn.flags(enabled=mkldnn):
        shown = decode(mixed(coded, kept), some, threads=threads)
    for (_, mine), (_, others) in zip(some.parsed, whole, strict=True):
        same_integers(mine, others)
    found = quality(frames, shown)
    assert all(mine >= least - 0.3 for mine, least in zip(found, base_quality, strict=True))


def test_an_operating_point_is_thinning(coded: list[Packet], model: HierarchicalModel) -> None:
    for levels in (1, 2):
        thinned = decode(mixed(coded, [levels] * FRAMES), model)
        point = decode(coded, model, levels=levels)
        pairs = zip(thinned, point, strict=True)
        assert all(np.array_equal(a.y, b.y) and np.array_equal(a.u, b.u) for a, b in pairs)


def test_the_operating_point_may_change_between_packets(
    coded: list[Packet], model: HierarchicalModel
) -> None:
    decoder, shown = Decoder(model=model, runtime=CPU), []
    for index, packet in enumerate([*coded, None]):
        decoder.levels = (1, 3, None)[index % 3]
        shown += decoder.decode(packet)
    kept = [(1, 3, LEVELS)[index % 3] for index in range(FRAMES)]
    for mine, other in zip(shown, decode(mixed(coded, kept), model), strict=True):
        assert np.array_equal(mine.y, other.y)
    with pytest.raises(ConfigError, match="levels 9 is outside 1 to 8"):
        decoder.levels = 9


def test_thinning_cuts(coded: list[Packet]) -> None:
    for packet in coded:
        info = read_packet(packet.data)
        for levels in range(1, LEVELS + 1):
            cut = thin(packet.data, levels)
            assert packet.data.startswith(cut) and len(cut) == level_sizes(info)[levels - 1]
            assert thin(cut, levels) == cut
            found = read_packet(cut)
            assert found.identity == info.identity and not found.lost_levels
            assert found.sections == tuple(s for s in info.sections if s.level < levels)
        assert thin(packet.data, LEVELS) == packet.data


@pytest.mark.slow
def test_damaged_levels_cost_quality_only(coded: list[Packet], model: HierarchicalModel) -> None:
    rng = np.random.default_rng(0)
    above = [i for i, p in enumerate(coded) if read_packet(p.data).base_size + 4 < len(p.data)]
    for _ in range(6):
        index = int(rng.choice(above))
        data = bytearray(coded[index].data)
        data[int(rng.integers(read_packet(bytes(data)).base_size, len(data)))] ^= 1 << int(
            rng.integers(8)
        )
        broken = [*coded[:index], replace(coded[index], data=bytes(data)), *coded[index + 1 :]]
        decoder = Decoder(model=model, runtime=CPU)
        shown = [frame for packet in [*broken, None] for frame in decoder.decode(packet)]
        assert len(shown) == FRAMES
        assert (decoder.lost_levels, decoder.dropped_damaged) == (1, 0)
        with pytest.raises(BitstreamError, match="quality levels of a packet"):
            decode(broken, model)
        decode(broken, model, levels=1)  # what is not decoded may be damaged


def test_every_flip_of_a_section_is_noticed(coded: list[Packet]) -> None:
    for packet in coded[:2]:
        base = read_packet(packet.data).base_size
        for bit in range(8 * base, 8 * len(packet.data), 7):
            data = bytearray(packet.data)
            data[bit // 8] ^= 1 << bit % 8
            info = read_packet(bytes(data))
            assert info.lost_levels and info.base_size == base


def test_levels_of_a_crafted_packet_are_checked(
    coded: list[Packet], model: HierarchicalModel
) -> None:
    info = read_packet(coded[0].data)
    step, data = info.header.step, [section.data for section in info.sections]
    for qps in ((step.qp, step.qp - 6), (step.qp - 6, step.qp - 6), (step.qp + 1, 3)):
        with pytest.raises(BitstreamError, match="do not fall"):
            model.parse(step, b"", data, (), FORMAT, qps)
    with pytest.raises(BitstreamError, match="3 sections, not 2"):
        model.parse(step, b"", data, (), FORMAT, (step.qp - 6,))


def test_an_empty_base_may_carry_levels(frames: list[Frame], model: HierarchicalModel) -> None:
    """Noise that a coarse base leaves out, on a picture that does not move."""
    rng = np.random.default_rng(3)
    still = []
    for frame in clip(4, FORMAT, still=True):
        noise = rng.integers(-3, 4, frame.y.shape)
        still.append(replace(frame, y=np.clip(frame.y + noise, 0, 255).astype(np.uint8)))
    _, packets = encode(still, model, qp=8, layers=4, layer_step=12, keyint=4)
    infos = [read_packet(packet.data) for packet in packets]
    empty = [i for i in infos if i.header.mode == b"\0" and len(i.sections) > 1]
    assert empty
    assert len(decode(packets, model)) == 4
    assert len(decode(mixed(packets, [1] * 4), model)) == 4


def test_one_level_is_one_section(frames: list[Frame], model: HierarchicalModel) -> None:
    _, packets = encode(frames[:3], model, qp=30)
    assert all(len(read_packet(p.data).sections) <= 1 for p in packets)


def test_low_delay(frames: list[Frame], model: HierarchicalModel) -> None:
    _, packets = encode(frames[:5], model, layers=2, structure="low-delay")
    counts = [len(decode(mixed(packets, [n] * 5), model)) for n in (1, 2)]
    assert counts == [5, 5]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"layers": 0}, "layers 0 is outside 1 to 8"),
        ({"layers": 9}, "layers 9 is outside 1 to 8"),
        ({"layer_step": 1}, "layer_step 1 is outside 2 to 12"),
        ({"layers": 4, "qp": 50}, "4 layers 6 qps apart need a qp of at most 45, not 50"),
        ({"layers": "x"}, "layers 'x' is not a whole number"),
    ],
)
def test_options_are_checked(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        EncoderOptions.from_mapping(options)


def test_levels_beyond_the_largest_qp_are_left_out() -> None:
    coding = Coding(sequence=None, effort="", key_length=1, layers=4, layer_step=6)  # type: ignore[arg-type]
    assert coding.level_qps(20) == [(0, 38), (1, 32), (2, 26), (3, 20)]
    assert coding.level_qps(50) == [(0, 62), (2, 56), (3, 50)]
    assert coding.level_qps(63) == [(0, 63)]


def test_rescaled_integers_are_far_from_ties() -> None:
    """Tables follow from them: no machine may round another way."""
    for delta in range(1, 64):
        exact = 2.0 ** (8 + delta / 6)
        assert delta % 6 == 0 or abs(exact % 1 - 0.5) > 1e-4
        assert ratio(delta) == int(exact + 0.5)
        finer = 2.0 ** (delta / 6)
        values = [32 * np.log2(1 + (2 ** (a / 32) - 1) * finer) for a in range(256)]
        assert min(abs(v % 1 - 0.5) for v in values if v < 256) > 1e-7
        found = rescaled_activations(torch.arange(256.0), delta)
        assert found.tolist() == [min(255.0, np.floor(v + 0.5)) for v in values]
        assert found[0] == 0 and bool((found[1:] >= torch.arange(1.0, 256)).all())
    symbols = torch.tensor([-300.0, -2, -1, 0, 1, 2, 1000])
    assert rescaled(symbols, 6).tolist() == [-600, -4, -2, 0, 2, 4, 2000]
    assert rescaled(symbols, 3).tolist() == [-424, -3, -1, 0, 1, 3, 1414]
    assert rescaled(torch.tensor([float(1 << 19)]), 63).tolist() == [float(1 << 20)]


def test_levels_have_tables_of_their_own(model: HierarchicalModel) -> None:
    whole = model.tables.magnitudes[: tables.TABLES]
    found = with_own_tables(whole)
    assert found.shape == (tables.TABLES + 2 * OWN, whole.shape[1])
    assert np.array_equal(found[: tables.TABLES], whole)
    assert np.array_equal(found, model.tables.magnitudes)
    assert np.abs(found.sum(1) - 1).max() < 1e-9 and found.min() > 0
    zero, other = found[tables.TABLES : tables.TABLES + OWN, 0], found[-OWN:, 0]
    assert (np.diff(zero) <= 0).all()  # wider tables for larger indices
    assert other[1] > other[12] > other[17]
    index = torch.arange(0, 64).float().view(1, -1, 1)
    for delta in (*OWN_TABLES, 4, 12):
        for symbol in (0, 1, 2, 9):
            lower = torch.full_like(index, symbol)
            for least in (0, 1):
                at = Below.of(lower, delta).narrow(index, lower, torch.tensor([float(least)]))
                assert int(at.min()) >= least and int(at.max()) < len(found)
                coded = at[at > 0]
                own = delta in OWN_TABLES
                assert bool((coded >= tables.TABLES).all() if own else (at < tables.TABLES).all())
                assert not own or bool(((coded >= tables.TABLES + OWN) == (symbol > 0)).all())


def test_garbage_in_a_level_is_symbols_or_an_error(
    coded: list[Packet], model: HierarchicalModel
) -> None:
    info = read_packet(coded[0].data)
    rng = np.random.default_rng(5)
    for size in (0, 1, 40, 3000):
        data = [info.sections[0].data, rng.bytes(size)]
        try:
            model.parse(info.header.step, b"", data, (), FORMAT, (info.sections[1].qp,))
        except BitstreamError:
            continue
    assert DecodingCoder(model.tables, b"") is not None


# --- files -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def layered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("layers")
    film = make_film(folder / "film.mkv", frames=10, audio="aac")
    target = folder / "layered.mkv"
    options = ["--layers", "3", "--qp", "24", "--keyint", "5", "--preset", "ultrafast"]
    assert main(["encode", str(film), str(target), "-q", *options]) == 0
    return target


def video_packets(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(p) for p in container.demux(container.streams.video[0]) if p.size]


def test_thin_and_copy(layered: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name, words in (
        ("a.mkv", ["thin", "--layers", "1"]),
        ("b.nut", ["thin", "--layers", "1"]),
        ("c.mkv", ["transcode", "-c:v", "copy", "--layers", "1"]),
    ):
        target = tmp_path / name
        assert main([*words, str(layered), str(target), "-q"]) == 0
        assert video_packets(target) == [thin(data, 1) for data in video_packets(layered)]
        with av.open(str(target)) as container:
            assert len(container.streams.audio) == 1
        assert main(["verify", "-q", str(target)]) == 0
    again = tmp_path / "again.mkv"
    assert main(["thin", str(tmp_path / "a.mkv"), str(again), "-q", "--layers", "1"]) == 0
    assert video_packets(again) == video_packets(tmp_path / "a.mkv")
    capfd.readouterr()
    assert main(["info", "--json", str(layered)]) == 0
    (video,) = (s for s in json.loads(capfd.readouterr().out)["streams"] if s["kind"] == "video")
    sizes = [sum(len(thin(d, n)) for d in video_packets(layered)) for n in (1, 2, 3)]
    assert video["levels"] == sizes and sizes[2] == video["size"]
    assert main(["info", str(tmp_path / "a.mkv")]) == 0
    assert "with 2 quality" not in capfd.readouterr().out


def test_thin_to_a_bitrate(layered: Path, tmp_path: Path) -> None:
    sizes = [sum(len(thin(d, n)) for d in video_packets(layered)) for n in (1, 2, 3)]
    seconds = 10 / 24
    for share in (0.5, 1.3, 2.0):
        rate = round(8 * (sizes[0] + share / 2 * (sizes[2] - sizes[0])) / seconds)
        target = tmp_path / f"{share}.mkv"
        assert main(["thin", str(layered), str(target), "-q", "--bitrate", str(rate)]) == 0
        total = sum(map(len, video_packets(target)))
        assert sizes[0] <= total <= rate * seconds / 8 * 1.01  # times are in milliseconds
        assert share < 1 or total > sizes[0]


def test_thin_counts_gops_where_the_first_keyframe_is_lost(
    layered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = tmp_path / "lost.mkv"
    with vcfilter.open(layered) as source, vcfilter.open(lost, "w") as target:
        stream = source.streams.video[0]
        target.add_stream_from_template(stream)
        target.mux(list(source.demux(stream))[1:])
    packets = video_packets(lost)
    key = next(n for n, data in enumerate(packets) if read_packet(data).sequence is not None)
    assert key == 4
    monkeypatch.setattr(thinning, "_choose", lambda bitrate, gops, levels: [2, 1][: len(gops)])
    copy_file(lost, tmp_path / "thin.mkv", thinning=Thinning(bitrate=1000))
    wanted = [thin(data, 2 if n < key else 1) for n, data in enumerate(packets)]
    assert video_packets(tmp_path / "thin.mkv") == wanted


def test_thin_to_temporal_layers(layered: Path, tmp_path: Path) -> None:
    layers = [read_packet(data).header.step.layer for data in video_packets(layered)]
    for count in (1, 2):
        target = tmp_path / f"{count}.mkv"
        assert main(["thin", str(layered), str(target), "-q", "--temporal", str(count)]) == 0
        assert len(video_packets(target)) == sum(layer < count for layer in layers)
        assert main(["verify", "-q", str(target)]) == 0


def test_thin_refuses(layered: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    low = tmp_path / "low.mkv"
    options = ["-q", "--tune", "zerolatency", "--preset", "ultrafast", "-t", "0.1"]
    assert main(["encode", str(layered), str(low), *options]) == 0
    target = str(tmp_path / "out.mkv")
    for source, words, text in (
        (low, ["--temporal", "2"], "low delay"),
        (layered, [], "thinning needs layers, a bitrate or temporal layers"),
        (layered, ["--layers", "0"], "layers 0 is outside 1 to 8"),
        (layered, ["--bitrate", "5"], "bitrate 5 bit/s is below 1000"),
    ):
        capfd.readouterr()
        assert main(["thin", str(source), target, *words]) == 2
        found = capfd.readouterr().err
        assert text in found and found.count("\n") == 1
    assert not Path(target).exists()
    with pytest.raises(ConfigError):
        Thinning(temporal=9)


def test_decode_at_a_level(layered: Path, tmp_path: Path) -> None:
    sums = []
    for words in (["--layers", "1"], []):
        target = tmp_path / f"{len(words)}.mkv"
        assert main(["decode", str(layered), str(target), "-q", "-c:v", "ffv1", *words]) == 0
        with av.open(str(target)) as container:
            decoded = [f.to_ndarray() for f in container.decode(video=0)]
        assert len(decoded) == 10
        sums.append(decoded)
    assert any(not np.array_equal(a, b) for a, b in zip(*sums, strict=True))


@pytest.mark.slow
def test_evaluate(layered: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    film = make_film(tmp_path / "film.mkv", frames=5, width=192, height=176)
    folders = ["--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "out")]
    words = ["--layers", "2", "--qp", "26", "--preset", "ultrafast", "--keyint", "5"]
    assert main(["evaluate", str(film), *words, *folders]) == 0
    shown = capfd.readouterr().out
    assert "| temporal layer | frames | level 0 (qp 32)" in shown
    assert (tmp_path / "out" / "layers.md").read_text().strip() == shown.strip()
    cost = [line for line in shown.splitlines() if line.startswith("| film |")]
    assert len(cost) == 1 and cost[0].count("%") == 4
