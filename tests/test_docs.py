"""Documents: relative links lead to files, and anchors to headings."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HIDDEN = {".venv", "build", "dist", "node_modules"}
DOCUMENTS = [
    path
    for path in sorted(ROOT.rglob("*.md"))
    if not HIDDEN & set(path.relative_to(ROOT).parts) and ".egg-info" not in str(path)
]
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def without_code(text: str) -> str:
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return re.sub(r"`[^`\n]*`", "", text)


def anchors(path: Path) -> set[str]:
    """Anchors of a document's headings, as GitHub makes them."""
    found = set()
    for heading in re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE):
        plain = re.sub(r"[^\w\- ]", "", heading.lower())
        found.add(plain.strip().replace(" ", "-"))
    return found


def broken(document: Path) -> list[str]:
    faults = []
    for target in LINK.findall(without_code(document.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (document.parent / name).resolve() if name else document
        if not path.exists():
            faults.append(f"{target}: no such file")
        elif anchor and anchor not in anchors(path):
            faults.append(f"{target}: no such heading")
    return faults


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_relative_links_resolve(document: Path) -> None:
    assert broken(document) == []


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text(
        "# One two\n[a](b.md) [b](#one-two) [c](#three) [d](https://x/y) `[e](f.md)`\n"
        "```\n[g](h.md)\n```\n![i](a.md)\n"
    )
    assert broken(tmp_path / "a.md") == ["b.md: no such file", "#three: no such heading"]


@pytest.mark.parametrize("place", ["vcfilter", "ffmpeg_bridge", "tests", "native", "benchmarks"])
def test_documents_that_code_names_exist(place: str) -> None:
    """A comment that sends its reader to docs/... sends him to a file."""
    missing = []
    for path in sorted((ROOT / place).rglob("*")):
        if path.suffix not in (".py", ".pyx", ".pxi", ".pxd", ".c", ".h", ".sh"):
            continue
        for name in re.findall(r"\bdocs/[\w/.-]*\w", path.read_text(encoding="utf-8")):
            if not (ROOT / name).exists():
                missing.append(f"{path.relative_to(ROOT)}: {name}")
    assert missing == []
