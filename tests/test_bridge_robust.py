"""The bridge under bad input, failing output, interrupts and misuse: errors, no crash, no leak."""

from __future__ import annotations

import errno
import gc
import io
import os
import signal
import subprocess
import sys
import threading
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bridge_media import (
    NEURAL,
    merge,
    neural_packets,
    payloads,
    read_all,
    write_neural,
    write_sound,
)

from vcfilter._bridge import (
    BridgeError,
    BridgePacket,
    Chapter,
    Demuxer,
    InvalidDataError,
    Muxer,
    StreamInfo,
    supports,
)

ROOT = Path(__file__).parent.parent


def test_errors_of_opening(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.mkv: No such file or directory$") as caught:
        Demuxer(tmp_path / "none.mkv")
    assert isinstance(caught.value, BridgeError)
    assert caught.value.errno == errno.ENOENT
    with pytest.raises(FileNotFoundError):
        Muxer(tmp_path / "none" / "film.mkv")
    with pytest.raises(IsADirectoryError):
        Muxer(tmp_path)
    with pytest.raises(BridgeError):
        Demuxer(tmp_path)
    for name, content in {"empty": b"", "text": b"no film\n" * 99, "zeros": bytes(9999)}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BridgeError, match="Invalid data found"):
            Demuxer(tmp_path / name)
        with pytest.raises(BridgeError):
            Demuxer(io.BytesIO(content))
    with pytest.raises(InvalidDataError):
        Demuxer(io.BytesIO(b"RIFF"), format="matroska")
    with pytest.raises(BridgeError, match="no container named 'nope'"):
        Muxer(tmp_path / "film", "nope")
    with pytest.raises(BridgeError, match="no container named 'nope'"):
        Demuxer(tmp_path / "text", "nope")
    with pytest.raises(BridgeError, match="no container named 'nope'"):
        supports("nope", NEURAL)
    with pytest.raises(TypeError, match="neither a path nor a binary file"):
        Muxer(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="neither a path nor a binary file"):
        Demuxer(None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="null character"):
        Demuxer("a\0b")
    write_neural(tmp_path / "film.mkv")
    with pytest.raises(BridgeError, match="no option nonsense"):
        Demuxer(tmp_path / "film.mkv", options={"nonsense": "1"})


def test_containers_that_cannot_hold_the_track_say_so() -> None:
    muxer = Muxer(io.BytesIO(), "mp4")
    muxer.add_stream(NEURAL)
    with pytest.raises(BridgeError, match="not currently supported in container"):
        muxer.write_header()
    with pytest.raises(ValueError, match="closed"):
        muxer.write_header()


def test_misuse_is_refused() -> None:
    packet = neural_packets(1)[0]
    muxer = Muxer(io.BytesIO())
    with pytest.raises(ValueError, match="no stream was added"):
        muxer.write_header()
    with pytest.raises(BridgeError, match="knows no codec named 'nope'"):
        muxer.add_stream(StreamInfo(kind="audio", codec="nope"))
    muxer.add_stream(NEURAL)
    for start, end in ((-1, 5), (5, 1)):
        with pytest.raises(ValueError, match="not 0 <= start <= end"):
            muxer.add_chapter(Chapter(id=1, start=start, end=end, time_base=Fraction(1)))
    with pytest.raises(ValueError, match="between header and trailer"):
        muxer.write_packet(packet)
    muxer.write_header()
    with pytest.raises(ValueError, match="header is written already"):
        muxer.write_header()
    with pytest.raises(ValueError, match="header is written already"):
        muxer.add_stream(NEURAL)
    with pytest.raises(ValueError, match="header is written already"):
        muxer.add_chapter(Chapter(id=1, start=0, end=1, time_base=Fraction(1)))
    with pytest.raises(ValueError, match="stream 1 is not one of the 1"):
        muxer.stream_time_base(1)
    for index in (1, -1, 99):
        with pytest.raises(ValueError, match="is not one of"):
            muxer.write_packet(
                BridgePacket(stream_index=index, data=b"", pts=0, dts=0, time_base=Fraction(1))
            )
    with pytest.raises(ValueError, match="time base 0"):
        muxer.write_packet(
            BridgePacket(stream_index=0, data=b"", pts=0, dts=0, time_base=Fraction(0))
        )
    with pytest.raises(OverflowError):
        muxer.write_packet(
            BridgePacket(stream_index=0, data=b"", pts=1 << 70, dts=0, time_base=Fraction(1))
        )
    with pytest.raises(ValueError, match="40000 ms before zero"):
        muxer.write_packet(
            BridgePacket(stream_index=0, data=b"", pts=-40, dts=-40, time_base=Fraction(1))
        )
    with pytest.raises(ValueError, match="no pts and no dts"):
        muxer.write_packet(
            BridgePacket(stream_index=0, data=b"x", pts=None, dts=None, time_base=Fraction(1))
        )
    muxer.write_packet(packet)  # still usable
    muxer.close()
    muxer.close()
    muxer.abort()
    for call in (muxer.write_header, lambda: muxer.write_packet(packet), lambda: muxer.format_name):
        with pytest.raises(ValueError, match="closed"):
            call()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codec_tag": "VCF"}, "4 characters"),
        ({"width": -1}, "negative"),
        ({"kind": "smell"}, "is not one of"),
        ({"frame_rate": Fraction(1 << 40)}, "31 bits"),
    ],
)
def test_impossible_streams_are_refused(change: dict[str, Any], message: str) -> None:
    fields: dict[str, Any] = {
        "kind": "video",
        "codec_tag": "VCF1",
        "width": 64,
        "height": 48,
    } | change
    muxer = Muxer(io.BytesIO())
    with pytest.raises(ValueError, match=message):
        muxer.add_stream(StreamInfo(**fields))


def test_objects_without_init_are_closed() -> None:
    for empty in (Muxer.__new__(Muxer), Demuxer.__new__(Demuxer)):
        empty.close()
        with pytest.raises(ValueError, match="closed"):
            _ = empty.format_name
        assert "closed" in repr(empty)
    muxer = Muxer(io.BytesIO())
    with pytest.raises(RuntimeError, match="initialised already"):
        muxer.__init__(io.BytesIO())  # type: ignore[misc]


def test_unknown_muxer_option() -> None:
    muxer = Muxer(io.BytesIO(), options={"nonsense": "1"})
    muxer.add_stream(NEURAL)
    with pytest.raises(BridgeError, match="no option nonsense"):
        muxer.write_header()


def test_seeking_where_there_is_nothing() -> None:
    file = io.BytesIO()
    write_neural(file)
    file.seek(0)
    with Demuxer(file) as demuxer:
        with pytest.raises(BridgeError, match="no place to seek to at 99000 in stream 0"):
            demuxer.seek(0, 99_000, backward=False)
        with pytest.raises(ValueError, match="stream 1 is not one of"):
            demuxer.seek(1, 0)
        demuxer.seek(0, 0)
        assert demuxer.read_packet() is not None


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="/dev/full is Linux's")
@pytest.mark.parametrize("count", [1, 2000])
@pytest.mark.parametrize("how", ["path", "file object"])
def test_a_full_disk_is_an_error(count: int, how: str) -> None:
    with open("/dev/full", "wb", buffering=0) as full, pytest.raises(OSError) as caught:
        write_neural("/dev/full" if how == "path" else full, count=count)
    assert caught.value.errno == errno.ENOSPC


def test_a_reader_that_leaves_is_an_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with pytest.raises(BrokenPipeError):
        write_neural(f"pipe:{writing}", count=2000)
    with pytest.raises(BrokenPipeError), os.fdopen(writing, "wb", buffering=0) as pipe:
        write_neural(pipe, count=2000)


class Fails(io.BytesIO):
    """Fails on the nth use, with the given exception."""

    def __init__(self, content: bytes, uses: int, exception: BaseException) -> None:
        super().__init__(content)
        self.uses, self.exception = uses, exception

    def _use(self) -> None:
        self.uses -= 1
        if self.uses < 0:
            raise self.exception

    def read1(self, size: int | None = -1, /) -> bytes:
        self._use()
        return super().read1(min(size or 0, 500))

    def write(self, data: Any, /) -> int:
        self._use()
        return super().write(data)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        self._use()
        return super().seek(offset, whence)


@pytest.mark.parametrize("exception", [KeyboardInterrupt(), OSError(5, "cable"), ValueError("odd")])
def test_exceptions_of_file_objects_come_through(exception: BaseException) -> None:
    file = io.BytesIO()
    write_neural(file, count=200)
    for uses in range(0, 60, 3):
        with pytest.raises(type(exception)) as caught:
            list(Demuxer(Fails(file.getvalue(), uses, exception)))
        assert caught.value is exception
    for uses in range(4):
        with pytest.raises(type(exception)) as caught:
            write_neural(Fails(b"", uses, exception), count=200)
        assert caught.value is exception


@pytest.mark.parametrize("answer", [None, "text", b"x" * 100_000, 1 << 40])
def test_file_objects_that_answer_nonsense(answer: Any) -> None:
    class Odd:
        def read(self, size: int) -> Any:
            return answer

    class OddTarget:
        def write(self, data: memoryview) -> Any:
            return -3 if isinstance(answer, bytes) else answer

    with pytest.raises((OSError, ValueError, TypeError)):
        Demuxer(Odd())
    with pytest.raises((OSError, ValueError, TypeError)):
        write_neural(OddTarget(), count=2000)


def test_calls_from_within_a_callback_are_refused() -> None:
    class Reenters(io.BytesIO):
        muxer: Muxer | None = None

        def write(self, data: Any, /) -> int:
            assert self.muxer is not None
            for call in (muxer.close, muxer.abort, lambda: muxer.format_name):
                with pytest.raises(RuntimeError, match="in use"):
                    call()
            return super().write(data)

    file = Reenters()
    file.muxer = Muxer(file)
    with file.muxer as muxer:
        muxer.add_stream(NEURAL)
        muxer.write_header()
        muxer.write_packet(neural_packets(1)[0])
    assert len(file.getvalue()) > 500


def test_an_exception_in_the_block_abandons_the_file(tmp_path: Path) -> None:
    path = tmp_path / "film.mkv"
    with pytest.raises(ZeroDivisionError), Muxer(path) as muxer:
        muxer.add_stream(NEURAL)
        muxer.write_header()
        muxer.write_packet(neural_packets(1)[0])
        _ = 1 / 0
    with pytest.raises(ValueError, match="closed"):
        muxer.write_header()
    write_neural(tmp_path / "whole.mkv", count=1)
    assert path.stat().st_size < (tmp_path / "whole.mkv").stat().st_size


INTERRUPTED = """
import os, sys
sys.path.insert(0, {tests!r})
from bridge_media import NEURAL, neural_packets, write_neural
from vcfilter._bridge import Demuxer
reading, writing = os.pipe()
print("ready", flush=True)
try:
    {call}
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@pytest.mark.parametrize(
    "call",
    [
        'write_neural(f"pipe:{writing}", count=2000)',
        'write_neural(os.fdopen(writing, "wb", buffering=0), count=2000)',
        'Demuxer(f"pipe:{reading}")',
        'Demuxer(os.fdopen(reading, "rb"))',
    ],
)
def test_ctrl_c_stops_blocked_input_and_output(call: str) -> None:
    code = INTERRUPTED.format(tests=str(Path(__file__).parent), call=call)
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(0.7)  # it blocks
        child.send_signal(signal.SIGINT)
        output, _ = child.communicate(timeout=10)
    finally:
        child.kill()
    assert output == "interrupted\n"
    assert child.returncode == 0


def test_two_threads_do_not_meet_in_one_object() -> None:
    packets = neural_packets(300)
    file = io.BytesIO()
    muxer = Muxer(file)
    muxer.add_stream(NEURAL)
    muxer.write_header()
    written: list[BridgePacket] = []

    def write(mine: list[BridgePacket]) -> None:
        for packet in mine:
            try:
                muxer.write_packet(packet)
                written.append(packet)
            except (RuntimeError, BridgeError):  # in use, or later than the other thread's
                pass

    threads = [threading.Thread(target=write, args=(packets[n::2],)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    muxer.close()
    file.seek(0)
    assert sorted(payloads(read_all(file))) == sorted(payloads(written))


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("film")
    sound = write_sound(folder / "sound.m4a", "aac", seconds=1)
    note = StreamInfo(kind="attachment", extradata=b"n" * 50, metadata={"filename": "n"})
    merge(folder / "film.mkv", [sound], attachments=[note])
    return (folder / "film.mkv").read_bytes()


def read_hostile(content: bytes) -> None:
    """Read everything there is; errors are fine, crashes and hangs are not."""
    try:
        with Demuxer(io.BytesIO(content)) as demuxer:
            _ = demuxer.chapters, demuxer.metadata, demuxer.streams
            for count, _packet in enumerate(demuxer):
                assert count < 10_000
            demuxer.seek(0, 500)
            demuxer.read_packet()
    except BridgeError as error:
        assert str(error)


def test_every_truncation_is_survived(film: bytes) -> None:
    for size in [*range(0, 1200, 7), *range(1200, len(film), 997)]:
        read_hostile(film[:size])


def test_random_damage_is_survived(film: bytes) -> None:
    random = np.random.default_rng(3)
    for n in range(300):
        damaged = bytearray(film)
        # half of them in the headers, where the lengths are
        end = len(film) if n % 2 else 1500
        for place in random.integers(0, end, int(random.integers(1, 9))):
            damaged[place] = random.integers(256)
        read_hostile(bytes(damaged))


def resident_kib() -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads Linux's /proc")
def test_200_cycles_leave_nothing(tmp_path: Path) -> None:
    path = tmp_path / "film.mkv"
    packets = neural_packets(30)
    big = StreamInfo(
        kind="video", codec_tag="VCF1", width=64, height=48, extradata=bytes(100_000), rotation=90
    )

    def cycle() -> None:
        for target in (path, io.BytesIO()):
            with Muxer(target) as muxer:  # a whole file
                muxer.add_stream(big)
                muxer.add_chapter(Chapter(id=1, start=0, end=9, time_base=Fraction(1)))
                muxer.metadata["title"] = "t" * 1000
                muxer.write_header()
                for packet in packets:
                    muxer.write_packet(packet)
        with Demuxer(path) as demuxer:
            assert len(list(demuxer)) == len(packets)
        Demuxer(path).read_packet()  # not closed
        abandoned = Muxer(path)  # header and packets in the queue, no trailer
        abandoned.add_stream(big)
        abandoned.add_stream(big)
        abandoned.write_header()
        abandoned.write_packet(packets[0])
        del abandoned
        Muxer(io.BytesIO()).add_stream(big)  # no header
        with pytest.raises(BridgeError):
            Demuxer(io.BytesIO(bytes(100_000)))
        with pytest.raises(BridgeError), Muxer(io.BytesIO(), "mp4") as muxer:
            muxer.add_stream(big)
            muxer.write_header()
        supports("matroska", big)
        supports("mp4", big)
        with pytest.raises(ValueError, match="negative"):
            Muxer(io.BytesIO()).add_stream(StreamInfo(kind="video", width=-1))

    for _ in range(20):
        cycle()
    gc.collect()
    files, before = len(os.listdir("/proc/self/fd")), resident_kib()
    for _ in range(200):
        cycle()
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == files
    # one lost 100 kB header per cycle would be 20 MB
    assert resident_kib() - before < 4000


def test_the_build_says_what_is_missing(tmp_path: Path) -> None:
    command = [sys.executable, "setup.py", "--version"]
    environment = {**os.environ, "PATH": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("vcfilter needs pkg-config")
    environment = {**os.environ, "PKG_CONFIG_LIBDIR": str(tmp_path), "PKG_CONFIG_PATH": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "development files of FFmpeg 5.1 or newer" in done.stderr.splitlines()[-1]
