"""Encoder and decoder: frames to packets and back, without files."""

from vcfilter.codec.capacity import fitting_processes
from vcfilter.codec.cluster import ClusterExecutor
from vcfilter.codec.decoder import Decoder
from vcfilter.codec.encoder import Encoder, EncoderStatistics
from vcfilter.codec.executor import Executor, ProcessExecutor, ThreadExecutor
from vcfilter.codec.rate import DEFAULT_QP, PassLog, first_pass_options, is_far
from vcfilter.codec.segment import FrameRecord

__all__ = [
    "DEFAULT_QP",
    "ClusterExecutor",
    "Decoder",
    "Encoder",
    "EncoderStatistics",
    "Executor",
    "FrameRecord",
    "PassLog",
    "ProcessExecutor",
    "ThreadExecutor",
    "first_pass_options",
    "fitting_processes",
    "is_far",
]
