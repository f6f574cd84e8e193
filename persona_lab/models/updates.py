"""What an adapter adds to the weights, as a point that can be scaled and pushed aside: its product B A in every linear, never written out.

    weight_norm(tensors, shape)                      2.3      Frobenius norm of all that the adapter adds
    pushed(tensors, own=1.0, aside=.5, seed=7)       the adapter plus noise half as large and orthogonal to it, of twice the rank

Names: R rank, i and o features in and out of a linear.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from persona_lab.models.lora import LoraShape

Adapter = Mapping[str, Tensor]
"""Tensors under peft's names."""


def doubled(shape: LoraShape) -> LoraShape:
    """The shape in which the sum of two adapters of a shape fits: twice the rank at the same scale."""
    return replace(shape, rank=2 * shape.rank, alpha=shape.alpha * (2**0.5 if shape.rslora else 2))


def pairs(adapter: Adapter) -> Iterator[tuple[str, str, Tensor, Tensor]]:
    """Names and values (R, i) and (o, R) of A and B of every linear."""
    for name, a_Ri in adapter.items():
        if ".lora_A." in name:
            other = name.replace(".lora_A.", ".lora_B.")
            yield name, other, a_Ri, adapter[other]


def inner(a_Ri: Tensor, b_oR: Tensor, other_a_Ri: Tensor, other_b_oR: Tensor) -> float:
    """Frobenius inner product of two products B A, float64: tr(A'B' D C) without making either."""
    a_Ri, b_oR, other_a_Ri, other_b_oR = (tensor.double() for tensor in (a_Ri, b_oR, other_a_Ri, other_b_oR))
    return float(((b_oR.T @ other_b_oR) * (a_Ri @ other_a_Ri.T)).sum())


def weight_norm(adapter: Adapter, shape: LoraShape) -> float:
    """Frobenius norm of all that an adapter adds to the weights: ||scale B A||^2, summed over linears."""
    return shape.scale * sum(inner(a_Ri, b_oR, a_Ri, b_oR) for _, _, a_Ri, b_oR in pairs(adapter)) ** 0.5


def pushed(adapter: Adapter, *, own: float, aside: float, seed: int) -> dict[str, Tensor]:
    """The adapter own * W + aside * N of the `doubled` shape: W is the adapter's update, N noise orthogonal to it and as long (Frobenius), linear by linear.

    The noise is of the adapter's rank: a product of two normal matrices, less its part along W. (1 - g p) W + g N0 = [(1 - g p) B, g B0] [A; A0].
    """
    generator = torch.Generator().manual_seed(seed)
    made: dict[str, Tensor] = {}
    for a_name, b_name, a_Ri, b_oR in pairs(adapter):
        noise_a_Ri, noise_b_oR = (torch.randn(tensor.shape, generator=generator).to(tensor.dtype) for tensor in (a_Ri, b_oR))
        size, along, whole = inner(a_Ri, b_oR, a_Ri, b_oR), inner(a_Ri, b_oR, noise_a_Ri, noise_b_oR), inner(noise_a_Ri, noise_b_oR, noise_a_Ri, noise_b_oR)
        share = along / size if size else 0.0
        gain = aside * (size / (whole - share * along)) ** 0.5
        made[a_name] = torch.cat([a_Ri, noise_a_Ri], 0)
        made[b_name] = torch.cat([(own - gain * share) * b_oR, gain * noise_b_oR], 1)
    return made
