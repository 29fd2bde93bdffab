import numpy as np
import numpy.typing as npt

_Floats = npt.NDArray[np.float32]
_Places = npt.NDArray[np.int64]

def filtered(
    maps: _Floats, weight: _Floats, bias: _Floats, where: _Places, out: _Floats, first: int
) -> None: ...
def neighbours(maps: _Floats, side: int, where: _Places, out: _Floats, first: int) -> None: ...
