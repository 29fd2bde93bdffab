import numpy as np
import numpy.typing as npt

_Floats = npt.NDArray[np.float32]

def blocks(luma: _Floats, factor: float, out: _Floats) -> None: ...
def bands(luma: _Floats, soft: _Floats, energy: _Floats) -> None: ...
def add_bands(
    luma: _Floats, soft: _Floats, gains: _Floats, added: _Floats, factor: float, out: _Floats
) -> None: ...
