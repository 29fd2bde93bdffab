"""How the package presents itself when it is installed: as `sh .ci/install` does, and built."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

import vcfilter

ROOT = Path(__file__).resolve().parent.parent


def installed() -> metadata.Distribution:
    """The environment's own record of vcfilter; a tree that is merely run in has none."""
    for found in metadata.distributions(name="vcfilter"):
        if Path(str(found.locate_file(""))).resolve() != ROOT:  # vcfilter.egg-info in the clone
            return found
    pytest.skip("vcfilter is not installed in this environment")


def run(*arguments: str, folder: Path) -> str:
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_version_stands_in_one_place() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "version" not in project and project["dynamic"] == ["version"]
    assert installed().version == vcfilter.__version__


def test_a_folder_of_the_same_name_hides_nothing(tmp_path: Path) -> None:
    installed()
    (tmp_path / "vcfilter").symlink_to(ROOT)  # Python is started above a clone named vcfilter
    program = "import vcfilter; print(vcfilter.__file__, vcfilter.Frame.__name__)"
    path, name = run("-c", program, folder=tmp_path).split()
    assert name == "Frame"
    assert Path(path).resolve() == Path(vcfilter.__file__).resolve()


@pytest.mark.slow
def test_a_type_checker_sees_the_installed_package(tmp_path: Path) -> None:
    installed()
    (tmp_path / "use.py").write_text(
        "import vcfilter\nreveal_type(vcfilter.Frame)\nreveal_type(vcfilter.encode_file)\n"
    )
    said = run("-m", "mypy", "--strict", "use.py", folder=tmp_path)
    assert "vcfilter.frames.Frame" in said
    assert "vcfilter.options.EncoderOptions" in said


def test_other_systems_are_told_what_the_worker_needs() -> None:
    program = """
import sys
import numpy
sys.platform = "darwin"
try:
    import vcfilter.worker
except Exception as error:
    print(type(error).__name__, error)
"""
    said = run("-c", program, folder=ROOT)
    assert said.startswith("ConfigError the worker needs Linux, this is darwin")


@pytest.mark.slow
def test_nothing_but_the_worker_needs_linux() -> None:
    """Modules that only Unix has are imported in vcfilter/worker alone."""
    program = """
import sys
for name in ("fcntl", "termios", "tty", "pty", "resource", "pwd", "grp", "readline"):
    sys.modules[name] = None
import vcfilter.codec, vcfilter.stream.transcode, vcfilter.stream.input, vcfilter.cli.main
"""
    run("-c", program, folder=ROOT)
