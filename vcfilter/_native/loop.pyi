import numpy as np
import numpy.typing as npt

_Floats = npt.NDArray[np.float32]

def loop_filter(
    plane: _Floats, guide: _Floats | None, clip: float, busy: float, weights: _Floats, out: _Floats
) -> None: ...
def loop_sums(
    plane: _Floats,
    guide: _Floats | None,
    target: _Floats,
    rows: int,
    columns: int,
    clip: float,
    busy: float,
) -> npt.NDArray[np.float64]: ...
def descend(
    products: npt.NDArray[np.float64],
    errors: npt.NDArray[np.float64],
    start: npt.NDArray[np.float64],
    source: npt.NDArray[np.float64],
    first: int,
    price: float,
    limit: float,
    sweeps: int,
) -> npt.NDArray[np.float64]: ...
