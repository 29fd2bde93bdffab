"""The field's words: identifiers, docstrings and comments use them and not private ones."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "vcfilter"

WORDS = {
    "camera": "global motion",
    "film": "video file",
    "films": "video files",
    "growing": "shard writer",
    "nonsense": "invalid",
    "picture": "frame",
    "pictures": "frames",
    "prove": "verify",
    "proved": "verified",
    "proven": "verified",
    "proves": "verifies",
    "quantum": "quantisation step",
    "sound": "audio",
    "sounds": "audio",
    "speedometer": "throughput meter",
    "surroundings": "stream context",
    "survey": "recorder",
}
"""Words that neither a name nor a text holds, and what the field says."""

NAMES = {
    "ahead": "prefetcher",
    "around": "neighbour mean",
    "behind": "background writer",
    "closed": "open_gop, with the standard meaning",
    "drafts": "candidates",
    "fan": "tee",
    "fit": "Gauss-Newton refinement",
    "given": "conditions",
    "grid": "timestamp snapper",
    "inherited": "temporal direct mode",
    "known": "spatial context",
    "material": "dataset",
    "moved": "warped",
    "noted": "recorder",
    "past": "temporal context",
    "promise": "estimated RD cost",
    "tap": "tee",
    "world": "distributed context",
}
"""Words that no class, function or parameter is called by alone: in a text they are English."""

PHRASES = {
    r"(is|are|was|were|be) told": "is reported",
    r"(no|some|any)body": "the client, the caller, the process",
    r"has had enough|seen enough|own way": "a fact",
}

EXCEPTIONS = {
    "_bridge": {"picture"},  # an attached picture is FFmpeg's: the cover of a file
    "codec": {"picture"},  # Model.picture: a frame as a model holds it on its device
    "models": {"picture"},
}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


MODULES = sorted(PACKAGE.rglob("*.py"))


def words_of(identifier: str) -> list[str]:
    parts = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", identifier).lower().split("_")
    return [part for part in parts if part]


def definitions(tree: ast.AST) -> Iterator[tuple[str, bool]]:
    """(identifier, whether it names a class, function or parameter) of all that is defined."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, True
        elif isinstance(node, ast.arg):
            yield node.arg, True
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, False
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr, False


def texts(source: str, tree: ast.AST) -> Iterator[str]:
    """Docstrings, texts below constants, comments, and what users read."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.string


def faults(path: Path) -> list[str]:
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    allowed = EXCEPTIONS.get(room_of(path), set())
    found = set()
    for name, is_door in definitions(tree):
        words = words_of(name)
        private = [word for word in words if word in WORDS and word not in allowed]
        found |= {f"{name}: {word} is {WORDS[word]}" for word in private}
        if is_door and len(words) == 1 and words[0] in NAMES:
            found.add(f"{name}: {words[0]} is {NAMES[words[0]]}")
    for text in texts(source, tree):
        words = [word for part in re.findall(r"\w+", text) for word in words_of(part)]
        private = [word for word in words if word in WORDS and word not in allowed]
        found |= {f"{text[:60]!r}: {word} is {WORDS[word]}" for word in private}
        for phrase, better in PHRASES.items():
            if re.search(phrase, text):
                found.add(f"{text[:60]!r}: {phrase} is {better}")
    return sorted(found)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_names_are_the_fields(path: Path) -> None:
    assert faults(path) == []


def test_a_private_word_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("test_names.PACKAGE", tmp_path)
    for text in (
        "def play_film(): ...",
        "soundTrack = 1",
        '"""A film."""',
        "x = 1  # the camera moves",
        "class Grid: ...",
        "def f(given): ...",
        'raise ValueError("the time base is nonsense")',
        '"""An error is told."""',
    ):
        (tmp_path / "a.py").write_text(text + "\n")
        assert faults(tmp_path / "a.py") != [], text
    (tmp_path / "a.py").write_text("given_frames = 1  # decoded ahead\n")
    assert faults(tmp_path / "a.py") == []


def glossary_words() -> list[str]:
    text = (PACKAGE.parent / "docs" / "reference" / "glossary.md").read_text(encoding="utf-8")
    cells = [line.split("|")[1] for line in text.splitlines() if line.startswith(("| **", "| `"))]
    return [word for cell in cells for word in re.findall(r"[*`]+([^*`]+)[*`]+", cell)]


@pytest.mark.parametrize("word", glossary_words())
def test_words_of_the_glossary_are_in_the_code(word: str) -> None:
    pattern = re.compile(rf"\b{word.replace(' ', '[ _-]')}s?\b", re.I)
    assert any(pattern.search(path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py"))
