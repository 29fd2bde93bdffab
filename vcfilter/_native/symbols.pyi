import numpy as np
import numpy.typing as npt

def quantise(
    u: npt.NDArray[np.float32],
    index: npt.NDArray[np.uint8],
    bits: npt.NDArray[np.float32],
    weight: float | npt.NDArray[np.float32],
    level_max: float,
) -> npt.NDArray[np.int32]: ...
