"""The array types that states and rows are made of."""

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.uint64]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
