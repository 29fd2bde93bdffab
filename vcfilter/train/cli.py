"""The `train` command: from folders of videos to a weights file."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from vcfilter.errors import ConfigError
from vcfilter.model.checkpoint import load_weights
from vcfilter.train.data import Samples, clips_of
from vcfilter.train.freeze import freeze
from vcfilter.train.loop import PHASES, Trainer, train
from vcfilter.train.start import classical


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `train`."""
    parser.add_argument("--data", nargs="+", required=True, metavar="DIR", help="folders of videos")
    parser.add_argument("--out", required=True, metavar="FILE", help="weights file to write")
    parser.add_argument(
        "--weights", metavar="FILE", help="start from these weights (default: the classical start)"
    )
    parser.add_argument(
        "--phase",
        default="joint",
        choices=list(PHASES),
        help="keyframes alone, or keyframes and inter frames together (default: joint)",
    )
    parser.add_argument("--steps", type=int, default=5000, help="optimiser steps (default: 5000)")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: all)")
    parser.add_argument(
        "--state",
        metavar="FILE",
        help="where the state is kept; found there, training goes on (default: OUT.state)",
    )
    parser.add_argument(
        "--cache",
        metavar="DIR",
        default=str(Path.home() / ".cache" / "vcfilter" / "train"),
        help="decoded videos, 1.5 bytes per sample (default: ~/.cache/vcfilter/train)",
    )


def run(args: argparse.Namespace) -> int:
    """Train, freeze, prove, write."""
    if args.steps < 1:
        raise ConfigError(f"steps {args.steps} is below 1")
    if args.threads:
        torch.set_num_threads(args.threads)
    phase = PHASES[args.phase]
    clips = clips_of(args.data, args.cache)
    size = max(phase.size, phase.group_size)
    samples, stills = Samples(clips, size, seed=1), Samples(clips, phase.size, seed=2)
    net = load_weights(args.weights)[0] if args.weights else classical(Samples(clips, 128, seed=3))
    trainer = Trainer(net, samples, stills, phase, args.steps)
    state = Path(args.state or f"{args.out}.state")
    if state.exists():
        trainer.resume(state)
        print(f"going on from step {trainer.step} of {state}", file=sys.stderr)
    train(trainer, state, Path(f"{state}.jsonl"))
    net = trainer.weights()
    card = {
        "data": f"{len(clips)} video files given by the user",
        "licence": "that of its training data and of vcfilter (MIT)",
        "steps": str(trainer.step),
        "results": "not evaluated; run vcfilter evaluate --weights",
    }
    figures = freeze(net, samples, args.out, card)
    print(
        f"{args.out}: proven on {figures['bytes']:.0f} coded bytes "
        f"(estimated {figures['estimated_bytes']:.0f})",
        file=sys.stderr,
    )
    return 0
