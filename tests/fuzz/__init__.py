"""Fuzz targets: each a module with `seeds()`, valid inputs, and `run(data)`, which raises nothing
but what a caller may expect, whatever the bytes. `python -m fuzz` runs them.

This module imports nothing of vcfilter: what is imported before a target is not instrumented.
"""

from __future__ import annotations

import random
import subprocess
import tempfile
import weakref
import zlib
from collections.abc import Callable
from pathlib import Path

TARGETS = ("bitstream", "decoder", "bridge", "worker", "sequence", "client")

MARKS: list[Callable[[], None]] = []
"""Functions whose calls the fuzzer sees; empty where it is led by nothing."""


def outcome(*values: object) -> None:
    """Tell the fuzzer what came of an input, where the code that read it is not instrumented."""
    if MARKS:
        MARKS[zlib.crc32(repr(values).encode()) % len(MARKS)]()


def records(data: bytes, head: int) -> list[tuple[bytes, bytes]]:
    """(head, body) of records: a head of so many bytes, two bytes of length, a body."""
    found = []
    start = 0
    while start + head + 2 <= len(data):
        end = start + head + 2
        size = int.from_bytes(data[end - 2 : end], "big")
        found.append((data[start : start + head], data[end : end + size]))
        start = end + size
    return found


def record(head: bytes, body: bytes) -> bytes:
    """The bytes of one record."""
    return head + len(body).to_bytes(2, "big") + body


def mutated(data: bytes, source: random.Random, others: list[bytes]) -> bytes:
    """Input with a few places changed, without knowledge of what it means."""
    result = bytearray(data)
    for _ in range(source.choice((1, 1, 2, 3, 8))):
        place = source.randrange(len(result) + 1)
        size = source.choice((1, 1, 2, 4, 16, 64))
        kind = source.randrange(6)
        if kind == 0 and place < len(result):
            result[place] ^= 1 << source.randrange(8)
        elif kind == 1:
            result[place : place + size] = source.randbytes(size)
        elif kind == 2:
            del result[place : place + size]
        elif kind == 3:
            result[place:place] = result[place : place + size]
        elif kind == 4:
            result[place : place + 1] = bytes((source.choice((0, 1, 127, 128, 255)),))
        else:
            other = source.choice(others)
            begin = source.randrange(len(other) + 1)
            result[place : place + size] = other[begin : begin + size]
    return bytes(result)


class Program:
    """A program in C, built with sanitizers: any fault of memory, or a leak, ends it.

    Args:
        main: its file in tests/c.
        pattern: of the other files, in ffmpeg_bridge/ffmpeg.
        words: of its command line; "FOLDER" becomes one of its own.
    """

    def __init__(self, main: str, pattern: str, *words: str) -> None:
        root = Path(__file__).resolve().parent.parent.parent
        library = root / "ffmpeg_bridge" / "ffmpeg"
        self._folder = tempfile.TemporaryDirectory(prefix="vcfilter-fuzz-")
        path = Path(self._folder.name) / "program"
        flags = ["-std=gnu11", "-g", "-O1", "-fsanitize=address,undefined"]
        files = [root / "tests" / "c" / main, *sorted(library.glob(pattern))]
        command = ["gcc", *flags, "-fno-sanitize-recover=all", f"-I{library}", *map(str, files)]
        subprocess.run([*command, "-o", str(path), "-pthread"], check=True)
        self._process = subprocess.Popen(
            [str(path), *(word.replace("FOLDER", self._folder.name) for word in words)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        weakref.finalize(self, _end, self._process)

    def ask(self, data: bytes) -> str:
        """The line that comes back for some bytes; the sanitizers' report is on standard error."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(data)
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line.endswith(b"\n"), f"it ended with status {self._process.wait()}"
        return line[:-1].decode("utf-8", "replace")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a program: leaks are found then."""
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(60) == 0, f"it ended with status {process.returncode}"
