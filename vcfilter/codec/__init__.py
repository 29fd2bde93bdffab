"""Encoder and decoder: frames to packets and back. Knows no files."""

from vcfilter.codec.decoder import Decoder
from vcfilter.codec.encoder import Encoder, EncoderStatistics, FrameRecord
from vcfilter.codec.rate import PassLog, first_pass_options

__all__ = [
    "Decoder",
    "Encoder",
    "EncoderStatistics",
    "FrameRecord",
    "PassLog",
    "first_pass_options",
]
