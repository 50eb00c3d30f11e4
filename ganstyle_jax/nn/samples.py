"""What can be told of samples by themselves."""

import numpy as np


def diversity(pictures: np.ndarray) -> float:
    """How much the pictures of a batch differ: each value's standard deviation over the batch, on average."""
    return float(np.asarray(pictures, np.float64).std(axis=0).mean())
