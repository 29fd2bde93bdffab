"""The `train` command: from folders of videos to a weights file."""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from vcfilter.errors import ConfigError, ModelMismatchError
from vcfilter.models import store
from vcfilter.models.hierarchical.config import HierarchicalConfig
from vcfilter.models.hierarchical.finish import FinishConfig, FinishNet, save_finish
from vcfilter.models.hierarchical.model import networks
from vcfilter.models.hierarchical.net import VideoNet
from vcfilter.models.weights import NAME_BYTES, read_weights
from vcfilter.nn.perceptual import weights_path
from vcfilter.options import Runtime
from vcfilter.train import between, levels
from vcfilter.train.data import Bank, Clip, Samples, crop_side, stills_of
from vcfilter.train.finishing import FinishTrainer, measure_start, train_finish
from vcfilter.train.freeze import freeze
from vcfilter.train.loop import Trainer, train
from vcfilter.train.machine import Processes, join, leave, settle
from vcfilter.train.material import gather
from vcfilter.train.pairs import make_pairs
from vcfilter.train.phases import FINISH, LAYERS, PHASES, Phase
from vcfilter.train.plot import draw
from vcfilter.train.start import classical, grow
from vcfilter.train.watch import read_log, read_notes

START_SIZE = 128  # side of the crops that the classical start is measured on
DEFAULT_STEPS = 5000
DEFAULT_PAIRS = 90
PLANS = 9  # of steps that are captured on a GPU: each takes 1 to 5 s once (H200)
Plan = list[tuple[Phase, int]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `train`."""
    parser.add_argument(
        "--data",
        nargs="+",
        required=True,
        metavar="DIR",
        help="folders of videos, of frames (Vimeo-90k, REDS), or of packed shards",
    )
    parser.add_argument("--out", required=True, metavar="FILE", help="weights file to write")
    parser.add_argument(
        "--model",
        metavar="NAME|ID|FILE",
        help="start from this model's weights (default: the classical start; for perceptual and "
        "finish the default model)",
    )
    parser.add_argument(
        "--config",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="widths and blocks of the networks, as image_width=48; those of --model may grow",
    )
    parser.add_argument(
        "--name",
        help="what the new model is found by, at most 32 bytes (default: the file's name)",
    )
    parser.add_argument(
        "--phase",
        nargs="+",
        default=["joint"],
        choices=[*PHASES, LAYERS.name, *between.NAMES, FINISH.name],
        help="rows of the training plan, in order (default: joint); perceptual trains --model for "
        "looks. These stand alone: layers, the tables of --model's quality levels; and, each with "
        "a file of its own, between, the learned part of interpolation, between-p, that of its "
        "look sharp, and finish, the look sharp of --model's frames",
    )
    parser.add_argument(
        "--steps",
        nargs="+",
        type=int,
        default=[DEFAULT_STEPS],
        metavar="N",
        help=f"optimiser steps of each phase, or one number for all (default: {DEFAULT_STEPS}); "
        "0: measure the tables, verify and write only",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        metavar="M",
        help="train the one phase for so long instead of --steps; the file is written after it",
    )
    parser.add_argument(
        "--no-freeze",
        action="store_true",
        help="end with OUT.average: another machine measures, verifies and writes the file",
    )
    parser.add_argument(
        "--pairs",
        type=int,
        default=DEFAULT_PAIRS,
        metavar="N",
        help=f"finish: shots that are coded to learn from (default: {DEFAULT_PAIRS})",
    )
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: all)")
    parser.add_argument(
        "--device", default="auto", help="a PyTorch device (default: auto, CUDA where there is one)"
    )
    parser.add_argument(
        "--precision",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="of the nonlinear branches; all else is float32 or exact (default: bfloat16 on CUDA)",
    )
    parser.add_argument(
        "--no-compile",
        action="store_true",
        help="on CUDA, do not compile elementwise functions: the first steps start sooner",
    )
    parser.add_argument(
        "--batch", type=int, default=1, metavar="N", help="N times the crops per step (default: 1)"
    )
    parser.add_argument(
        "--rate", type=float, default=1.0, metavar="X", help="X times the learning rate"
    )
    parser.add_argument(
        "--state",
        metavar="FILE",
        help="where the state is kept; found there, training goes on (default: OUT.state)",
    )
    parser.add_argument(
        "--keep",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="how often the state and OUT.average, its averaged weights, are kept (default: 60)",
    )
    parser.add_argument(
        "--log-every", type=int, default=50, metavar="N", help="steps per line (default: 50)"
    )
    parser.add_argument(
        "--cache",
        metavar="DIR",
        default=str(Path.home() / ".cache" / "vcfilter" / "train"),
        help="decoded videos, 1.5 bytes per sample (default: ~/.cache/vcfilter/train)",
    )


def run(args: argparse.Namespace) -> int:
    """Train, freeze, verify, write."""
    if set(between.NAMES) & set(args.phase):
        return run_between(args)
    if FINISH.name in args.phase:
        return run_finish(args)
    if LAYERS.name in args.phase:
        return run_layers(args)
    plan = plan_of(args.phase, args.steps)
    if args.no_freeze and not any(steps for _, steps in plan):
        raise ConfigError("--no-freeze without a step leaves nothing to do")
    if args.minutes is not None and len(plan) > 1:
        raise ConfigError(f"--minutes is for one phase, not for {len(plan)}")
    check_numbers(args)
    config_of(args.config)  # wrong names are reported before an hour of decoding
    if any(stage.features for phase, _ in plan for stage in phase.stages):
        weights_path("vgg")
    if args.model or plan[0][0].stages:
        own = networks(read_weights(store.locate(args.model)))[0]
        grow(own, config_of(args.config, own.config))
    name_of(args)
    if args.threads:
        torch.set_num_threads(args.threads)
    processes = join(args.device)
    try:
        train_plan(args, plan, processes)
    finally:
        leave(processes)
    return 0


def run_between(args: argparse.Namespace) -> int:
    """Train the learned part of interpolation, and write its file."""
    if len(args.phase) > 1 or len(args.steps) > 1 or args.no_freeze:
        name = next(each for each in args.phase if each in between.NAMES)
        raise ConfigError(f"phase {name!r} trains a file of its own: give it alone")
    check_numbers(args)
    if args.steps[0] < 0:
        raise ConfigError(f"steps {args.steps[0]} is below 0")
    name_of(args)
    if args.threads:
        torch.set_num_threads(args.threads)
    processes = join(args.device)
    try:
        between.run(args, args.steps[0], processes)
    finally:
        leave(processes)
    return 0


def run_layers(args: argparse.Namespace) -> int:
    """Train what quality levels add to a model's tables, and write the new model.

    Raises:
        ConfigError: an option does not fit.
    """
    if args.phase != [LAYERS.name] or len(args.steps) > 1 or args.no_freeze:
        raise ConfigError(f"phase {LAYERS.name!r} stands alone, with one number of steps")
    if args.config:
        raise ConfigError(f"phase {LAYERS.name!r} keeps the sizes of the networks: no --config")
    check_numbers(args)
    if args.steps[0] < 0:
        raise ConfigError(f"steps {args.steps[0]} is below 0")
    name = name_of(args)
    if args.threads:
        torch.set_num_threads(args.threads)
    steps = 0 if args.minutes is not None else args.steps[0]
    found = levels.run(args, steps)
    samples = Samples(found.clips, crop_side(found.clips, LAYERS.group_size), seed=4)
    card = {**card_of(found.clips), "steps": f"{LAYERS.name}:{found.steps}"}
    verified(
        args.out, freeze(found.net, samples, args.out, name, card, magnitudes=found.magnitudes)
    )
    if Path(f"{args.out}.jsonl").exists():
        draw_curves(args.out, "relative length")
    return 0


def check_numbers(args: argparse.Namespace) -> None:
    """Raise ConfigError where an option's number, or the folder of the file, cannot be used."""
    for name in ("batch", "rate", "log_every", "minutes", "pairs"):
        if getattr(args, name) is not None and getattr(args, name) <= 0:
            raise ConfigError(f"{name.replace('_', '-')} {getattr(args, name)} is not positive")
    target = Path(args.out)
    if not target.absolute().parent.is_dir():
        raise ConfigError(f"there is no folder {str(target.parent)!r} for {target.name!r}")


def run_finish(args: argparse.Namespace) -> int:
    """Code pairs, train a finish on them, write it.

    Raises:
        ConfigError: an option does not fit, or the weights of ST-LPIPS are not installed.
    """
    if len(args.phase) > 1 or len(args.steps) > 1:
        raise ConfigError(f"phase {FINISH.name!r} stands alone, with one number of steps")
    config = finish_config(args.config)
    check_numbers(args)
    if args.steps[0] < 0:
        raise ConfigError(f"steps {args.steps[0]} is below 0")
    name = name_of(args)
    weights_path("vgg")  # told before anything is decoded
    if args.threads:
        torch.set_num_threads(args.threads)
    runtime = Runtime(device=args.device, threads=args.threads)
    model = store.find(args.model, runtime)

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    clips = [c for c in gather(args.data, args.cache, say) if len(c.shots) < len(c.frames)]
    pairs = make_pairs(clips, model, args.pairs, args.cache, say)
    steps = 0 if args.minutes is not None else args.steps[0]
    device = store.pick_device(args.device)
    half = args.precision != "float32"
    state = Path(args.state or f"{args.out}.state")
    torch.manual_seed(7)
    begin = FinishNet(config)
    if not state.exists():
        say("measuring the start")
        measure_start(begin, pairs, args.precision != "float32")
    trainer = FinishTrainer(
        pairs, FINISH, steps, begin, rate=args.rate, batch=args.batch, half=half, device=device
    )
    about = {"model": model.info.id.hex(), "pairs": pairs.shots.tolist(), "batch": args.batch}
    if steps or args.minutes is not None:
        train_finish(
            trainer,
            state,
            Path(f"{args.out}.jsonl"),
            every=args.log_every,
            keep=args.keep,
            about=about,
            minutes=args.minutes,
        )
    card = {
        "data": f"{len(pairs.starts)} shots given by the user",
        "licence": "that of its training data and of vcfilter (MIT)",
        "steps": f"{FINISH.name}:{trainer.step}",
        "results": "not evaluated; run vcfilter evaluate --looks",
    }
    found = save_finish(args.out, trainer.weights(), model.info.id, name, card)
    say(f"{args.out}: finish {found.hex()} for the model {model.info.id.hex()}")
    if Path(f"{args.out}.jsonl").exists():
        draw_curves(args.out, "loss")
    return 0


def finish_config(settings: list[str]) -> FinishConfig:
    """The usual configuration of a finish with some values changed.

    Raises:
        ConfigError: a setting is not NAME=VALUE, or not one that is allowed.
    """
    try:
        return FinishConfig(**changed(asdict(FinishConfig()), settings))
    except ModelMismatchError as error:
        raise ConfigError(str(error)) from error


def changed(values: dict[str, Any], settings: list[str]) -> dict[str, Any]:
    """Values of a configuration with some of them set.

    Raises:
        ConfigError: a setting is not NAME=VALUE with a known name and a whole number.
    """
    result = dict(values)
    for setting in settings:
        name, _, value = setting.partition("=")
        if name not in values or not value.isdecimal():
            raise ConfigError(
                f"setting {setting!r} is not NAME=VALUE with a whole number and one of "
                f"{', '.join(values)}"
            )
        result[name] = int(value)
    return result


def plan_of(names: list[str], steps: list[int]) -> Plan:
    """Rows and their steps.

    Raises:
        ConfigError: steps do not fit.
    """
    if len(steps) not in (1, len(names)):
        raise ConfigError(f"{len(steps)} numbers of steps for {len(names)} phases")
    if min(steps) < 0:
        raise ConfigError(f"steps {min(steps)} is below 0")
    counts = steps * len(names) if len(steps) == 1 else steps
    return [(PHASES[name], count) for name, count in zip(names, counts, strict=True)]


def train_plan(args: argparse.Namespace, plan: Plan, processes: Processes) -> None:
    """All phases one after the other, each from the weights of the one before."""

    def say(text: str) -> None:
        if processes.first:
            print(text, file=sys.stderr, flush=True)

    if not processes.first:
        processes.wait()  # the first one decodes, the others find it in the cache
    clips = gather(args.data, args.cache, say)
    if processes.first:
        processes.wait()
    about = {
        "plan": " ".join(f"{phase.name}:{steps}" for phase, steps in plan),
        "batch": args.batch * processes.count,
        "material": hashlib.sha256(" ".join(c.key for c in clips).encode()).hexdigest()[:16],
    }
    state, log = (Path(args.state or f"{args.out}.state"), Path(f"{args.out}.jsonl"))
    notes = read_notes(state, about) if state.exists() else None
    begin = notes["number"] if notes else 0
    net = start(args, plan, clips, processes, resumed=notes is not None)
    bank = settle(clips, processes.device)
    for number, (phase, steps) in enumerate(plan):
        if number < begin or not steps:
            continue
        trainer = make_trainer(args, phase, steps, net, clips, bank, processes, number)
        goes_on = None
        if notes is not None and number == begin:
            goes_on = trainer.resume(state)
            say(f"going on from step {trainer.step} of {phase.name} in {str(state)!r}")
        train(
            trainer,
            state,
            log,
            every=args.log_every,
            keep=args.keep,
            number=number,
            notes={"about": about, "number": number},
            goes_on=goes_on,
            minutes=args.minutes,
            average=average_of(args.out),
        )
        net = trainer.weights()
        plan[number] = phase, trainer.step  # with --minutes only now known
    if processes.first and not args.no_freeze:
        finish(args, plan, clips, net, log)


def start(
    args: argparse.Namespace, plan: Plan, clips: list[Clip], processes: Processes, resumed: bool
) -> VideoNet:
    """The networks training begins from; only the first process need have them."""
    if args.model or plan[0][0].stages:
        net = networks(read_weights(store.locate(args.model)))[0]
        return grow(net, config_of(args.config, net.config)) if args.config else net
    config = config_of(args.config)
    if resumed or not processes.first:
        return VideoNet(config)  # filled from the state, or by the first process
    print("measuring the classical start", file=sys.stderr, flush=True)
    return classical(Samples(clips, crop_side(clips, START_SIZE), seed=3), config)


def config_of(settings: list[str], usual: HierarchicalConfig | None = None) -> HierarchicalConfig:
    """A configuration (default: the usual one) with some values changed.

    Raises:
        ConfigError: a setting is not NAME=VALUE, or not one that is allowed.
    """
    values: dict[str, Any] = asdict(usual or HierarchicalConfig())
    try:
        return HierarchicalConfig(**changed(values, settings))
    except ModelMismatchError as error:
        raise ConfigError(str(error)) from error


def name_of(args: argparse.Namespace) -> str:
    """The new model's name.

    Raises:
        ConfigError: it is too long, or cannot be printed.
    """
    name: str = args.name if args.name is not None else Path(args.out).stem
    if not 0 < len(name.encode()) <= NAME_BYTES or not name.isprintable():
        raise ConfigError(
            f"name {name!r} of a model is not 1 to {NAME_BYTES} bytes long: give a --name"
        )
    return name


def make_trainer(
    args: argparse.Namespace,
    phase: Phase,
    steps: int,
    net: VideoNet,
    clips: list[Clip],
    bank: Bank | None,
    processes: Processes,
    number: int,
) -> Trainer:
    """A trainer of one phase; every process and every start of it draws alike."""
    stills = stills_of(clips)
    wanted = max(phase.size if phase.keyframes else 0, phase.group_size if phase.groups else 0)
    side, still_side = crop_side(clips, wanted), crop_side(stills, phase.size)
    if side < wanted and processes.first:
        print(f"{phase.name}: crops of {side}x{side}: the clips are small", file=sys.stderr)
    device = processes.device
    cuda = device.type == "cuda"
    return Trainer(
        net,
        Samples(clips, side, 2 * number + 11, phase.augment, device, bank),
        Samples(stills, min(side, still_side), 2 * number + 12, phase.augment, device, bank),
        phase,
        steps,
        processes=processes,
        batch=args.batch,
        rate=args.rate,
        half=args.precision == "bfloat16" or (args.precision == "auto" and cuda),
        flow_threads=max(1, (os.cpu_count() or 1) // processes.count) if cuda else 1,
        fused=cuda and not args.no_compile,
        plans=PLANS if cuda and processes.count == 1 else 0,
    )


def average_of(out: str) -> Path:
    """Where the averaged weights lie while training goes on."""
    return Path(f"{out}.average")


def finish(
    args: argparse.Namespace, plan: Plan, clips: list[Clip], net: VideoNet, log: Path
) -> None:
    """Freeze, verify, write; the log's curves beside it."""
    steps = " ".join(f"{phase.name}:{steps}" for phase, steps in plan)
    samples = Samples(clips, crop_side(clips, max(p.group_size for p, _ in plan)), seed=4)
    card = {**card_of(clips), "steps": steps}
    verified(args.out, freeze(net, samples, args.out, name_of(args), card))
    if log.exists():
        draw_curves(args.out)


def card_of(clips: list[Clip]) -> dict[str, str]:
    """What a new model's file says of it, but for its steps."""
    return {
        "data": f"{len(clips)} arrays of videos and images given by the user",
        "licence": "that of its training data and of vcfilter (MIT)",
        "results": "not evaluated; run vcfilter evaluate --model",
    }


def verified(out: str, figures: dict[str, float]) -> None:
    """Tell what a new model was verified on; the averaged weights beside it go."""
    print(
        f"{out}: verified on {figures['frames']:.0f} frames, {figures['bytes']:.0f} coded "
        f"bytes (estimated {figures['estimated_bytes']:.0f})",
        file=sys.stderr,
    )
    average_of(out).unlink(missing_ok=True)


def draw_curves(out: str, label: str = "mean log cost") -> None:
    """The log's curves beside the weights file."""
    curve = Path(f"{out}.svg")
    try:
        draw(read_log(Path(f"{out}.jsonl")), curve, f"training of {Path(out).name}", label)
    except ConfigError as error:
        print(error, file=sys.stderr)
    else:
        print(f"curves in {curve}", file=sys.stderr)
