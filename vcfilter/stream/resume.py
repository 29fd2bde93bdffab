"""Going on with a run that was stopped: what it left beside its target, and how it coded that."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from fractions import Fraction
from pathlib import Path as FilePath

from vcfilter._bridge import BridgeError
from vcfilter.bitstream import SequenceHeader, read_packet
from vcfilter.codec import DEFAULT_QP
from vcfilter.errors import BitstreamError, ConfigError, MediaError
from vcfilter.frames import Packet
from vcfilter.options import EncoderOptions
from vcfilter.stream.containers import MATROSKA
from vcfilter.stream.packets import coded_packet
from vcfilter.stream.source import Source
from vcfilter.stream.target import Target
from vcfilter.stream.timestamps import seconds_of
from vcfilter.stream.track import is_neural

SETTINGS_TAG = "ENCODER_SETTINGS"
"""Matroska's name of the track's tag that tells how it was coded."""
RESUMABLE = (MATROSKA, "nut")
"""Containers that can be read before they are complete and keep the tag."""
_NOT_OF_FRAMES = {"frame_rate", "model"}  # rate control's; the sequence header names the model


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlierRun:
    """What a run that was stopped left.

    Args:
        path: of its file.
        settings: the file's SETTINGS_TAG.
        extradata: the sequence header, and nothing behind it.
        packets: the coded frames, from the first on.
    """

    path: FilePath
    settings: str
    extradata: bytes
    packets: tuple[Packet, ...]

    @property
    def finished(self) -> int:
        """Frames before the last keyframe."""
        return max(n for n, packet in enumerate(self.packets) if packet.is_keyframe)


def settings_text(
    options: EncoderOptions,
    *,
    start: float | Fraction | None,
    bit_depth: int | None,
    video_filter: str | None,
) -> str:
    """The settings that coded frames depend on, as SETTINGS_TAG: those that are not the default."""
    plain = EncoderOptions()
    values: dict[str, object] = {}
    if options.is_constant_qp and options.qp is None and options.crf is None:
        values["crf"] = DEFAULT_QP
    for field in fields(options):
        value = getattr(options, field.name)
        if field.name not in _NOT_OF_FRAMES and value != getattr(plain, field.name):
            values[field.name] = value
    if start:
        values["start"] = seconds_of("start", start).limit_denominator(10**9)
    if bit_depth is not None:
        values["bit_depth"] = bit_depth
    if video_filter is not None:
        values["filter"] = video_filter
    return " ".join(f"{name}={value}" for name, value in values.items())


def check_resumable(options: EncoderOptions, container: str) -> None:
    """Raise ConfigError where a run cannot be gone on with."""
    if container not in RESUMABLE:
        raise ConfigError(f"only {' and '.join(RESUMABLE)} can be resumed, not {container}")
    for name in ("bitrate", "quality", "maxrate"):
        if getattr(options, name) is not None:
            raise ConfigError(f"only runs at a constant qp or crf can be resumed: give no {name}")


def earlier_runs(target: Target, settings: str) -> list[EarlierRun]:
    """What earlier runs left of a target, the one with the most finished frames first.

    Raises:
        ConfigError: one was run with other settings.
        MediaError: one is still running.
    """
    runs = []
    for path in target.leftovers():
        if target.is_written(path):
            raise MediaError(f"another run is writing {path}")
        run = _read(path)
        if run is None:
            continue
        if run.settings != settings:
            raise ConfigError(
                f"{path} was coded with {run.settings or 'unknown settings'}, not with {settings}: "
                "give the same settings, or remove it"
            )
        runs.append(run)
    return sorted(runs, key=lambda run: run.finished, reverse=True)


def _read(path: FilePath) -> EarlierRun | None:
    """The run's header and intact packets; None where there is none."""
    packets: list[Packet] = []
    try:
        demuxer = Source(path).demuxer()
    except MediaError:
        return None
    with demuxer:
        info = next((each for each in demuxer.streams if is_neural(each)), None)
        if info is None:
            return None
        try:
            extradata = SequenceHeader.read(info.extradata).write()  # Matroska fills it up
        except BitstreamError:
            return None
        with suppress(BitstreamError, BridgeError):
            identity, number = None, 0
            while (packet := demuxer.read_packet()) is not None:
                if packet.stream_index != info.index:
                    continue
                number = 0 if packet.is_keyframe else number + 1
                found = None
                if packet.is_keyframe:
                    found = read_packet(packet.data)
                    identity = found.identity
                elif identity is not None:
                    found = read_packet(packet.data, key_identity=identity, after=number - 1)
                if found is not None and found.lost_levels:
                    break
                packets.append(coded_packet(packet))
    if not packets or not packets[0].is_keyframe:
        return None
    settings = {key.upper(): value for key, value in info.metadata.items()}.get(SETTINGS_TAG, "")
    return EarlierRun(path=path, settings=settings, extradata=extradata, packets=tuple(packets))


def remove(runs: Sequence[EarlierRun]) -> None:
    """Delete the files of runs that a complete target contains."""
    for run in runs:
        with suppress(OSError):
            run.path.unlink()
