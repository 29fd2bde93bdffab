"""A codec worker with the fake model: quick, and able to code every structure."""

from __future__ import annotations

from dataclasses import replace

from fake_model import FakeModel

from vcfilter.codec import Decoder, Encoder
from vcfilter.frames import VideoFormat
from vcfilter.options import DecoderOptions, EncoderOptions, Runtime
from vcfilter.worker.connection import Codecs
from vcfilter.worker.server import serve_standard_input


class FakeCodecs(Codecs):
    """Codecs of the fake model."""

    def __init__(self) -> None:
        super().__init__(Runtime(device="cpu"))
        self.model = FakeModel()
        self.options = DecoderOptions()

    def decoder(self, extradata: bytes, look: str = "natural") -> Decoder:
        return Decoder(extradata or None, replace(self.options, look=look), model=self.model)

    def encoder(self, video_format: VideoFormat, options: EncoderOptions) -> Encoder:
        return Encoder(video_format, options, model=self.model)


if __name__ == "__main__":
    serve_standard_input(FakeCodecs())
