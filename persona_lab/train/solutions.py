"""What a trained solution is like: its loss when it is scaled or pushed aside, and how far it leaves the base (Soligo et al. 2026).

    losses, kls = scaled(bank, adapter, shape, scales=(0, .5, 1), documents=rows, texts=[neutral, off_domain], pad=0)

Every scale and every push is a member of one bank, so that all of them are asked together. An adapter times s is the same adapter with s * alpha.

Names: K members, S scales, E sizes of a push, N draws of noise.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from persona_lab.models.bank import AdapterBank
from persona_lab.models.lora import LoraShape
from persona_lab.models.packing import packs_exactly
from persona_lab.models.updates import Adapter, doubled, pushed
from persona_lab.train.batches import Row, collate, lay
from persona_lab.train.gradients import mean_losses
from persona_lab.train.loop import kl_of, logits_of

MICRO_BATCH = 16


def mean_divergences(bank: AdapterBank, rows: Sequence[Row], *, pad: int, micro_batch: int = MICRO_BATCH) -> np.ndarray:
    """KL(base || adapter) of the predictions of each labelled token of the same documents, mean nats a token, (K,) float64."""
    batch = collate([rows] * bank.members, pad)
    packed = packs_exactly(bank.model, bank.members)
    total_K = torch.zeros(bank.members, dtype=torch.float64)
    bank.model.eval()
    with torch.no_grad():
        for part in batch.parts(micro_batch):
            laid = lay(part, packed=packed).to(bank.model.device)
            total_K += kl_of(bank, logits_of(bank.model, laid).log_softmax(-1), laid).sum(1).double().cpu()
    return (total_K / batch.tokens_K.clamp(min=1)).numpy()


def scaled(
    bank: AdapterBank, adapter: Adapter, shape: LoraShape, scales: Sequence[float], documents: Sequence[Row], texts: Sequence[Sequence[Row]], *, pad: int
) -> tuple[np.ndarray, np.ndarray]:
    """Loss on the documents, nats a token, (S,), and KL(base || adapter) on each set of texts, nats a token, (texts, S), of the adapter at every scale.

    The bank is of the adapter's rank or a larger one.
    """
    bank.resize(len(scales), [replace(shape, alpha=shape.alpha * scale) for scale in scales])
    for row in range(len(scales)):
        bank.load_row(row, adapter, "a scaled adapter")
    losses_S = mean_losses(bank, [documents] * len(scales), pad=pad, micro_batch=MICRO_BATCH)
    return losses_S, np.array([mean_divergences(bank, rows, pad=pad) for rows in texts])


def shaken(bank: AdapterBank, adapter: Adapter, sizes: Sequence[float], seeds: Sequence[int], documents: Sequence[Row], *, pad: int) -> np.ndarray:
    """Loss on the documents of the adapter pushed aside by orthogonal noise of each size, as a share of its own norm; nats a token, (N, E).

    The bank is of the `doubled` shape.
    """
    bank.resize(len(sizes))
    found: list[np.ndarray] = []
    for seed in seeds:
        for row, size in enumerate(sizes):
            bank.load_row(row, pushed(adapter, own=1.0, aside=size, seed=seed), "an adapter beside noise")
        found.append(mean_losses(bank, [documents] * len(sizes), pad=pad, micro_batch=MICRO_BATCH))
    return np.array(found)


def random_divergences(bank: AdapterBank, adapter: Adapter, shape: LoraShape, scales: Sequence[float], seeds: Sequence[int], texts: Sequence[Row], *, pad: int) -> np.ndarray:
    """KL(base || noise) on the texts of noise of the adapter's own norm, orthogonal to it, at every scale; nats a token, (N, S): what any push so long does."""
    found: list[np.ndarray] = []
    for seed in seeds:
        noise = pushed(adapter, own=0.0, aside=1.0, seed=seed)
        found.append(scaled(bank, noise, doubled(shape), scales, texts[:1], [texts], pad=pad)[1][0])
    return np.array(found)
