"""Packs a training for a GPU machine that has PyTorch, no network, and is there for minutes.

    python benchmarks/gpu_pack.py --data DIR --out build/gpu-pack
    make gpu-pack DATA=DIR

OUT gets folders part-0, part-1 ..., each within --limit: carried one by one, they lie beside each
other on the machine. part-0 holds the project, wheels and `run.sh`; the others hold videos, cut at
keyframes where they are too large and never coded again. There,

    sh part-0/run.sh WEIGHTS_FOLDER SECONDS [OPTIONS OF train ...]

installs the wheels, trains for half a minute as a test, then until a minute before SECONDS have
passed. Weights and state come to WEIGHTS_FOLDER every minute. Back home,
`vcfilter train --data DIR --model WEIGHTS_FOLDER/gpu.average --steps 0 --out FILE` measures the
tables, verifies and writes the file.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import av

ROOT = Path(__file__).parents[1]
WHEELS = ("av>=18,<20", "constriction==0.5.0", "safetensors")
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
MEGABYTE = 1 << 20
RUN = """\
#!/bin/sh
# sh run.sh FOLDER SECONDS [OPTIONS]: see benchmarks/gpu_pack.py of vcfilter.
set -eu
[ $# -ge 2 ] || { echo "usage: run.sh FOLDER SECONDS [OPTIONS OF train ...]" >&2; exit 2; }
begun=$(date +%s)
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
out=$(cd "$1" && pwd) limit=$2 python=${PYTHON:-python3}
shift 2
site=$out/site
if ls "$here"/wheels/*.whl >/dev/null 2>&1; then
    "$python" -m pip install --quiet --no-index --no-deps --upgrade --target "$site" \\
        "$here"/wheels/*.whl
fi
export PYTHONPATH="$here:$site${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
set -- --data "$here"/../part-*/data --cache "$out/cache" --no-freeze __OPTIONS__ "$@"
"$python" "$here/train.py" "$@" --out "$out/smoke" --minutes ${SMOKE:-0.5} --log-every 10
rm -f "$out"/smoke*
left=$((limit - $(date +%s) + begun - 60))
[ "$left" -ge 10 ] || { echo "run.sh: the smoke test left $left seconds to train" >&2; exit 1; }
minutes=$(awk "BEGIN { print $left / 60 }")
"$python" "$here/train.py" "$@" --out "$out/gpu" --minutes "$minutes"
"""
TRAIN = """\
# The command `vcfilter train` by itself: the others need what is compiled.
import argparse, sys
from vcfilter.errors import VcfilterError
from vcfilter.train import cli

parser = argparse.ArgumentParser()
cli.add_arguments(parser)
try:
    sys.exit(cli.run(parser.parse_args()))
except VcfilterError as error:
    sys.exit(f"train: {error}")
"""


class Parts:
    """Folders that are filled one after the other.

    Args:
        out: where they are made. limit: bytes of each.
    """

    def __init__(self, out: Path, limit: int) -> None:
        self.out, self.limit = out, limit
        self.free: list[int] = []

    def folder(self, number: int) -> Path:
        """A part's folder."""
        return self.out / f"part-{number}"

    def add(self) -> int:
        """A new part's number."""
        self.free.append(self.limit)
        (self.folder(len(self.free) - 1) / "data").mkdir(parents=True)
        return len(self.free) - 1

    def room(self, least: int) -> int:
        """A part that has room for so many bytes.

        Raises:
            SystemExit: no part can.
        """
        if least > self.limit:
            raise SystemExit(f"gpu_pack: {least >> 20} MiB in one piece are over --limit")
        fits = [n for n, free in enumerate(self.free) if free >= least]
        return fits[0] if fits else self.add()


def project(folder: Path) -> None:
    """The package without what was compiled here, and the default weights."""
    shutil.copytree(
        ROOT / "vcfilter",
        folder / "vcfilter",
        ignore=shutil.ignore_patterns("__pycache__", "*.so", "*.c", "assets", "serve", "evaluate"),
    )


def wheels(folder: Path, names: list[str], python: str) -> None:
    """Wheels for the GPU machine's interpreter."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest"]
    command += [str(folder), "--only-binary=:all:", "--implementation", "cp"]
    command += ["--python-version", python]
    for platform in PLATFORMS:
        command += ["--platform", platform]
    subprocess.run([*command, *names], check=True)


def groups(path: Path) -> Iterator[list[av.Packet]]:
    """A video's packets from keyframe to keyframe."""
    group: list[av.Packet] = []
    with av.open(str(path)) as source:
        for packet in source.demux(video=0):
            if packet.size == 0:
                continue
            if packet.is_keyframe and group:
                yield group
                group = []
            group.append(packet)
    if group:
        yield group


def split(path: Path, parts: Parts) -> None:
    """A video as it is, or in pieces that fit: packets are copied from keyframe on."""
    size = path.stat().st_size
    slack = 1 << 16  # of a container
    if size <= parts.limit:
        number = parts.room(size)
        shutil.copyfile(path, parts.folder(number) / "data" / path.name)
        parts.free[number] -= size
        return
    with av.open(str(path)) as source:
        template = source.streams.video[0]
        piece: av.container.OutputContainer | None = None
        number = count = 0
        for group in groups(path):
            length = sum(packet.size + 32 for packet in group)
            if piece is None or parts.free[number] < length + slack:
                if piece is not None:
                    piece.close()
                number = parts.room(length + 2 * slack)
                parts.free[number] -= slack
                name = f"{path.stem}-{count}.mkv"
                piece = av.open(str(parts.folder(number) / "data" / name), "w")
                stream = piece.add_stream_from_template(template)
                start, count = group[0].pts, count + 1
            for packet in group:
                packet.stream = stream
                packet.pts = None if packet.pts is None else packet.pts - start
                packet.dts = None if packet.dts is None else packet.dts - start
                piece.mux(packet)
            parts.free[number] -= length
        if piece is not None:
            piece.close()


def pack(args: argparse.Namespace) -> Parts:
    """Make the parts; nothing is left of them where that fails."""
    if args.out.exists():
        raise SystemExit(f"gpu_pack: {str(args.out)!r} exists")
    videos = [p for p in sorted(args.data.rglob("*")) if p.suffix.lower() in {".mkv", ".mp4"}]
    if not videos:
        raise SystemExit(f"gpu_pack: no Matroska or MP4 files in {str(args.data)!r}")
    parts = Parts(args.out, int(args.limit * MEGABYTE))
    try:
        first = parts.folder(parts.add())
        project(first)
        if args.wheels:
            (first / "wheels").mkdir()
            wheels(first / "wheels", args.wheels, args.python)
        options = f"--keep 60 {args.options}".strip()
        (first / "run.sh").write_text(RUN.replace("__OPTIONS__", options))
        (first / "train.py").write_text(TRAIN)
        used = sum(p.stat().st_size for p in first.rglob("*") if p.is_file())
        parts.free[0] -= used
        if parts.free[0] < 0:
            raise SystemExit(f"gpu_pack: project and wheels take {used >> 20} MiB: raise --limit")
        for path in videos:
            split(path, parts)
    except BaseException:
        shutil.rmtree(args.out, ignore_errors=True)
        raise
    return parts


def main() -> None:
    """From the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of videos")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu-pack")
    parser.add_argument("--limit", type=float, default=60, help="MiB of a part (%(default)s)")
    parser.add_argument(
        "--wheels", nargs="*", default=list(WHEELS), help="what the machine lacks (%(default)s)"
    )
    parser.add_argument("--python", default="3.12", help="its interpreter (%(default)s)")
    parser.add_argument("--options", default="--model default --batch 64", help="of train")
    parts = pack(parser.parse_args())
    for number, free in enumerate(parts.free):
        print(f"{parts.folder(number)}: {(parts.limit - free) / MEGABYTE:.1f} MiB")


if __name__ == "__main__":
    main()
