"""What decoding through FFmpeg's plugin costs beside `vcfilter decode` of the same film.

    python benchmarks/plugin.py film.mkv --threads 1 --json plugin.json

Both write the same raw pictures to a pipe. That they are the same is checked before anything is
timed; then the two take turns, so that whatever else the machine does falls on both. Wall time and
the processor time of all processes are told. FFmpeg is run with a worker that it starts, as Python
starts its networks, and with one that is kept warm.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

FOLDER = os.environ.get("VCFILTER_FFMPEG", "~/.cache/vcfilter/ffmpeg")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Of one run, in seconds.

    Args:
        wall: from start to end.
        cpu: user and system time of all its processes, a warm worker's included.
    """

    wall: float
    cpu: float


def run(
    command: list[str], environment: dict[str, str], worker: int | None = None
) -> tuple[Cost, str]:
    """Run a command; its cost, and a hash of what it writes.

    Args:
        worker: process whose time counts too.
    """
    began = time.perf_counter()
    before = _children_seconds() + _seconds_of(worker)
    digest = hashlib.md5()
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        while data := process.stdout.read(1 << 20):
            digest.update(data)
    if process.returncode:
        raise SystemExit(f"{shlex.join(command)} failed")
    wall = time.perf_counter() - began
    cost = Cost(wall=wall, cpu=_children_seconds() + _seconds_of(worker) - before)
    return cost, digest.hexdigest()


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _seconds_of(pid: int | None) -> float:
    if pid is None:
        return 0.0
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(film: str, ffmpeg: str, threads: int, repeats: int) -> dict[str, object]:
    """Medians of both ways, and their ratios within each round."""
    python = [sys.executable, "-m", "vcfilter"]
    ours = [*python, "decode", film, "-", "-f", "rawvideo", "-q", "--threads", str(threads)]
    theirs = [ffmpeg, "-v", "error", "-i", film, "-map", "0:v", "-f", "rawvideo", "-"]
    worker = [*python, "worker", "--threads", str(threads)]
    plain = {k: v for k, v in os.environ.items() if k != "VCFILTER_WORKER_SOCKET"}
    plain["VCFILTER_WORKER"] = shlex.join(worker)
    rows: dict[str, list[Cost]] = {"python": [], "ffmpeg": [], "ffmpeg, warm worker": []}
    with tempfile.TemporaryDirectory() as folder:
        socket = Path(folder) / "worker"
        warm = {**plain, "VCFILTER_WORKER_SOCKET": str(socket)}
        with subprocess.Popen([*worker, "--listen", str(socket)]) as kept:
            try:
                while not socket.exists() and kept.poll() is None:
                    time.sleep(0.1)
                for _ in range(repeats + 1):  # the first round warms up and is checked
                    results = {
                        "python": run(ours, plain),
                        "ffmpeg": run(theirs, plain),
                        "ffmpeg, warm worker": run(theirs, warm, kept.pid),
                    }
                    if len({pictures for _, pictures in results.values()}) != 1:
                        raise SystemExit("the pictures of the two ways differ")
                    for name, (cost, _) in results.items():
                        rows[name].append(cost)
            finally:
                kept.terminate()
    found: dict[str, object] = {}
    for name, costs in rows.items():
        pairs = list(zip(costs, rows["python"], strict=True))[1:]
        found[name] = {
            "wall": statistics.median(cost.wall for cost, _ in pairs),
            "cpu": statistics.median(cost.cpu for cost, _ in pairs),
            "wall_ratio": statistics.median(cost.wall / other.wall for cost, other in pairs),
            "cpu_ratio": statistics.median(cost.cpu / other.cpu for cost, other in pairs),
        }
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("film", help="a neural film; half a minute or more tells most")
    parser.add_argument("--ffmpeg", default=str(Path(FOLDER).expanduser() / "bin/ffmpeg"))
    parser.add_argument("--threads", type=int, default=0, help="of the networks; 0: PyTorch's own")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", metavar="FILE", help="write the figures here")
    args = parser.parse_args()
    found = measure(args.film, args.ffmpeg, args.threads, args.repeats)
    for name, row in found.items():
        assert isinstance(row, dict)
        print(
            f"{name:<20} {row['wall']:7.2f} s ({row['wall_ratio']:.3f})  "
            f"processor {row['cpu']:7.2f} s ({row['cpu_ratio']:.3f})",
            flush=True,
        )
    if args.json:
        data = {"benchmark": "plugin", "film": args.film, "threads": args.threads, "rows": found}
        Path(args.json).write_text(json.dumps(data, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
