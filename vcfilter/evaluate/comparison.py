"""A whole comparison: clips, codecs, curves, one report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vcfilter.errors import ConfigError
from vcfilter.evaluate.anchors import parse_anchor
from vcfilter.evaluate.clips import prepare
from vcfilter.evaluate.report import write_report
from vcfilter.evaluate.runner import Codec, Neural, neural, run_curves
from vcfilter.evaluate.tables import Evaluation
from vcfilter.options import KEYINT_MAX

POINTS = 4  # of a curve, at least


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What is compared.

    Args:
        clips: video files, each with another name.
        out: folder of the report.
        cache: folder where results are kept.
        presets: vcfilter's, with further settings PRESET[:NAME=VALUE...]; none leaves it out.
        qps: vcfilter's points, 0 to 63.
        against: other codecs, as `parse_anchor` reads them; the first is the anchor.
        keyint: largest keyframe interval of every codec, in frames; 0: each codec's own default.
        intra: compare keyframes alone too.
        frames: only the first ones; None takes all.
        model: name, id or path of vcfilter's model; None takes the default one.
        device: a PyTorch device name.
        threads: of every codec; 0 leaves it to each.

    Raises:
        ConfigError: a value is outside what is allowed, or there is no codec.
    """

    clips: tuple[Path, ...]
    out: Path
    cache: Path
    presets: tuple[str, ...]
    qps: tuple[int, ...]
    against: tuple[str, ...]
    keyint: int = 12
    intra: bool = False
    frames: int | None = None
    model: str | None = None
    device: str = "auto"
    threads: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.keyint <= KEYINT_MAX:
            raise ConfigError(f"keyint {self.keyint} is outside 1 to {KEYINT_MAX}")
        if self.frames is not None and self.frames < 1:
            raise ConfigError(f"frames {self.frames} is less than 1")
        if self.threads < 0:
            raise ConfigError(f"threads {self.threads} is negative")
        for preset in self.presets:
            neural(preset, self.qps)
        if not self.presets and not self.against:
            raise ConfigError("nothing to run: neither a preset nor another codec")

    @property
    def codecs(self) -> tuple[Codec, ...]:
        """vcfilter at each preset, then the others.

        Raises:
            ConfigError: another codec is unknown.
        """
        ours = [neural(preset, self.qps, self.model, self.device) for preset in self.presets]
        return (*ours, *(parse_anchor(text) for text in self.against))


def compare_codecs(comparison: Comparison, progress: Callable[[str], None]) -> str:
    """Measure what the cache lacks and write the report; returns its tables as text.

    Args:
        progress: called with one line after each point.

    Raises:
        ConfigError: a codec is unknown, a preset has fewer than four points, or two clips have one
            name.
        MediaError: a clip cannot be read, or a codec failed.
    """
    codecs = comparison.codecs
    for codec in codecs[: len(comparison.presets)]:
        if isinstance(codec, Neural) and len(codec.qps) < POINTS:
            raise ConfigError(f"{codec.label} has {len(codec.qps)} points: curves need {POINTS}")
    clips = [prepare(path, comparison.cache, comparison.frames) for path in comparison.clips]
    names = [clip.name for clip in clips]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ConfigError(f"two clips are called {', '.join(sorted(twice))}: rename one")
    keyints = {comparison.keyint, 1} if comparison.intra else {comparison.keyint}
    curves = run_curves(
        clips,
        codecs,
        sorted(keyints, reverse=True),
        comparison.cache,
        comparison.threads,
        progress,
    )
    anchor = codecs[len(comparison.presets)] if comparison.against else codecs[0]
    evaluation = Evaluation(
        clips=tuple(clips),
        tested=codecs,
        curves=tuple(curves),
        anchor=anchor.label,
        threads=comparison.threads,
    )
    return write_report(evaluation, comparison.out)
