"""A live source into a neural file and a viewer:

    python examples/live.py out.mkv [source] [format] [seconds] [player command ...]

Without a source FFmpeg's test pattern is taken; a camera is "/dev/video0" with the format v4l2.
The viewer shows what the file will show: each packet is decoded right after it was written. It
lags by a segment, since frames between two keyframes are coded from both.
"""

import subprocess
import sys

import av

import vcfilter

TEST_PICTURE = "testsrc2=size=160x120:rate=15"
FFPLAY = ("ffplay", "-loglevel", "error", "-autoexit", "-window_title", "live", "-f", "nut", "-")


def main(
    target: str,
    source: str = TEST_PICTURE,
    source_format: str = "lavfi",
    seconds: str = "4",
    *player: str,
) -> None:
    decoder = vcfilter.Decoder()
    shown = 0
    with (
        av.open(source, format=source_format) as live,
        vcfilter.open(target, "w") as output,
        subprocess.Popen(player or FFPLAY, stdin=subprocess.PIPE) as process,
        av.open(process.stdin, "w", format="nut") as pipe,
    ):
        camera = live.streams.video[0]
        coded = output.add_stream(
            "vcfilter", rate=camera.average_rate, options={"preset": "ultrafast", "keyint": 6}
        )
        viewer = pipe.add_stream("rawvideo", rate=camera.average_rate)
        viewer.width, viewer.height, viewer.pix_fmt = camera.width, camera.height, "yuv420p"

        def write(packets: list) -> None:
            for packet in packets:
                output.mux(packet)
                show(
                    vcfilter.Packet(
                        data=bytes(packet), pts=packet.pts, is_keyframe=packet.is_keyframe
                    )
                )

        def show(packet: vcfilter.Packet | None) -> None:
            nonlocal shown
            for frame in decoder.decode(packet):
                av_frame = vcfilter.to_video_frame(frame, decoder.video_format, coded.time_base)
                pipe.mux(viewer.encode(av_frame))
                shown += 1

        frames = 0
        for frame in live.decode(camera):
            if frame.time >= float(seconds):
                break
            write(coded.encode(frame.reformat(format="yuv420p")))
            frames += 1
        write(coded.encode(None))
        show(None)
        pipe.mux(viewer.encode(None))
    print(f"{frames} frames coded into {target}, {shown} shown")


if __name__ == "__main__":
    main(*sys.argv[1:])
