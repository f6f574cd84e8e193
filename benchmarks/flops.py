"""What a training step must multiply, and how fast this machine multiplies.

FLOPs count what is multiplied on real tokens: forward and activation gradients of frozen linears (4 per weight and
token; 2 where the input is the embedding, which has no gradient), LoRA (6), output layer (4), attention (forward and
backward, 12 T d per layer and token, the half that no token may see included). Padding and everything that is no
product counts as time only.
"""

import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from persona_lab.models.bank import AdapterBank

FED_BY_EMBEDDING = tuple(f"layers.0.self_attn.{leaf}_proj" for leaf in "qkv")
"""Linears of a Llama that see nothing that is trained."""


def train_flops(bank: AdapterBank, lengths: Sequence[int]) -> float:
    """Useful FLOPs of training one adapter on documents of so many tokens."""
    length_N = np.array(lengths)
    linears = bank.layers
    frozen = sum(m.d_in * m.d_out for m in linears.values())
    lora = sum(m.size for m in linears.values())
    first = [m for name, m in linears.items() if name.endswith(FED_BY_EMBEDDING)]
    spared = sum(m.d_in * m.d_out + bank.shape.rank * m.d_in for m in first)
    config = bank.model.config
    head = config.hidden_size * config.vocab_size
    attention = 12 * config.hidden_size * config.num_hidden_layers * float((length_N**2).sum())
    return float(length_N.sum()) * (4 * frozen + 6 * lora + 4 * head - 2 * spared) + attention


def product_rate(m: int, k: int, n: int, clock: Callable[[], float] = time.perf_counter) -> Callable[[], float]:
    """A measurement of FLOP/s of one float32 product shape."""
    a, b = torch.randn(m, k), torch.randn(k, n)
    repeats = max(3, int(2e9 / (2 * m * k * n)))

    def measure() -> float:
        start = clock()
        out: Tensor | None = None
        for _ in range(repeats):
            out = a @ b
        assert out is not None
        return 2 * m * k * n * repeats / (clock() - start)

    return measure


def spread(values: Sequence[float]) -> str:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else [*values] * 3
    return f"{middle:.4g} [{low:.4g}, {high:.4g}]"
