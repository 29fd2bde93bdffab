"""Builds the Cython extensions; everything else is in pyproject.toml."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

ROOT = Path(__file__).parent
LIBAV = {"libavformat": "59.27.100", "libavcodec": "59.37.100", "libavutil": "57.28.100"}  # 5.1
SANITIZERS = ["-fsanitize=address,undefined"] if os.environ.get("VCFILTER_SANITIZE") else []
"""With VCFILTER_SANITIZE in the environment, as .ci/sanitize sets it: for tests alone."""
C_FLAGS = [*(["-O1", "-g"] if SANITIZERS else ["-O3"]), "-std=gnu11", *SANITIZERS]


def libav_flags() -> dict[str, list[str]]:
    """Compiler and linker settings for FFmpeg's libraries, from pkg-config.

    VCFILTER_LIBAV in the environment names a folder made by ffmpeg_bridge/build_static.sh: its
    libraries are linked in, with their symbols hidden, so that another FFmpeg in the same process
    (PyAV brings one) never meets them.
    """
    static = os.environ.get("VCFILTER_LIBAV")
    if shutil.which("pkg-config") is None:
        sys.exit("vcfilter needs pkg-config to find FFmpeg: apt-get install pkg-config")
    settings = dict(os.environ)
    if static:
        folder = Path(static).resolve() / "lib" / "pkgconfig"
        if not folder.is_dir():
            sys.exit(f"VCFILTER_LIBAV={static} has no lib/pkgconfig: run build_static.sh first")
        settings["PKG_CONFIG_PATH"] = str(folder)
    wanted = [f"{name} >= {version}" for name, version in LIBAV.items()]
    found = subprocess.run(
        ["pkg-config", *(["--static"] if static else []), "--cflags", "--libs", *wanted],
        capture_output=True,
        text=True,
        check=False,
        env=settings,
    )
    if found.returncode:
        sys.exit(
            "vcfilter needs the development files of FFmpeg 5.1 or newer: apt-get install "
            f"libavformat-dev libavcodec-dev libavutil-dev ({' '.join(found.stderr.split())})"
        )
    words = found.stdout.split()
    return {
        "include_dirs": [word[2:] for word in words if word.startswith("-I")],
        "library_dirs": [word[2:] for word in words if word.startswith("-L")],
        "libraries": [word[2:] for word in words if word.startswith("-l")],
        "extra_link_args": [
            *SANITIZERS,
            *(["-Wl,--exclude-libs,ALL", "-Wl,-Bsymbolic", "-s"] if static else []),
        ],
    }


def bridge() -> Extension:
    """Muxer and Demuxer over libavformat."""
    flags = libav_flags()
    flags["include_dirs"].insert(0, "ffmpeg_bridge")
    return Extension(
        "vcfilter._bridge._avformat",
        ["ffmpeg_bridge/_avformat.pyx"],
        depends=sorted(
            str(path.relative_to(ROOT))
            for pattern in ("*.h", "*.pxd", "*.pxi")
            for path in ROOT.glob(f"ffmpeg_bridge/{pattern}")
        ),
        extra_compile_args=C_FLAGS,
        **flags,
    )


def native() -> list[Extension]:
    """The hot loops: one extension per .pyx in native/, over all its C files."""
    sources = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("native/[!_]*.c"))
    return [
        Extension(
            f"vcfilter._native.{path.stem}",
            [str(path.relative_to(ROOT)), *sources],
            include_dirs=["native"],
            depends=sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("native/*.h")),
            extra_compile_args=C_FLAGS,
            extra_link_args=SANITIZERS,
        )
        for path in sorted(ROOT.glob("native/*.pyx"))
    ]


setup(
    ext_modules=cythonize(
        [bridge(), *native()],
        build_dir="build/cython",
        include_path=["ffmpeg_bridge"],
        language_level=3,
    )
)
