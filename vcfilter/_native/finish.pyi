import numpy as np
import numpy.typing as npt

_Floats = npt.NDArray[np.float32]

def coefficients(luma: _Floats, basis: _Floats, factor: float, out: _Floats) -> None: ...
def add_bands(
    luma: _Floats, change: _Floats, factor: float, usual: _Floats, faint: _Floats, out: _Floats
) -> None: ...
