"""One stream of random numbers for each purpose, so that changing one choice never moves another.

The same seed gives the same stream at every ratio, which is what makes contrasts between ratios paired.
"""

import hashlib

import numpy as np


def stream_seed(seed: int, *purpose: str | int) -> int:
    """A 63-bit integer that depends on the seed and on every word of the purpose."""
    text = "/".join([str(seed), *map(str, purpose)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def stream(seed: int, *purpose: str | int) -> np.random.Generator:
    """A generator for one purpose, e.g. `stream(seed, "pairs")` or `stream(seed, "order", "john")`."""
    # The generator is named, not numpy's default, which may change.
    return np.random.Generator(np.random.PCG64(stream_seed(seed, *purpose)))
