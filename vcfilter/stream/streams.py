"""Which streams of a source are wanted: selection as with FFmpeg's -map."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from vcfilter._bridge import (
    DISPOSITION_ATTACHED_PICTURE,
    DISPOSITION_DEFAULT,
    BridgePacket,
    StreamInfo,
)
from vcfilter.errors import ConfigError, MediaError

_KINDS = {"v": "video", "a": "audio", "s": "subtitle", "t": "attachment", "d": "data"}


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamSelection:
    """Which streams are wanted: all, or those that any of FFmpeg's stream specifiers names.

    Args:
        specifiers: "0" (all), a kind (v a s t d; V: video but cover art), an index or a tag, each
            optionally after "0:", a kind optionally with a position or a tag after it: "v",
            "0:a", "a:1", "0:3", "a:m:language:eng". "?" after one allows that there is no such
            stream. "-" before one leaves its streams out of those that are named before it, or
            of all if it is the first.
    """

    specifiers: tuple[str, ...] = ("0",)

    def __post_init__(self) -> None:
        for text in self.specifiers:
            _parse(text.removeprefix("-"))

    @classmethod
    def of(cls, streams: str | Sequence[str]) -> StreamSelection:
        """From what functions take: "all", one specifier, or several."""
        if streams == "all":
            return cls()
        return cls(specifiers=(streams,) if isinstance(streams, str) else tuple(streams))

    def indices(self, streams: Sequence[StreamInfo]) -> list[int]:
        """Indices of the wanted streams, in the order of the file.

        Raises:
            ConfigError: a specifier names no stream.
        """
        wanted: set[int] = set()
        if self.specifiers and self.specifiers[0].startswith("-"):
            wanted.update(info.index for info in streams)
        for text in self.specifiers:
            specifier = _parse(text.removeprefix("-"))
            found = specifier.find(streams)
            if not found and not specifier.optional and not text.startswith("-"):
                raise ConfigError(f"-map {text}: the source has no such stream")
            if text.startswith("-"):
                wanted.difference_update(found)
            else:
                wanted.update(found)
        return sorted(wanted)


_SPECIFIER = re.compile(
    r"(?:0(?::|$))?(?:(?P<kind>[vVastd])(?::|$))?"
    r"(?:(?P<position>\d+)|m:(?P<key>[^:]+)(?::(?P<value>.+))?)?"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Specifier:
    """One of FFmpeg's stream specifiers; None in a field: it does not matter."""

    kind: str | None
    position: int | None
    key: str | None
    value: str | None
    optional: bool

    def find(self, streams: Sequence[StreamInfo]) -> list[int]:
        """Indices of the streams that it names."""
        found = [info.index for info in streams if self._is_kind(info) and self._is_tagged(info)]
        return found if self.position is None else found[self.position : self.position + 1]

    def _is_kind(self, info: StreamInfo) -> bool:
        if self.kind == "V" and info.disposition & DISPOSITION_ATTACHED_PICTURE:
            return False
        return self.kind is None or _KINDS[self.kind.lower()] == info.kind

    def _is_tagged(self, info: StreamInfo) -> bool:
        if self.key is None:
            return True
        value = info.metadata.get(self.key)
        return value is not None if self.value is None else value == self.value


def _parse(text: str) -> _Specifier:
    name = text.removesuffix("?")
    found = _SPECIFIER.fullmatch(name)
    if not name or name.endswith(":") or found is None:
        raise ConfigError(
            f"-map {text!r} is not understood; examples: 0 (all), v, a, s, 0:a, a:1, 0:3, 0:s?"
        )
    position = found["position"]
    return _Specifier(
        kind=found["kind"],
        position=None if position is None else int(position),
        key=found["key"],
        value=found["value"],
        optional=text.endswith("?"),
    )


def choose_video(
    streams: Sequence[StreamInfo],
    wanted: Sequence[int],
    only: Callable[[StreamInfo], bool],
    title: str,
) -> StreamInfo:
    """The video stream that is coded: the first that is wanted and marked default, else the
    largest frame.

    Args:
        title: of the source.

    Raises:
        MediaError: there is none.
    """
    videos = [
        info
        for info in streams
        if info.index in wanted
        and info.kind == "video"
        and not info.disposition & DISPOSITION_ATTACHED_PICTURE
        and only(info)
    ]
    if not videos:
        kinds = ", ".join(_described(info) for info in streams)
        which = f"{title} has" if len(wanted) == len(streams) else f"-map leaves {title}"
        raise MediaError(f"{which} no video stream (there is {kinds or 'nothing'})")
    default = [info for info in videos if info.disposition & DISPOSITION_DEFAULT]
    candidates = default if len(default) == 1 else videos
    return max(candidates, key=lambda info: (info.width * info.height, -info.index))


def _described(info: StreamInfo) -> str:
    if info.disposition & DISPOSITION_ATTACHED_PICTURE:
        return f"an attached image {info.codec}".rstrip()
    return f"{info.kind} {info.codec}".strip()


def name_of(info: StreamInfo) -> str:
    """A stream in words: "stream 1 (audio flac)"."""
    return f"stream {info.index} ({f'{info.kind} {info.codec or info.codec_tag}'.rstrip()})"


_CLOCK = re.compile(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)")


def stated_seconds(info: StreamInfo) -> Fraction | None:
    """How long a source says that a stream is: in the track's header, or in Matroska's tag, which
    holds where it ends.
    """
    if info.duration is not None:
        return info.duration * info.time_base
    tags = {name.upper(): value for name, value in info.metadata.items()}
    found = _CLOCK.fullmatch(tags.get("DURATION", "").strip())
    if found is None:
        return None
    hours, minutes, seconds = (Fraction(part) for part in found.groups())
    end = hours * 3600 + minutes * 60 + seconds
    length = end - max(0, info.start_time or 0) * info.time_base
    return length if length > 0 else None


def is_short(seconds: Fraction, stated: Fraction | None) -> bool:
    """Whether something ends well before it is stated to."""
    return stated is not None and stated - seconds > max(_SHORT_SECONDS, stated / 20)


LENGTH_IN_HEADER = ("matroska,webm", "flv", "asf")
"""Containers that state the length of the whole file, which is not guessed from its end."""
_SHORT_SECONDS = Fraction(1, 2)
_ENCRYPTED_TAGS = {"encv", "enca", "encs", "enct", "drms", "drmi", "drmt"}


def is_encrypted(info: StreamInfo) -> bool:
    """Whether a container says that a stream is encrypted; MP4 often says it of packets alone."""
    told = any(name == "Encryption initialization data" for name, _ in info.side_data)
    return told or info.codec_tag in _ENCRYPTED_TAGS or "enc_key_id" in info.metadata


def is_encrypted_packet(packet: BridgePacket) -> bool:
    """Whether a container says of a packet that it is encrypted."""
    return any(name == "Encryption info" for name, _ in packet.side_data)
