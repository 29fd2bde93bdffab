"""Frames to packets and back, without any file: python examples/encoder_decoder.py [frames]"""

import sys

import numpy as np

import vcfilter


def main(frames: str = "13") -> None:
    video_format = vcfilter.VideoFormat(width=96, height=64)
    encoder = vcfilter.Encoder(video_format, vcfilter.EncoderOptions(qp=26, preset="fast"))
    y, x = np.mgrid[:64, :96]
    sent, packets = [], []
    for index in range(int(frames)):
        luma = (128 + 80 * np.sin((x + 3 * index) / 8) * np.cos(y / 6)).astype(np.uint8)
        grey = np.full((32, 48), 128, np.uint8)
        sent.append(luma)
        packets += encoder.encode(vcfilter.Frame(y=luma, u=grey, v=grey, pts=index))
    packets += encoder.encode(None)  # drains

    decoder = vcfilter.Decoder(encoder.extradata)
    got = [frame for packet in packets for frame in decoder.decode(packet)]
    got += decoder.decode(None)

    for packet, frame, luma in zip(packets, got, sent, strict=True):
        error = np.mean((frame.y.astype(float) - luma) ** 2)
        kind = "key" if packet.is_keyframe else "inter"
        print(f"{frame.pts:3} {kind:5} {len(packet.data):5} bytes, luma MSE {error:.2f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
