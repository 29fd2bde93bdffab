"""The floors of the house: imports go down only, never sideways between packages of one floor."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from small_model import write_small_model

ROOT = Path(__file__).resolve().parent.parent

# Top floor first. A package may import those on the floors below it, and itself.
FLOORS = (
    ("__main__", "cli", "serve", "worker"),
    ("__init__",),
    ("train", "evaluate"),
    ("stream",),
    ("interpolation",),
    ("codec",),
    ("models",),
    ("nn", "entropy", "bitstream", "metrics"),
    ("errors", "options", "frames", "fused", "_native", "_bridge"),
)
LEVEL = {name: level for level, floor in enumerate(FLOORS) for name in floor}
# The top floor is one piece: __main__ starts cli, cli carries the commands.
TOGETHER = set(FLOORS[0])
SMALL = {
    "frames": {"errors"},
    "options": {"errors", "frames"},
}  # the value classes raise the errors

MODULES = sorted((ROOT / "vcfilter").rglob("*.py"))


def package_of(path: Path) -> str:
    first = path.relative_to(ROOT / "vcfilter").parts[0]
    return first.removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Names of vcfilter's packages that a module imports, anywhere in it."""
    found: set[str] = set()
    inside = path.relative_to(ROOT).with_suffix("").parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(inside[: len(inside) - node.level]) if node.level else ""
            module = ".".join(part for part in (base, node.module or "") if part)
            names = [f"{module}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "vcfilter" and len(parts) > 1:
                found.add(parts[1] if parts[1] in LEVEL else "__init__")
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down(path: Path) -> None:
    package = package_of(path)
    assert package in LEVEL, f"{package} has no floor: add it to FLOORS"
    for other in imported(path) - {package}:
        if {package, other} <= TOGETHER or other in SMALL.get(package, set()):
            continue
        assert LEVEL[other] > LEVEL[package], f"{path.name} ({package}) imports {other}"


def foreign(path: Path) -> set[str]:
    tree = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    names = [
        name
        for node in tree
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
        )
    ]
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize(
    ("library", "packages"),
    [
        ("constriction", {"entropy"}),  # the only door to it is entropy/coder.py
        ("vcfilter._bridge", {"stream"}),  # the only package that knows files
        ("matplotlib", {"evaluate", "train"}),
        ("scipy", {"evaluate"}),
        ("jinja2", {"evaluate"}),
        ("starlette", {"serve"}),
        ("distributed", {"codec"}),
    ],
)
def test_each_library_has_its_door(library: str, packages: set[str]) -> None:
    users = {package_of(path) for path in MODULES if library in foreign(path)}
    assert users <= packages, f"{library} is imported by {users - packages}"


def test_importing_the_package_is_quick_and_silent() -> None:
    """No networks, no GPU, no output for a plain import; 'vcfilter --help' hangs on it."""
    code = "import sys, vcfilter; assert 'torch' not in sys.modules, 'torch was imported'"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_decoding_needs_no_compiler(tmp_path: Path) -> None:
    """PyTorch imports its compiler for arithmetic on the device "meta": a second of CPU."""
    write_small_model(tmp_path / "small.safetensors")
    code = f"""
import sys
from vcfilter.models import store
from vcfilter.options import Runtime
store.load({str(tmp_path / "small.safetensors")!r}, Runtime(device="cpu"))
assert "torch" in sys.modules
found = [name for name in ("torch._dynamo", "sympy", "matplotlib", "scipy") if name in sys.modules]
assert found == [], found
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_training_needs_no_compiled_module() -> None:
    """A GPU machine that is there for minutes has PyTorch and nothing that was built."""
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('vcfilter._bridge', 'vcfilter._native')));"
        "import vcfilter.train.cli"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
