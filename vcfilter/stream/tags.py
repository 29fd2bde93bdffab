"""Tags and chapters: what goes along from one file to another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction

from vcfilter._bridge import Chapter, StreamInfo
from vcfilter.stream.timestamps import Cut

_FILE_TAGS_LEFT = {"major_brand", "minor_version", "compatible_brands", "encoder"}
_TRACK_TAGS_LEFT = ("DURATION", "BPS", "NUMBER_OF_", "_STATISTICS_")
_CODED_TAGS = "ENCODER"  # and ENCODER_SETTINGS


def track_metadata(info: StreamInfo, *, coded: bool = False) -> dict[str, str]:
    """A stream's tags without those that describe how its old file stored it.

    Args:
        coded: those that say how it was coded stay as well.
    """
    left = _TRACK_TAGS_LEFT if coded else (*_TRACK_TAGS_LEFT, _CODED_TAGS)
    return {key: value for key, value in info.metadata.items() if not key.upper().startswith(left)}


def file_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """A file's tags without those that describe its old container."""
    return {key: value for key, value in metadata.items() if key.lower() not in _FILE_TAGS_LEFT}


def cut_chapters(chapters: Sequence[Chapter], cut: Cut) -> Iterator[Chapter]:
    """The chapters that lie in the part, with its times."""
    for chapter in chapters:
        start = chapter.start * chapter.time_base
        end = chapter.end * chapter.time_base
        if cut.after(start) or (cut.start is not None and end <= cut.start):
            continue
        start = max(start - cut.offset, Fraction(0))
        end = (min(end, cut.end) if cut.end is not None else end) - cut.offset
        nano = Fraction(1, 10**9)
        end = max(start, end)  # some files say otherwise, muxers refuse it
        yield replace(chapter, start=int(start / nano), end=int(end / nano), time_base=nano)
