from typing import Any

import numpy as np
import numpy.typing as npt

_Floats = npt.NDArray[np.float32]
_Places = npt.NDArray[np.int64]
_Sums = npt.NDArray[np.int32]

class StepTables:
    def __init__(
        self,
        near: _Floats,
        near_bias: _Floats,
        past: _Floats,
        past_bias: _Floats,
        hidden: _Floats,
        linear: _Floats,
        index: _Floats,
        known: int,
    ) -> None: ...
    def indices(
        self,
        seen: _Floats,
        symbols: _Floats,
        activity: _Floats,
        where: _Places,
        first: _Sums,
        second: _Sums,
        last: _Floats,
        lowest: float,
        highest: float,
        out: _Floats,
    ) -> None: ...
    def costs(
        self,
        seen: _Floats,
        symbols: _Floats,
        activity: _Floats,
        where: _Places,
        first: _Sums,
        second: _Sums,
        last: _Floats,
        slopes: _Floats,
        known: _Floats,
        costs: _Floats,
    ) -> None: ...

def dense_ways() -> int: ...
def dense(weight: _Floats, x: npt.NDArray[np.int16], start: _Sums, way: int) -> _Sums: ...
def padded(values: npt.NDArray[Any]) -> _Sums: ...
def store(
    symbols: _Floats, levels: _Floats, at: _Places, low: int, maps: _Floats, seen: _Floats
) -> None: ...
def values(
    mean: _Floats, symbols: _Floats, steps: _Floats, at: _Places, low: int, maps: _Floats
) -> None: ...
def neighbours(maps: _Floats, side: int, where: _Places, out: _Floats, first: int) -> None: ...
