import numpy as np
import numpy.typing as npt

_Floats = npt.NDArray[np.float32]

def tile(maps: _Floats, first: int, tiles: _Floats) -> None: ...
def untile(tiles: _Floats, first: int, gain: _Floats, shift: _Floats, maps: _Floats) -> None: ...
