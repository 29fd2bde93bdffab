"""Options of frame interpolation."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from importlib import resources
from pathlib import Path

from vcfilter.errors import ConfigError
from vcfilter.options import LOOKS

FACTORS = (2, 8)
PRESETS = ("fast", "medium", "slow")
DUPLICATES = ("keep", "fill")
CUTS = ("nearest", "extrapolate")
RATE_MAX = 1000
FILES = {"natural": "between.safetensors", "sharp": "between_sharp.safetensors"}
"""The package's own weights of the learned part, by look."""


def shipped(look: str) -> str | None:
    """The path of the package's own weights for a look; None: there are none."""
    path = Path(str(resources.files("vcfilter") / "weights" / FILES[look]))
    return str(path) if path.is_file() else None


@dataclass(frozen=True, slots=True, kw_only=True)
class InterpolationOptions:
    """Which frames are added, and how. Exactly one of factor, fps and slow is given.

    Args:
        factor: frames per frame, 2 to 8: each interval is divided into so many equal parts, so a
            variable frame rate stays variable.
        fps: frames per second, above 0 to 1000: frames at constant intervals from the first
            frame's time on.
        slow: as factor, and times are stretched by it: slow motion at the source's rate.
        preset: "fast", "medium" or "slow": how much the search for motion tries.
        duplicates: "keep": repeated frames stay repeated. "fill": a frame that repeats the one
            before is replaced by one from even motion between its neighbours.
        cut: at a scene cut "nearest" repeats the nearer frame; "extrapolate" carries each
            side on by its own motion.
        coded_motion: frames of a neural video are moved by the motion that they were coded with,
            where they have one; the rest is searched.
        weights: of the learned part, see Interpolator; none with "fast".
        look: one of LOOKS, see Interpolator; "natural" with "fast".

    Raises:
        ConfigError: a value is out of range or of another type, or not exactly one rate is given.
    """

    factor: int | None = None
    fps: Fraction | None = None
    slow: int | None = None
    preset: str = "medium"
    duplicates: str = "keep"
    cut: str = "nearest"
    coded_motion: bool = False
    weights: str | None = None
    look: str = LOOKS[0]

    def __post_init__(self) -> None:
        named = ("factor", "fps", "slow")
        rates = [name for name in named if getattr(self, name) is not None]
        if len(rates) != 1:
            got = " and ".join(rates) or "none"
            raise ConfigError(f"one of factor, fps and slow is needed, {got} is given")
        for name in ("factor", "slow"):
            value = getattr(self, name)
            if value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool):
                raise ConfigError(f"{name} {value!r} is not a whole number")
            if not FACTORS[0] <= value <= FACTORS[1]:
                raise ConfigError(f"{name} {value} is outside {FACTORS[0]} to {FACTORS[1]}")
        if self.fps is not None:
            if isinstance(self.fps, bool) or not isinstance(self.fps, int | Fraction):
                raise ConfigError(f"fps {self.fps!r} is not a whole number or a Fraction")
            if not 0 < self.fps <= RATE_MAX:
                raise ConfigError(f"fps {self.fps} is outside 0 to {RATE_MAX}")
        if not isinstance(self.coded_motion, bool):
            raise ConfigError(f"coded_motion {self.coded_motion!r} is not yes or no")
        if self.weights is not None and not isinstance(self.weights, str):
            raise ConfigError(f"weights {self.weights!r} is no path of a file")
        if self.weights and self.preset == "fast":
            raise ConfigError("preset 'fast' does without the learned part: it takes no weights")
        named_values = (
            ("preset", PRESETS),
            ("duplicates", DUPLICATES),
            ("cut", CUTS),
            ("look", LOOKS),
        )
        for name, allowed in named_values:
            value = getattr(self, name)
            if value not in allowed:
                raise ConfigError(f"{name} {value!r} is not one of {', '.join(allowed)}")
        if self.look != LOOKS[0] and self.preset == "fast":
            raise ConfigError(
                f"preset 'fast' does without the learned part, which makes look {self.look!r}"
            )
        if self.look != LOOKS[0] and not self.weights and shipped(self.look) is None:
            raise ConfigError(
                f"look {self.look!r} of new frames needs weights, as train --phase "
                "between-p writes them: name their file"
            )

    @property
    def parts(self) -> int:
        """Parts that an interval is divided into; 1 where fps sets the times."""
        return self.factor or self.slow or 1
