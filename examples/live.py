"""Live: how long it takes from the camera to the screen.

    python examples/live.py [--seconds 3] [--line pipe|udp] [--rate 10] [--size 160x120]

A test source burns each frame's number into the picture and hands it, in real time, to
`vcfilter encode --tune zerolatency`. The NUT stream that comes out goes through a pipe, or as UDP
datagrams over 127.0.0.1, to a viewer, which decodes it and reads the numbers. It ends after the
seconds that are asked for, or with Ctrl-C.
"""

import argparse
import os
import socket
import statistics
import subprocess
import sys
import threading
import time

import numpy as np

import vcfilter

BITS, BLOCK = 12, 8  # the number is a row of blocks, the highest bit at the left
ENCODE = (sys.executable, "-m", "vcfilter", "encode", "--tune", "zerolatency")
START_SECONDS = 120.0  # both sides load their networks


def test_frame(number: int, width: int, height: int) -> bytes:
    """A y4m frame: moving waves, and the number in their upper left corner."""
    rows, columns = np.mgrid[:height, :width]
    luma = (128 + 60 * np.sin((columns + 2 * number) / 9) * np.cos(rows / 7)).astype(np.uint8)
    for bit in range(BITS):
        on = number >> (BITS - 1 - bit) & 1
        luma[: 2 * BLOCK, bit * BLOCK : (bit + 1) * BLOCK] = 235 if on else 16
    chroma = np.full(2 * (-(-width // 2) * -(-height // 2)), 128, np.uint8)
    return b"FRAME\n" + luma.tobytes() + chroma.tobytes()


def number_in(luma: np.ndarray) -> int:
    """The number that a decoded picture shows."""
    blocks = luma[: 2 * BLOCK, : BITS * BLOCK].reshape(-1, BITS, BLOCK).mean(axis=(0, 2))
    return int("".join("01"[int(mean > 125)] for mean in blocks), 2)


class Datagrams:
    """What arrives at a UDP socket, as a file that cannot seek; an empty datagram ends it."""

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self.socket.bind(("127.0.0.1", 0))
        self.address = self.socket.getsockname()
        self.waiting = b""

    def peek(self, size: int) -> bytes:
        self.waiting = self.waiting or self.socket.recv(1 << 16)
        return self.waiting[:size]

    def read(self, size: int) -> bytes:
        data = self.peek(size)
        self.waiting = self.waiting[len(data) :]
        return data

    def seekable(self) -> bool:
        return False


def send(pipe: int, address: tuple[str, int]) -> None:
    """Pass on what an encoder writes, in datagrams."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        while data := os.read(pipe, 1200):
            sender.sendto(data, address)
        sender.sendto(b"", address)


class Viewer(threading.Thread):
    """Decodes a stream and notes when each number appeared, and the newest one given by then."""

    def __init__(self, stream: object, given: list[float]) -> None:
        super().__init__(daemon=True)
        self.stream, self.given = stream, given
        self.seen: dict[int, tuple[float, int]] = {}
        self.first = threading.Event()

    def run(self) -> None:
        runtime = vcfilter.Runtime(threads=1)
        try:
            with vcfilter.open(self.stream, runtime=runtime) as video:
                for frame in video.decode(video=0):
                    number = number_in(frame.to_ndarray(format="gray"))
                    self.seen[number] = time.monotonic(), len(self.given) - 1
                    self.first.set()
        finally:
            self.first.set()


def play(source: object, given: list[float], viewer: Viewer, options: argparse.Namespace) -> None:
    """Hand frames to the encoder, in real time once the first one was seen."""
    width, height = map(int, options.size.split("x"))
    source.write(f"YUV4MPEG2 W{width} H{height} F{options.rate}:1 Ip A1:1 C420jpeg\n".encode())
    start = time.monotonic()
    for number in range(1 + round(options.seconds * options.rate)):
        if number == 1:
            viewer.first.wait(START_SECONDS)
            start = time.monotonic()
        time.sleep(max(0.0, start + (number - 1) / options.rate - time.monotonic()))
        picture = test_frame(number, width, height)
        given.append(time.monotonic())
        source.write(picture)
        source.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the delay of a live stream.")
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--line", choices=("pipe", "udp"), default="pipe")
    parser.add_argument("--rate", type=int, default=10, help="frames per second")
    parser.add_argument("--size", default="160x120", help="at least 96x32")
    parser.add_argument("--preset", default="ultrafast")
    options = parser.parse_args()
    command = [
        *ENCODE,
        "--qp",
        "20",
        "--preset",
        options.preset,
        "--threads",
        "1",
        "-q",
        "-",
        "-",
        "-f",
        "nut",
    ]
    given: list[float] = []
    # In a session of its own: Ctrl-C ends the source, and with it the encoder.
    encoder = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    stream = encoder.stdout
    if options.line == "udp":
        stream = Datagrams()
        relay = (encoder.stdout.fileno(), stream.address)
        threading.Thread(target=send, args=relay, daemon=True).start()
    viewer = Viewer(stream, given)
    viewer.start()
    try:
        play(encoder.stdin, given, viewer, options)
    except (KeyboardInterrupt, BrokenPipeError):
        pass
    finally:
        try:
            encoder.stdin.close()
            viewer.join(10)
            encoder.wait(10)
        except (KeyboardInterrupt, BrokenPipeError, subprocess.TimeoutExpired):
            encoder.kill()
            encoder.wait()
    # The first frame waited for the networks.
    delays = [(at - given[n], newest - n) for n, (at, newest) in viewer.seen.items() if n]
    if not delays:
        print(f"{len(given)} frames given, none of them seen in time")
        return
    seconds, frames = zip(*delays, strict=True)
    print(
        f"{options.line}: {len(delays)} of {len(given) - 1} frames seen; delay "
        f"median {statistics.median(frames):g} frames, {1000 * statistics.median(seconds):.0f} ms; "
        f"maximum {max(frames)} frames, {1000 * max(seconds):.0f} ms"
    )


if __name__ == "__main__":
    main()
