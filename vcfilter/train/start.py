"""The classical start: tables and static indices measured on data, every learned branch at zero."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vcfilter.entropy import tables
from vcfilter.entropy.coder import quantise
from vcfilter.errors import ConfigError
from vcfilter.models.hierarchical.conditions import KNOTS, LAYERS, Conditions
from vcfilter.models.hierarchical.config import HierarchicalConfig
from vcfilter.models.hierarchical.latent import LatentModel, StepModel
from vcfilter.models.hierarchical.mode import MotionMode
from vcfilter.models.hierarchical.net import VideoNet
from vcfilter.models.hierarchical.search import estimate_motion
from vcfilter.train.data import Planes, Samples

UNITS_PER_INDEX = 8.0  # 32 (a context feature) / 4 (the output's extra shift of two bits)


class MagnitudeRecorder:
    """A coder that codes nothing and keeps, per step, the mean magnitude of each channel."""

    def __init__(self, bits: Tensor) -> None:
        self.bits = bits
        self.magnitudes: list[Tensor] = []

    def code(self, u: Tensor, index: Tensor, rd_scale: Tensor | float = 1.0) -> Tensor:
        """Symbols for u; notes E|u| per channel."""
        whole = torch.full_like(index, 20).long()
        symbols = quantise(u, whole, self.bits, rd_scale)
        self.magnitudes.append(symbols.abs().mean((0, 1)))
        return symbols


def index_of(mean_magnitude: Tensor) -> Tensor:
    """The table whose Laplace distribution has a conditions mean magnitude of symbols."""
    scales = tables.scales()
    means = np.exp(-0.5 / scales) / (1 - np.exp(-1.0 / scales))
    log = np.log(means)
    values = np.log(np.maximum(mean_magnitude.double().numpy(), 1e-4))
    return torch.from_numpy(np.interp(values, log, np.arange(tables.TABLES))).float()


@torch.no_grad()
def calibrate(net: VideoNet, samples: Samples, batch: int = 8) -> None:
    """Set the static table index of each channel, per qp and layer, from what a few clips show."""
    bits = torch.from_numpy(tables.cost_bits(tables.laplace_magnitudes())).float()
    image = torch.zeros(LAYERS, KNOTS, net.image.coding.channels)
    motion = torch.zeros(LAYERS, KNOTS, net.motion.coding.channels)
    for knot in range(KNOTS):
        for layer in range(1, LAYERS):
            distance = min((6, 3, 1)[layer - 1], max(1, (samples.longest - 1) // 2))
            frames: list[Planes] = samples.draw([0, distance, 2 * distance], batch)
            qp = min(63, 8 * knot)
            recorder = MagnitudeRecorder(bits)
            conditions = condition(qp, 0, 0, batch)
            pair = (
                net.code_keyframe(conditions, frames[0], recorder),
                net.code_keyframe(conditions, frames[2], recorder),
            )
            image[0, knot] += (
                spread(recorder.magnitudes[: len(net.image.coding.plan)], net.image.coding) / 3
            )
            recorder.magnitudes.clear()
            conditions = condition(qp, layer, distance, batch)
            estimate = estimate_motion(conditions, frames[1], pair)
            moved = net.code_motion(conditions, estimate, pair, recorder)
            net.code_inter(MotionMode.CODED, True, conditions, frames[1], pair, recorder, moved)
            split = len(net.motion.coding.plan)
            motion[layer, knot] = spread(recorder.magnitudes[:split], net.motion.coding)
            image[layer, knot] = spread(recorder.magnitudes[split:], net.image.coding)
    motion[0] = motion[1]
    for latent, means in ((net.image.coding, image), (net.motion.coding, motion)):
        index = index_of(means)
        knots = index.mean(0)
        layers = (index - knots).mean(1)
        for model in latent.steps:
            assert isinstance(model, StepModel)
            chosen = slice(model.step.low, model.step.high)
            weight = model.index_context.weight
            weight[:, :KNOTS] = knots[:, chosen].T / UNITS_PER_INDEX
            weight[:, KNOTS : KNOTS + LAYERS] = layers[:, chosen].T / UNITS_PER_INDEX


def spread(magnitudes: list[Tensor], latent: LatentModel) -> Tensor:
    """(channels,) mean magnitudes, averaged over the steps that hold each channel."""
    total = torch.zeros(latent.channels)
    count = torch.zeros(latent.channels)
    for mean, step in zip(magnitudes, latent.plan, strict=True):
        if mean.isnan().any():  # small crops have no place of this step
            continue
        weight = len(step.sites) / step.stride**2
        total[step.low : step.high] += mean * weight
        count[step.low : step.high] += weight
    return total / count


def condition(qp: int, layer: int, distance: int, batch: int) -> Conditions:
    """The same frame conditions for a whole batch."""
    one = torch.ones(batch, dtype=torch.int64)
    return Conditions(one * qp, one * layer, torch.stack([-one, one], 1) * distance, one * 3)


def classical(samples: Samples, config: HierarchicalConfig | None = None) -> VideoNet:
    """Networks that are a working classical codec, nothing learned but static statistics."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = VideoNet(config)
    average_neighbours(net.motion.coding)
    average_neighbours(net.image.coding)
    for model in net.image.coding.steps:  # inter frames' residuals are hardly alike
        assert isinstance(model, StepModel)
        model.gain.weight.data[:, KNOTS + 1 : KNOTS + LAYERS] = -0.9
    calibrate(net, samples)
    return net


@torch.no_grad()
def average_neighbours(latent: LatentModel) -> None:
    """The lowest channels' means start as the average of the known neighbours."""
    for model in latent.steps:
        assert isinstance(model, StepModel)
        step = model.step
        if step.low > 0 or len(step.sites) == 4:
            continue
        kernel = torch.zeros(3, 3)
        if step.sites == ((1, 1),):
            kernel[::2, ::2] = 0.25
        else:
            kernel[1, ::2] = kernel[::2, 1] = 0.25
        for channel in range(step.high):
            model.mean.weight[channel, channel] = kernel


@torch.no_grad()
def grow(net: VideoNet, config: HierarchicalConfig) -> VideoNet:
    """Larger networks that compute what smaller ones do.

    What is new begins at random inside and with zeros on its way out.

    Args:
        config: no width or number of blocks is below the given networks' own.

    Raises:
        ConfigError: one is, or the steps of the latents differ.
    """
    small, larger = net.state_dict(), VideoNet(config)
    state = larger.state_dict()
    for name, new in state.items():
        old = small.get(name)
        if old is None:  # of a new block, which adds nothing yet
            if ".narrow." in name:
                new.zero_()
            continue
        parts, olds = [new], [old]
        if ".modulate." in name:  # gains above shifts
            parts, olds = list(new.chunk(2)), list(old.chunk(2))
        for part, own in zip(parts, olds, strict=True):
            if any(a < b for a, b in zip(part.shape, own.shape, strict=True)):
                raise ConfigError(f"{name} of the model is larger than in the new configuration")
            if part.dim() > 1:
                part[: own.shape[0], own.shape[1] :] = 0
            part[tuple(slice(0, n) for n in own.shape)] = own
    larger.load_state_dict(state)
    return larger
