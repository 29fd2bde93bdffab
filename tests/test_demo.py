"""The demo: the shipped clip, and the main job on its first frames."""

from __future__ import annotations

from pathlib import Path

import av
import pytest

from vcfilter.cli.demo import CLIP, CLIP_SECONDS, COMMAND
from vcfilter.cli.parser import command_parser
from vcfilter.cli.terminal import Terminal
from vcfilter.errors import ConfigError, MediaError


def demo(*args: str) -> int:
    return COMMAND.run(command_parser(COMMAND).parse(args), Terminal())


def test_the_shipped_clip_is_small_and_has_sound() -> None:
    assert CLIP.stat().st_size < 1_500_000
    with av.open(str(CLIP)) as clip:
        video, audio = clip.streams.video[0], clip.streams.audio[0]
        assert (video.width, video.height, video.frames) == (352, 288, 30 * CLIP_SECONDS)
        assert audio.layout.name == "stereo"


def test_demo_shows_what_a_user_wants_to_know(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo("--seconds", "0.3", "--preset", "ultrafast", "--out", str(tmp_path)) == 0
    shown = capsys.readouterr().out
    for word in ("kB", "kbit/s", "PSNR Y / U / V", "6:1:1", "frames/s", "play", "ffprobe"):
        assert word in shown
    for name in ("demo.mkv", "demo_decoded.mp4"):
        assert str(tmp_path / name) in shown
        with av.open(str(tmp_path / name)) as file:
            assert sum(1 for p in file.demux(video=0) if p.size) == 9
            assert len(file.streams.audio) == 1


def test_demo_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="seconds 11"):
        demo("--seconds", "11")
    with pytest.raises(ConfigError, match="qp 99"):
        demo("--qp", "99")
    (tmp_path / "file").write_text("")
    with pytest.raises(MediaError, match="cannot be made"):
        demo("--out", str(tmp_path / "file"))
