"""The train command from nothing to a file: killed and resumed, stopped, in two processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any, ClassVar

import av
import numpy as np
import pytest
import torch
from clips import make_film
from safetensors.torch import load_file

from vcfilter.cli import main as cli
from vcfilter.cli.interrupts import Interrupts
from vcfilter.train import cli as train_cli
from vcfilter.train import plot, watch
from vcfilter.train.cli import plan_of
from vcfilter.train.loop import Trainer, train
from vcfilter.train.machine import Processes
from vcfilter.train.plan import Figures
from vcfilter.train.watch import Guard, Log, TrainingError, read_log, stopping

STEPS = 6


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three ordinary videos."""
    folder = tmp_path_factory.mktemp("films")
    make_film(folder / "a.mkv", frames=14, width=96, height=64, audio="flac")
    make_film(folder / "b.mp4", frames=14, width=98, height=66, codec="libx264", cut_at=6)
    make_film(folder / "c.avi", frames=14, width=97, height=65, codec="mpeg4")
    return folder


def command(films: Path, out: Path, *more: str) -> list[str]:
    given = ["--data", str(films), "--out", str(out), "--cache", str(films / "cache")]
    own = ["--device", "cpu", "--threads", "1", "--steps", str(STEPS), "--log-every", "2"]
    return ["train", *given, *own, *more]


def start(arguments: list[str], *launcher: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    line = [sys.executable, *(launcher or ("-m", "vcfilter")), *arguments]
    return subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )


def wait_for_step(log: Path, process: subprocess.Popen[str], step: int) -> None:
    """Until the log tells of a step."""
    limit = time.monotonic() + 900
    while not (log.exists() and any(row["step"] >= step for row in read_log(log))):
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < limit
        time.sleep(0.02)


@pytest.fixture(scope="module")
def undisturbed(films: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """From nothing, in one command."""
    out = tmp_path_factory.mktemp("run") / "w.safetensors"
    assert cli.main(command(films, out)) == 0
    return out


@pytest.mark.slow
def test_from_nothing_to_a_file_that_encode_takes(
    undisturbed: Path, films: Path, tmp_path: Path
) -> None:
    rows = read_log(Path(f"{undisturbed}.jsonl"))
    assert [row["step"] for row in rows] == [2, 4, 6]
    assert {"key", "group_key", "inter1"} <= set(rows[0])
    assert ET.parse(f"{undisturbed}.svg").getroot().tag.endswith("svg")
    names = {p.name for p in undisturbed.parent.iterdir()}
    assert names == {f"w.safetensors{end}" for end in ("", ".state", ".jsonl", ".svg")}
    coded, back = tmp_path / "a.mkv", tmp_path / "back.mkv"
    weights = ["--model", str(undisturbed)]
    encode = ["encode", str(films / "a.mkv"), str(coded), "--preset", "ultrafast", "-q"]
    assert cli.main([*encode, *weights]) == 0
    assert cli.main(["decode", str(coded), str(back), "-q", *weights]) == 0
    assert coded.stat().st_size > 0 and back.stat().st_size > 0


@pytest.mark.slow
def test_killed_and_resumed_gives_the_same_weights(
    undisturbed: Path, films: Path, tmp_path: Path
) -> None:
    out = tmp_path / "w.safetensors"
    process = start(command(films, out, "--keep", "0"))
    wait_for_step(Path(f"{out}.jsonl"), process, 2)
    process.kill()
    process.communicate()
    assert not out.exists()
    done = torch.load(f"{out}.state", weights_only=True)["step"]
    assert 1 <= done < STEPS, "killed too late for this test to tell anything"
    again = start(command(films, out))
    text, _ = again.communicate(timeout=600)
    assert again.returncode == 0, text
    assert f"going on from step {done}" in text and "classical start" not in text
    one, two = load_file(undisturbed), load_file(out)
    assert one.keys() == two.keys()
    assert [name for name in one if not torch.equal(one[name], two[name])] == []
    steps = [row["step"] for row in read_log(Path(f"{out}.jsonl"))]
    assert steps == [2, 4, 6]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_keeps_the_state(
    films: Path, tmp_path: Path, undisturbed: Path, number: int
) -> None:
    out = tmp_path / "w.safetensors"
    more = ("--model", str(undisturbed), "--keep", "1000")
    process = start([*command(films, out, *more), "--steps", "500"])
    wait_for_step(Path(f"{out}.jsonl"), process, 2)
    process.send_signal(number)
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + number, text
    assert "stopped; what was done is in" in text and "Traceback" not in text
    assert torch.load(f"{out}.state", weights_only=True)["step"] >= 2
    assert not out.exists()


@pytest.mark.slow
def test_another_training_s_state_is_refused(
    undisturbed: Path, films: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = command(films, undisturbed)
    assert cli.main([*arguments, "--steps", "7"]) == 2
    assert "belongs to a training with plan 'joint:6', not 'joint:7'" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_do_what_one_does_with_the_double_batch(
    undisturbed: Path, films: Path, tmp_path: Path
) -> None:
    """Equal figures at the first step; after three, weights within 10 % of the way they went.

    Sums over the batch are taken in another order, so gradients differ in their last bits, and
    AdamW's first steps make equally large steps of small gradients: where one is near zero, its
    sign may differ; and a coefficient may be rounded the other way. Seen: 0.007 to 2.1 %.
    """
    states = {}
    for name, launcher, batch in (
        ("one", ("-m", "vcfilter"), "2"),
        (
            "two",
            (
                *("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
                *("-m", "vcfilter"),
            ),
            "1",
        ),
    ):
        out = tmp_path / f"{name}.safetensors"
        more = ("--model", str(undisturbed), "--batch", batch, "--log-every", "1")
        arguments = [*command(films, out, *more), "--steps", "3"]
        process = start(arguments, *launcher)
        text, _ = process.communicate(timeout=600)
        assert process.returncode == 0, text
        assert text.count("verified on") == 1, text
        states[name] = torch.load(f"{out}.state", weights_only=True)
        states[name]["log"] = read_log(Path(f"{out}.jsonl"))
    first, second = states["one"]["log"][0], states["two"]["log"][0]
    for key in first.keys() - {"seconds", "phase"}:
        assert first[key] == pytest.approx(second[key], rel=1e-5, abs=2e-4), key
    begin = load_file(undisturbed)
    way = apart = 0.0
    for name, value in states["one"]["net"].items():
        if name in begin:
            way += float((value - begin[name]).double().square().sum())
            apart += float((value - states["two"]["net"][name]).double().square().sum())
    assert way > 0 and (apart / way) ** 0.5 < 0.1, (apart / way) ** 0.5


@pytest.mark.slow
def test_a_plan_broken_off_in_its_second_phase_ends_alike(
    undisturbed: Path, films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[dict[str, torch.Tensor]] = []
    monkeypatch.setattr(train_cli, "finish", lambda *given: ended.append(given[3].state_dict()))
    plan = ("--phase", "interpolation", "image", "--steps", "2", "2", "--keep", "0")
    more = ("--model", str(undisturbed), *plan)
    assert cli.main(command(films, tmp_path / "whole", *more)) == 0
    step = Trainer.run_step

    def fails(self: Trainer) -> dict[str, float]:
        if self.phase.name == "image" and self.step == 1:
            raise RuntimeError("the power went out")
        return step(self)

    with monkeypatch.context() as inside:
        inside.setattr(Trainer, "run_step", fails)
        assert cli.main(command(films, tmp_path / "broken", *more)) == 1
    assert cli.main(command(films, tmp_path / "broken", *more)) == 0
    one, two = ended
    assert [name for name in one if not torch.equal(one[name], two[name])] == []
    begin = load_file(undisturbed)
    moved = {name.split(".")[0] for name in one if not torch.equal(one[name], begin[name])}
    assert moved == {"motion", "image", "prediction"}


def test_wrong_usage_is_one_sentence(
    films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for more, message in (
        (["--steps", "-1"], "steps -1 is below 0"),
        (["--phase", "keyframes", "joint", "--steps", "1", "2", "3"], "3 numbers of steps"),
        (["--batch", "0"], "batch 0 is not positive"),
        (["--out", str(tmp_path / "no" / "w.safetensors")], "there is no folder"),
    ):
        assert cli.main([*command(films, tmp_path / "w.safetensors"), *more]) == 2
        assert message in capsys.readouterr().err


def test_plans_name_rows_and_steps() -> None:
    plan = plan_of(["interpolation", "image"], [3])
    assert [(phase.name, steps) for phase, steps in plan] == [("interpolation", 3), ("image", 3)]


def test_guard_sees_what_is_not_finite() -> None:
    with pytest.raises(TrainingError, match="'key' is nan at step 3"):
        Guard().check({"key": float("nan")}, 3)


def test_guard_sees_a_jump_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    guard, noisy = Guard(), rng.normal(0, 0.6, 400)
    for step, value in enumerate(noisy):
        assert guard.check({"key": 1 - step / 400 + value}, step)
    with pytest.raises(TrainingError, match="jumped from"):
        calm = []
        for step in range(400, 420):
            calm.append(guard.check({"key": 6.0}, step))
    assert calm and not calm[-1], "a state was kept while the loss was on its way up"


def test_guard_goes_on_from_its_state() -> None:
    guard, other = Guard(), Guard()
    for step in range(60):
        guard.check({"key": 0.0}, step)
    other.restore(json.loads(json.dumps(guard.state())))
    with pytest.raises(TrainingError):
        for step in range(60, 71):
            other.check({"key": 3.0}, step)


@pytest.mark.slow
def test_a_jump_keeps_the_last_good_state(
    undisturbed: Path,
    films: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    check = Guard.check

    def broken(self: Guard, figures: dict[str, float], step: int) -> bool:
        value = float("inf") if step == 4 else 0.0
        return check(self, {**figures, "key": value}, step)

    monkeypatch.setattr(watch.Guard, "check", broken)
    out = tmp_path / "w.safetensors"
    assert cli.main(command(films, out, "--keep", "0", "--model", str(undisturbed))) == 1
    told = capsys.readouterr().err
    assert "'key' is inf at step 4; the last good state, of step 3, is in" in told
    assert torch.load(f"{out}.state", weights_only=True)["step"] == 3
    assert not out.exists()


def test_the_log_drops_what_lies_beyond_the_resumed_step(tmp_path: Path) -> None:
    path = tmp_path / "log"
    book = Log(path, "joint", 0, 2, False, 0)
    for step in range(1, 9):
        book.add({"key": float(step)}, step, 100, 0.1)
    with path.open("a") as file:
        file.write('{"step": 1')  # cut off by a kill
    again = Log(path, "joint", 0, 2, False, 5)
    assert [row["step"] for row in read_log(path)] == [2, 4]
    again.sums = {"key": [5.0]}
    again.add({"key": 6.0}, 6, 100, 0.1)
    assert read_log(path)[-1]["key"] == 5.5


def test_the_second_signal_is_obeyed() -> None:
    former = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), stopping() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.asked == signal.SIGINT
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
    assert signal.getsignal(signal.SIGINT) is former


def test_the_exit_status_tells_the_signal_that_was_noted() -> None:
    with Interrupts() as interrupts:
        with stopping() as stop:
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.asked == signal.SIGTERM
        assert interrupts.status(stop.interrupt(Path("state"))) == 143
    assert interrupts.status(KeyboardInterrupt()) == 130


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    former = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stopping() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.asked is None
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, former)


def test_the_curves_of_several_phases_stand_side_by_side(tmp_path: Path) -> None:
    rows = [
        {"phase": p, "number": n, "step": s, "key": 1.0 / s, "key_bpp": 0.1, "seconds": 1.0}
        for n, p in enumerate(("keyframes", "joint"))
        for s in range(10, 1001, 10)
    ]
    found = plot.curves(rows)
    assert set(found) == {"key"} and found["key"][-1][0] == 2000
    plot.draw(rows, tmp_path / "c.svg", "curves <of> two")
    root = ET.parse(tmp_path / "c.svg").getroot()
    lines = [e for e in root.iter() if e.get("id", "").startswith("line2d")]
    assert len(lines) > 4 and len(list(root.iter())) > 50


def test_minutes_that_are_over_count_from_the_first_step_on(tmp_path: Path) -> None:
    """A stage of the training, and the rate, follow from the share that is done."""

    class Fake:
        step, steps, share, title, delay = 7, 9, 0.0, "fake", 1
        processes = Processes()
        shares: ClassVar[list[float]] = []

        def run_step(self) -> Figures:
            self.shares.append(self.share)
            self.step += 1
            time.sleep(0.3)
            return Figures(("key",), torch.zeros(2))

        def save(self, path: Path, notes: dict[str, Any] | None = None) -> None:
            torch.save(notes, path)

        def save_average(self, path: Path) -> None:
            raise AssertionError

    state = tmp_path / "state"
    goes_on = {"seconds": 59.0}
    train(Fake(), state, tmp_path / "log", goes_on=goes_on, minutes=1)  # type: ignore[arg-type]
    assert 59 / 60 <= min(Fake.shares) < max(Fake.shares) <= 1
    assert torch.load(state)["seconds"] >= 60


def minutes_of(films: Path, out: Path, *more: str) -> list[str]:
    own = [
        "--minutes",
        "0.1",
        "--steps",
        "5000",
        "--model",
        "default",
        "--no-freeze",
        "--keep",
        "2",
    ]
    return [*command(films, out), *own, *more]


@pytest.mark.slow
def test_minutes_end_in_time_and_another_machine_writes_the_file(
    films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "w.safetensors"
    begun = time.monotonic()
    assert cli.main(minutes_of(films, out)) == 0
    assert time.monotonic() - begun < 6 + 60  # a step, and what comes before the first
    steps = [row["step"] for row in read_log(Path(f"{out}.jsonl"))]
    assert steps and steps[-1] < 5000
    average = Path(f"{out}.average")
    assert average.exists() and not out.exists()
    home = tmp_path / "home.safetensors"
    again = ["--steps", "0", "--model", str(average)]
    assert cli.main([*command(films, home), *again]) == 0
    assert "verified on" in capsys.readouterr().err
    ours, theirs = load_file(home), load_file(average)
    assert [k for k in theirs if k != "tables" and not torch.equal(ours[k], theirs[k])] == []
    assert not torch.equal(ours["tables"], theirs["tables"])
    for more in (["--phase", "image", "joint"], ["--steps", "0"]):
        assert cli.main(minutes_of(films, out, *more)) == 2


@pytest.mark.slow
def test_a_pack_for_a_gpu_machine_runs_on_a_cpu(tmp_path: Path) -> None:
    root = Path(__file__).parents[1]
    data, packed, out = tmp_path / "data", tmp_path / "pack", tmp_path / "out"
    data.mkdir()
    make_film(data / "long.mkv", frames=150, width=320, height=240)
    make_film(data / "short.mp4", frames=30, width=96, height=64, codec="libx264")
    size = (data / "long.mkv").stat().st_size
    program = [sys.executable, str(root / "benchmarks" / "gpu_pack.py"), "--wheels"]
    weights = sum(p.stat().st_size for p in (root / "vcfilter" / "weights").glob("*.safetensors"))
    limit = max(weights / 2**20 + 1.5, size / 1.5 / 2**20)
    given = ["--data", str(data), "--out", str(packed), "--limit", str(limit)]
    done = subprocess.run(
        [*program, *given, "--options", "--model default --device cpu --threads 1"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    parts = sorted(packed.glob("part-*"))
    for part in parts:
        held = sum(p.stat().st_size for p in part.rglob("*") if p.is_file())
        assert held <= limit * 2**20
    frames = 0
    for path in packed.rglob("long*.mkv"):
        with av.open(str(path)) as piece:
            frames += sum(1 for _ in piece.decode(video=0))
    assert frames == 150
    environment = {**os.environ, "SMOKE": "0.05", "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["sh", str(parts[0] / "run.sh"), str(out), "150"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (out / "gpu.average").exists() and not list(out.glob("smoke*"))
    again = subprocess.run([*program, *given], capture_output=True, text=True, check=False)
    assert again.returncode != 0 and "exists" in again.stderr
