"""Types of arrays in the signatures of functions."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float32]  # embeddings, (n, d)
Floats = npt.NDArray[np.floating[Any]]  # numbers of any precision
Array = npt.NDArray[np.float64]  # statistics and scores
Indices = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Pixels = npt.NDArray[np.uint8]  # RGB, (..., height, width, 3)
