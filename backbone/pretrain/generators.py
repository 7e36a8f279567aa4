"""Random numbers as a function of stated numbers, for libraries that draw from the global generators."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Within, Python's, NumPy's and torch's CPU generators draw what follows from ``numbers`` (not negative) alone.

    Afterwards all three are as they were.
    """
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    for_python, for_numpy, for_torch = np.random.SeedSequence(numbers).generate_state(3)
    random.seed(int(for_python))
    np.random.seed(for_numpy)
    torch.default_generator.manual_seed(int(for_torch))
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
