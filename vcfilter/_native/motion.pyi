import numpy as np
import numpy.typing as npt

_Floats = npt.NDArray[np.float32]

def warp(
    plane: _Floats, dx: _Floats, dy: _Floats, scale: float, cubic: bool, out: _Floats
) -> None: ...
def normal(x: _Floats, a: _Floats, b: _Floats | None, blend: _Floats) -> _Floats: ...
def agreement(a: _Floats, b: _Floats, left: float, right: float, factor: int) -> _Floats: ...
