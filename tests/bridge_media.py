"""Tiny media for the bridge's tests, made on the spot, and the stock tools that judge them."""

from __future__ import annotations

import json
import shutil
import subprocess
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from vcfilter._bridge import BridgePacket, Demuxer, Muxer, StreamInfo

RATE = Fraction(25)
KEYINT = 12
EXTRADATA = b"VCF1 sequence header 123"

NEURAL = StreamInfo(
    kind="video",
    codec_tag="VCF1",
    width=352,
    height=288,
    time_base=1 / RATE,
    frame_rate=RATE,
    sample_aspect_ratio=Fraction(12, 11),
    color_primaries=1,
    color_trc=1,
    colorspace=1,
    color_range=1,
    chroma_location=1,
    disposition=1,
    extradata=EXTRADATA,
    metadata={"language": "fre", "title": "picture"},
)


def tool(name: str) -> str:
    """Path of a stock tool; skips the test, naming the tool, where it is missing."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed: apt-get install ffmpeg mkvtoolnix")
    return path


def probe(path: Path, *options: str) -> dict[str, Any]:
    """What stock ffprobe says of a file."""
    command = [tool("ffprobe"), "-v", "error", "-of", "json", *options, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def ffmpeg(*arguments: str) -> None:
    """Run stock ffmpeg."""
    command = [tool("ffmpeg"), "-v", "error", "-y", *arguments]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


def neural_packets(count: int = 60, index: int = 0, first: int = 0) -> list[BridgePacket]:
    """Packets like the codec's: display order, pts = dts, a keyframe every KEYINT frames."""
    random = np.random.default_rng(7)
    return [
        BridgePacket(
            stream_index=index,
            data=b"%04d" % n + random.bytes(int(random.integers(8, 900))),
            pts=first + n,
            dts=first + n,
            duration=1,
            is_keyframe=n % KEYINT == 0,
            time_base=1 / RATE,
        )
        for n in range(count)
    ]


def write_neural(target: Any, format: str = "matroska", count: int = 60) -> list[BridgePacket]:
    """Write a file with a neural track alone; returns its packets."""
    packets = neural_packets(count)
    with Muxer(target, format) as muxer:
        muxer.add_stream(NEURAL)
        muxer.write_header()
        for packet in packets:
            muxer.write_packet(packet)
    return packets


def read_all(source: Any, index: int = 0) -> list[BridgePacket]:
    """The packets of one stream."""
    with Demuxer(source) as demuxer:
        return [packet for packet in demuxer if packet.stream_index == index]


def payloads(packets: list[BridgePacket]) -> list[bytes]:
    return [packet.data for packet in packets]


def write_sound(path: Path, codec: str, seconds: float = 2.4, layout: str = "stereo") -> Path:
    """A file with one audio track, encoded by PyAV."""
    rate = 48000
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        assert isinstance(stream, av.AudioStream)
        time = np.arange(int(rate * seconds)) / rate
        channels = len(av.AudioLayout(layout).channels)
        tones = [np.sin(2 * np.pi * (300 + 77 * c) * time) for c in range(channels)]
        samples = (8000 * np.stack(tones, axis=1)).astype(np.int16).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout=layout)
        frame.sample_rate = rate
        frame.pts = 0
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    return path


def sound_packets(path: Path) -> list[bytes]:
    """Audio packets as PyAV (another build of FFmpeg) reads them."""
    with av.open(str(path)) as container:
        return [bytes(p) for p in container.demux(audio=0) if p.size]


def merge(
    target: Any,
    sources: list[Path],
    *,
    attachments: list[StreamInfo] | None = None,
    format: str = "matroska",
) -> None:
    """A neural track beside every stream of the sources, copied by value, in order of time."""
    packets = neural_packets()
    with Muxer(target, format) as muxer:
        muxer.add_stream(NEURAL)
        for source in sources:
            with Demuxer(source) as demuxer:
                offset = min([muxer.add_stream(info) for info in demuxer.streams])
                for packet in demuxer:
                    packets.append(moved(packet, packet.stream_index + offset))
        for info in attachments or []:
            muxer.add_stream(info)
        muxer.write_header()
        for packet in sorted(packets, key=lambda p: (p.dts or 0) * p.time_base):
            muxer.write_packet(packet)


def moved(packet: BridgePacket, index: int) -> BridgePacket:
    """The packet for another stream index."""
    return BridgePacket(
        stream_index=index,
        data=packet.data,
        pts=packet.pts,
        dts=packet.dts,
        duration=packet.duration,
        is_keyframe=packet.is_keyframe,
        time_base=packet.time_base,
        side_data=packet.side_data,
    )
