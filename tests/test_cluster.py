"""GOPs coded on a Dask cluster: the bytes of one process, whatever happens to workers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import pytest
from clips import make_film
from small_model import write_small_model

from vcfilter import EncoderOptions, encode_file
from vcfilter.codec import cluster
from vcfilter.errors import ConfigError, MediaError
from vcfilter.stream.report import Progress

distributed = pytest.importorskip("distributed")

OPTIONS = EncoderOptions(qp=34, preset="ultrafast", keyint=5)


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a small model that workers find, too."""
    monkeypatch.setenv("VCFILTER_MODELS", str(tmp_path / "models"))
    (tmp_path / "models").mkdir()
    write_small_model(tmp_path / "models" / "small.safetensors")
    return str(tmp_path / "models" / "small.safetensors")


@pytest.fixture
def threads() -> Iterator[Any]:
    """A cluster within this process."""
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None
    ) as found:
        yield found


def packets(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(video=0) if packet.size]


def test_bytes_are_those_of_one_process(threads: Any, small: str, tmp_path: Path) -> None:
    film = make_film(tmp_path / "in.mkv", frames=18)
    options = EncoderOptions(qp=34, preset="ultrafast", keyint=5, model=small)
    encode_file(film, tmp_path / "one.mkv", options)
    encode_file(film, tmp_path / "many.mkv", options, cluster=threads.scheduler_address)
    assert packets(tmp_path / "many.mkv") == packets(tmp_path / "one.mkv")


def test_a_worker_of_another_version_is_refused(
    threads: Any, small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = iter(["vcfilter 2", "vcfilter 1"])
    monkeypatch.setattr(cluster, "describe", lambda _: next(versions))
    film = make_film(tmp_path / "in.mkv", frames=3)
    with pytest.raises(ConfigError, match=r"has vcfilter 1, here is vcfilter 2"):
        encode_file(film, tmp_path / "out.mkv", OPTIONS, cluster=threads.scheduler_address)
    assert not (tmp_path / "out.mkv").exists()


def test_what_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    film = make_film(tmp_path / "in.mkv", frames=3)
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 1)
    address = "tcp://127.0.0.1:9"
    with pytest.raises(MediaError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:9"):
        encode_file(film, tmp_path / "out.mkv", OPTIONS, cluster=address)
    with pytest.raises(ConfigError, match="give one of them"):
        encode_file(film, tmp_path / "out.mkv", OPTIONS, cluster=address, workers=2)
    with pytest.raises(ConfigError, match="a cluster codes at a constant qp"):
        encode_file(film, tmp_path / "out.mkv", EncoderOptions(bitrate=90_000), cluster=address)
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ConfigError, match="needs Dask"):
        encode_file(film, tmp_path / "out.mkv", OPTIONS, cluster=address)


@pytest.mark.slow
def test_a_worker_that_is_killed_costs_its_gops_alone(tmp_path: Path) -> None:
    film = make_film(tmp_path / "in.mkv", frames=60)
    encode_file(film, tmp_path / "one.mkv", OPTIONS)
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None
        ) as found,
        distributed.Client(found.scheduler_address, set_as_default=False) as client,
    ):
        living = list(client.run(os.getpid).values())

        def kill_one(_: Progress) -> None:
            if len(living) == 2 and list((tmp_path).glob("many*")):
                os.kill(living.pop(), signal.SIGKILL)

        encode_file(
            film,
            tmp_path / "many.mkv",
            OPTIONS,
            cluster=found.scheduler_address,
            progress=kill_one,
        )
        assert len(living) == 1
    assert packets(tmp_path / "many.mkv") == packets(tmp_path / "one.mkv")


@pytest.mark.slow
def test_a_coordinator_that_is_killed_is_resumed(tmp_path: Path) -> None:
    film = make_film(tmp_path / "in.mkv", frames=120)
    encode_file(film, tmp_path / "one.mkv", OPTIONS)
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None
    ) as found:
        command = [
            sys.executable, "-m", "vcfilter", "encode", str(film), str(tmp_path / "many.mkv"),
            "--qp", "34", "--preset", "ultrafast", "--keyint", "5", "--resume",
            "--cluster", found.scheduler_address,
        ]  # fmt: skip
        run = subprocess.Popen([*command, "-q"])
        part = tmp_path / "many.part.mkv"
        end = time.monotonic() + 120
        while not (part.exists() and part.stat().st_size > 3000) and time.monotonic() < end:
            time.sleep(0.02)
        run.kill()
        run.wait()
        assert not (tmp_path / "many.mkv").exists()
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "resumed" in done.stderr or "taken" in done.stderr or "finished" in done.stderr
    assert packets(tmp_path / "many.mkv") == packets(tmp_path / "one.mkv")
