"""Options of encoders and decoders, limits of decoding, and the presets."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import inf
from numbers import Rational
from typing import Any

from vcfilter.errors import ConfigError
from vcfilter.frames import LEVELS_MAX, QP_MAX

KEYINT_MAX = 1 << 30
BITS_MAX = 10**15
"""The largest bitrate, maxrate and bufsize."""
RATE_MAX = 1 << 31
"""The largest frame rate; the smallest is its inverse."""
STRUCTURES = ("random-access", "low-delay", "intra")
TUNES: dict[str, dict[str, Any]] = {
    "psnr": {},  # the mode decision always minimises squared error
    "zerolatency": {"structure": "low-delay"},
}
"""Settings by the name of a tuning; one given beside it may not say otherwise."""
_SYNONYMS = {
    "g": "keyint",
    "keyint_min": "min_keyint",
    "bf": "bframes",
    "b": "bitrate",
    "vbv_maxrate": "maxrate",
    "vbv_bufsize": "bufsize",
    "mcstf": "temporal_filter",
}
"""Names of FFmpeg, x264 and x265 for the same options; "-" may replace "_"."""
BFRAMES = (0, 1, 3, 7, 15, 31)
_LAYER_STEP = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """Device and threads of the networks. Changes no bytes of a stream.

    Args:
        device: a PyTorch device name; "auto" takes CUDA where there is one.
        threads: threads of the networks, and of a GPU's host where frames are parsed; 0 leaves it
            to PyTorch.

    Raises:
        ConfigError: a value is of another type, or threads is negative.
    """

    device: str = "auto"
    threads: int = 0

    def __post_init__(self) -> None:
        check_type("device", self.device, str, "a text")
        check_type("threads", self.threads, int, "a whole number")
        if self.threads < 0:
            raise ConfigError(f"threads {self.threads} is negative")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Upper bounds for one decoder; None: what the format allows, and no other limit.

    Args:
        pixels: luma samples of a frame. Known from the sequence header, before a model is loaded.
        frames: frames that come out, in all.
        seconds: CPU seconds of the threads that read symbols and run the networks, in all, without
            those that PyTorch starts itself, and on a GPU's host those that share a frame's parse.
            Compared before each frame is decoded, so it is exceeded by the cost of one frame at
            most, on a GPU by the parse of six more.
        memory: bytes of all decoded frames that may be held as references. Known from the
            sequence header and the model. Intermediate tensors of the networks do not count.

    Raises:
        ConfigError: a value is not a positive number, or not a whole one (seconds may be any).
    """

    pixels: int | None = None
    frames: int | None = None
    seconds: float | None = None
    memory: int | None = None

    def __post_init__(self) -> None:
        for name in ("pixels", "frames", "memory"):
            value = getattr(self, name)
            if value is not None:
                check_type(f"limit of {name}", value, int, "a whole number")
        seconds = self.seconds
        if isinstance(seconds, bool) or not isinstance(seconds, int | float | None):
            raise ConfigError(f"limit of seconds {seconds!r} is not a number")
        for name in ("pixels", "frames", "seconds", "memory"):
            value = getattr(self, name)
            if value is not None and not 0 < value < inf:
                raise ConfigError(f"limit of {name} {value} is not positive and finite")


LOOKS = ("natural", "sharp")
"""How decoded frames are shown: as they were coded, or with lost detail made up for the eye."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderOptions:
    """How a neural stream is decoded.

    Args:
        strict: damage is an error, not a dropped frame.
        model: name, id or path of a model; None takes the one that the stream names.
        levels: the operating point: quality levels that are decoded, 1 (the base) to 8; those
            above are skipped, and may be damaged. None: all that are there.
        look: one of LOOKS; frames that others are predicted from are the same with any.
        limits: upper bounds of size, time and memory.

    Raises:
        ConfigError: a value is of another type, levels is out of range, or look is unknown.
    """

    strict: bool = False
    model: str | None = None
    levels: int | None = None
    look: str = LOOKS[0]
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        check_type("strict", self.strict, bool, "yes or no")
        if self.model is not None:
            check_type("model", self.model, str, "a text")
        if self.levels is not None:
            check_type("levels", self.levels, int, "a whole number")
            if not 1 <= self.levels <= LEVELS_MAX:
                raise ConfigError(f"levels {self.levels} is outside 1 to {LEVELS_MAX}")
        if self.look not in LOOKS:
            raise ConfigError(f"look {self.look!r} is not one of {', '.join(LOOKS)}")
        check_type("limits", self.limits, Limits, "of the type Limits")


PRESETS = ("ultrafast", "veryfast", "fast", "medium", "slow", "veryslow")
"""Names of how much an encoder tries, fastest first; what each means is the model's matter."""
DEFAULT_PRESET = "medium"


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderOptions:
    """Options of one encoder. At most one of crf, qp, quality and bitrate sets the rate.

    Args:
        crf: constant rate factor, 0 (finest) to 63: the qp of a scene that moves as usual. What
            moves more is coded up to 6 qps coarser, what moves less as much finer, as motion hides
            errors and bits are cheap in still scenes; with low delay, or keyframes alone, all
            scenes have this qp. 32 when nothing else sets the rate.
        qp: the same quantiser parameter for all scenes, 0 (finest) to 63; 6 more double the step.
            It is that of keyframes; those that few frames inherit are coarser.
        quality: constant quality: PSNR in dB (Y, U, V weighted 6:1:1) that each segment aims at,
            20 to 60.
        bitrate: target in bit/s of the video stream, at least 1000.
        maxrate, bufsize: rate at which a receiver's buffer fills, in bit/s, and its size in bits:
            no packet is larger than the buffer's content at its time. Both or neither, at least
            1000.
        keyint: largest distance between keyframes in frames, 1 (all keyframes) to 2^30.
        min_keyint: smallest distance at which a scene cut makes a keyframe.
        scenecut: a scene change begins with a keyframe.
        open_gop: the last frames of a GOP may refer to the keyframe after it.
        temporal_filter: what other frames inherit most is coded towards a mean of the frame and
            those around it, moved to it, as far as predictions would leave the difference; not
            with low delay, nor with open GOPs and fewer than 3 B-frames between anchors.
        structure: "random-access", "low-delay" (each frame from past ones, no delay) or "intra".
        bframes: B-frames between two anchors: 0, 1, 3, 7, 15 or 31, as far as keyint has room;
            None: chosen by content. With random access only.
        ltr: low delay: interval of long-term references in frames. Each is coded from the one
            before it alone, which ends the propagation of losses; a multiple of 4, 0: none.
        layers: quality levels of each frame, 1 (the base alone) to 8; qp and rates are those of
            the best one. layer_step: their distance in qps, 2 to 12, with 2 layers or more.
        preset: one of PRESETS that the model knows.
        frame_rate: frames per second, used by rate control only.
        model: name, id or path of a model; None takes the default one.

    Raises:
        ConfigError: a value is out of range, or of another type.
    """

    crf: int | None = None
    qp: int | None = None
    quality: float | None = None
    bitrate: int | None = None
    maxrate: int | None = None
    bufsize: int | None = None
    keyint: int = 250
    min_keyint: int = 1
    scenecut: bool = True
    open_gop: bool = True
    temporal_filter: bool = True
    structure: str = "random-access"
    bframes: int | None = None
    ltr: int = 0
    layers: int = 1
    layer_step: int = _LAYER_STEP
    preset: str = DEFAULT_PRESET
    frame_rate: Fraction = Fraction(25)
    model: str | None = None

    def __post_init__(self) -> None:
        for name in _KINDS:
            value = getattr(self, name)
            if value is not None or name not in _MAY_BE_NONE:
                _check_kind(name, value)
        given = [n for n in ("crf", "qp", "quality", "bitrate") if getattr(self, n) is not None]
        if len(given) > 1:
            raise ConfigError(f"{' and '.join(given)} exclude each other: give one of them")
        for name in ("crf", "qp"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= QP_MAX:
                raise ConfigError(f"{name} {value} is outside 0 to {QP_MAX}")
        if self.quality is not None and not 20 <= self.quality <= 60:
            raise ConfigError(f"quality {self.quality} dB is outside 20 to 60")
        if self.bitrate is not None and self.bitrate < 1000:
            raise ConfigError(f"bitrate {self.bitrate} bit/s is below 1000")
        for name in ("bitrate", "maxrate", "bufsize"):
            value = getattr(self, name)
            if value is not None and value > BITS_MAX:
                raise ConfigError(f"{name} is above {BITS_MAX}")
        if (self.maxrate is None) != (self.bufsize is None):
            raise ConfigError("maxrate and bufsize belong together: give both or neither")
        for name in ("maxrate", "bufsize"):
            value = getattr(self, name)
            if value is not None and value < 1000:
                raise ConfigError(f"{name} {value} is below 1000 bits")
        if not 1 <= self.keyint <= KEYINT_MAX:
            raise ConfigError(f"keyint {self.keyint} is outside 1 to {KEYINT_MAX}")
        if not 1 <= self.min_keyint <= self.keyint:
            raise ConfigError(f"min_keyint {self.min_keyint} is outside 1 to keyint {self.keyint}")
        if self.structure not in STRUCTURES:
            raise ConfigError(f"structure {self.structure!r} is not one of {', '.join(STRUCTURES)}")
        if self.bframes is not None and self.bframes not in BFRAMES:
            raise ConfigError(f"bframes {self.bframes} is not one of {BFRAMES}")
        if self.ltr < 0 or self.ltr % 4 or self.ltr > 128:
            raise ConfigError(f"ltr {self.ltr} is no multiple of 4 from 0 to 128")
        if self.ltr and self.structure != "low-delay":
            raise ConfigError(f"ltr {self.ltr} needs structure low-delay, not {self.structure}")
        if self.bframes and self.structure != "random-access":
            raise ConfigError(f"bframes {self.bframes}: structure {self.structure} has no B-frames")
        if not 1 <= self.layers <= LEVELS_MAX:
            raise ConfigError(f"layers {self.layers} is outside 1 to {LEVELS_MAX}")
        if not 2 <= self.layer_step <= 12:
            raise ConfigError(f"layer_step {self.layer_step} is outside 2 to 12")
        if self.layers == 1 and self.layer_step != _LAYER_STEP:
            raise ConfigError(f"layer_step {self.layer_step} needs layers: 2 or more")
        if (self.layers - 1) * self.layer_step > QP_MAX:
            raise ConfigError(
                f"{self.layers} layers {self.layer_step} qps apart do not fit into qps 0 to "
                f"{QP_MAX}: give fewer layers, or a smaller layer_step"
            )
        most = QP_MAX - (self.layers - 1) * self.layer_step
        for name in ("crf", "qp"):
            value = getattr(self, name)
            if value is not None and value > most:
                raise ConfigError(
                    f"{self.layers} layers {self.layer_step} qps apart need a {name} of at most "
                    f"{most}, not {value}"
                )
        if self.preset not in PRESETS:
            raise ConfigError(f"preset {self.preset!r} is not one of {', '.join(PRESETS)}")
        if not 0 < self.frame_rate < inf:
            raise ConfigError(f"frame rate {self.frame_rate} is not positive and finite")
        if not Fraction(1, RATE_MAX) <= self.frame_rate <= RATE_MAX:
            raise ConfigError(f"frame rate {float(self.frame_rate)} is outside 2^-31 to 2^31")

    @property
    def is_constant_qp(self) -> bool:
        """Whether qps follow from the frames alone, whatever the size of what is coded."""
        return self.quality is None and self.bitrate is None

    @classmethod
    def from_mapping(cls, settings: Mapping[str, Any]) -> EncoderOptions:
        """Options from texts, as the command line, the worker and FFmpeg's plugin give them.

        Args:
            settings: values or texts ("800k", "yes") by the names of the fields, or by the names
                of x264, x265 and FFmpeg for them; "tune" sets several.

        Raises:
            ConfigError: a name is unknown or given twice, or a value is invalid.
        """
        values: dict[str, Any] = {}
        named: dict[str, Any] = {}
        for given, value in settings.items():
            check_type("setting", given, str, "a name")
            name = given.replace("-", "_")
            name = _SYNONYMS.get(name, name)
            if name in named:
                raise ConfigError(f"setting {name!r} is given twice, the second time as {given!r}")
            named[name] = value
        tune = named.pop("tune", None)
        if tune is not None:
            if not isinstance(tune, str) or tune not in TUNES:
                raise ConfigError(f"tune {tune!r} is not one of {', '.join(TUNES)}")
            for name, value in TUNES[tune].items():
                if named.setdefault(name, value) != value:
                    raise ConfigError(f"tune {tune} is {name} {value}: {named[name]} excludes it")
        for name, value in named.items():
            if name not in _KINDS:
                raise ConfigError(f"setting {name!r} is not one of {', '.join(_KINDS)}")
            kind, read = _KINDS[name]
            try:
                values[name] = read(value) if isinstance(value, str) else value
            except (LookupError, ValueError, ZeroDivisionError, OverflowError):
                raise ConfigError(f"{name} {value!r} is not {kind}") from None
        return cls(**values)


def bitrate(text: str) -> int:
    """Bits per second of "800000", "800k" or "1.5M".

    Raises:
        ValueError: it is none.
    """
    factor = {"k": 1000, "m": 1_000_000, "g": 1_000_000_000}.get(text[-1:].lower(), 1)
    return round(_decimal(text[:-1] if factor > 1 else text) * factor)


def _decimal(text: str) -> Fraction:
    """A number of at most 12 digits, without an exponent, or a ratio of two such integers."""
    if not re.fullmatch(r"\d{1,12}(\.\d{0,12})?|\.\d{1,12}|\d{1,12}/\d{1,12}", text.strip()):
        raise ValueError(text)
    return Fraction(text)


def _whole(text: str) -> int:
    if not re.fullmatch(r"[+-]?\d{1,12}", text.strip()):
        raise ValueError(text)
    return int(text)


def _flag(text: str) -> bool:
    return {
        "1": True, "true": True, "yes": True, "on": True,
        "0": False, "false": False, "no": False, "off": False,
    }[text.strip().lower()]  # fmt: skip


def check_type(name: str, value: object, kind: type, text: str) -> None:
    """Raise ConfigError unless a value is of a type; a bool is no int."""
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ConfigError(f"{name} {value!r} is not {text}")


def _check_kind(name: str, value: object) -> None:
    """Raise ConfigError unless an option's value is of the type that its field has."""
    kind = _KINDS[name][0]
    fits = {
        "a whole number": isinstance(value, int) and not isinstance(value, bool),
        "a number": isinstance(value, int | float | Rational) and not isinstance(value, bool),
        "a bitrate like 800000 or 800k": isinstance(value, int) and not isinstance(value, bool),
        "yes or no": isinstance(value, bool),
        "a text": isinstance(value, str),
    }
    if not fits[kind]:
        raise ConfigError(f"{name} {value!r} is not {kind}")


_KINDS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "crf": ("a whole number", _whole),
    "qp": ("a whole number", _whole),
    "quality": ("a number", lambda text: float(_decimal(text))),
    "bitrate": ("a bitrate like 800000 or 800k", bitrate),
    "maxrate": ("a bitrate like 800000 or 800k", bitrate),
    "bufsize": ("a bitrate like 800000 or 800k", bitrate),
    "keyint": ("a whole number", _whole),
    "min_keyint": ("a whole number", _whole),
    "scenecut": ("yes or no", _flag),
    "open_gop": ("yes or no", _flag),
    "temporal_filter": ("yes or no", _flag),
    "structure": ("a text", str),
    "bframes": ("a whole number", _whole),
    "ltr": ("a whole number", _whole),
    "layers": ("a whole number", _whole),
    "layer_step": ("a whole number", _whole),
    "preset": ("a text", str),
    "frame_rate": ("a number", _decimal),
    "model": ("a text", str),
}
"""By option: the type, in words, and the function that reads it from a text."""
_MAY_BE_NONE = {"crf", "qp", "quality", "bitrate", "maxrate", "bufsize", "bframes", "model"}
