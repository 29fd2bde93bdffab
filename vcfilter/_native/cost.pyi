import numpy as np
import numpy.typing as npt

_Floats = npt.NDArray[np.float32]

def block_cost(
    x: _Floats,
    predicted: _Floats,
    rows: int,
    columns: int,
    basis: _Floats,
    weights: _Floats,
    coded: float,
    doubling: float,
) -> float: ...
