"""From a frame's chosen symbols to the bytes of its sections, their loop filters added."""

from __future__ import annotations

import torch

from vcfilter.entropy.coder import Coder, EncodingCoder
from vcfilter.models.hierarchical.blocks import Size
from vcfilter.models.hierarchical.loop_filter import NO_FILTER, ChosenFilter, Filters
from vcfilter.models.hierarchical.mode import LEVELS_ALONE, FilterMode
from vcfilter.models.hierarchical.net import LevelCoder
from vcfilter.models.hierarchical.values import Reference

Chosen = tuple[EncodingCoder, list[LevelCoder], Reference]
"""A frame's symbols in the base and the levels above it, not yet in bytes; its reconstruction."""


def finish_sections(
    chosen: Chosen, filters: Filters | None, size: Size
) -> tuple[FilterMode | None, list[bytes], Reference]:
    """A frame's loop filter, payloads and reconstruction, filtered.

    Args:
        filters: what chooses a filter for the base and each level; None: there are none.
        size: rows and columns of the picture.

    Returns:
        How the filter is coded, the bytes of the base and each level (empty: nothing), and the
        reconstruction.
    """
    coder, levels, reference = chosen
    used = [level for level in levels if level.used]
    mode = None
    if filters is not None:
        stages = [*(level.below for level in used if level.below is not None), reference.planes]
        if used and reference.lowest is not None:
            stages[0] = reference.lowest.planes
        found = filters.choose(stages[0])
        base = shown = NO_FILTER if found is None else found.filter
        coders: list[tuple[Coder, ChosenFilter]] = [] if found is None else [(coder, found)]
        for level, seen in zip(used, stages[1:], strict=True):
            finer = filters.choose_level(seen, level.drop, shown)
            shown = finer.filter
            coders.append((level.passes[-1], finer))
        if found is not None or shown != NO_FILTER:
            mode = FilterMode(source=LEVELS_ALONE) if found is None else found.mode
            for own, each in coders:
                assert isinstance(own, EncodingCoder)
                for changes, table in each.changes:
                    symbols = torch.tensor(changes, device=reference.planes[0].device)
                    own.repeat([(symbols, torch.full_like(symbols, table))])
            reference = reference.filtered(base, shown, size)
    payloads = [coder.finish()]
    for level in levels:
        last = level.passes[-1]
        assert isinstance(last, EncodingCoder)
        payloads.append(last.finish() if level.used else b"")
    return mode, payloads, reference
