"""Do the traits of one persona become one thing inside the model, and in which layer?

    reading  phase   layer  alignment                 family-wise p
    said     after   2      0.31 [0.22, 0.40]         0.001

The concept vector of a trait is the difference of two mean hidden states: the first rival's value less the second's, in one category (`probes.concepts`).
Where the traits of a persona are fused, the vectors of its different traits point the same way: the *alignment* of a layer is their mean cosine over
pairs of categories. Within minus between personas would be twice that, because centred on two rivals the one's vector is the other's turned round; raw
states would all be alike, which is why they are centred (SCIENCE.md section 4). Only where nobody is named is this about the traits: the states of somebody
whose trait is asked for share one name, are aligned by that, and come apart in the layers that look the trait up; so no fusion is stated of them.

Which rival has which of two values is the seed's draw. So if the model knew nothing of personas every vector might as well point the other way, and
turning them round, seed by seed and category by category, gives the distribution of the largest alignment of any layer (reference L11). Both swaps and all
points of a seed turn together. Two random directions in d dimensions have E|cos| = sqrt(2 / (pi d)).

Names: S seeds, P sign patterns, R owners (first rival, second), C categories, Q pairs of categories, L layers with the embedding, d features.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd

from persona_lab.science.claims import FEWEST_SEEDS, Said, figure, seeds_words
from persona_lab.science.effects import Frame, Settings, phases
from persona_lab.science.stages.order import stated
from persona_lab.science.stages.transfer import LEVEL, signs
from persona_lab.science.thresholds import over_seeds

READINGS = {"said": "traits, said by nobody in particular", "named": "persons, whose trait is asked for"}
PHASES = {"base": "in the base", "before": "before the last stage", "after": "after the last stage"}


def cosines(state_RCLd: np.ndarray) -> np.ndarray:
    """Cosines of the concept vectors of every two categories, (L, Q) in the order of `itertools.combinations`; NaN where a vector has no length."""
    vector_CLd = np.asarray(state_RCLd[0] - state_RCLd[1], dtype=float)
    length_CL = np.linalg.norm(vector_CLd, axis=-1)
    pairs = list(combinations(range(len(vector_CLd)), 2))
    found_LQ = np.full((vector_CLd.shape[1], len(pairs)), np.nan)
    for q, (c, other) in enumerate(pairs):
        product_L, lengths_L = (vector_CLd[c] * vector_CLd[other]).sum(-1), length_CL[c] * length_CL[other]
        np.divide(product_L, lengths_L, out=found_LQ[:, q], where=lengths_L > 0)
    return found_LQ


def random_cosine(width: int) -> float:
    """Expected size of the cosine of two random directions in so many dimensions."""
    return float(np.sqrt(2 / (np.pi * width)))


@dataclass(frozen=True)
class Alignment:
    """One reading in one phase, over seeds; a layer whose vectors have no length is NaN."""

    alignment_SL: np.ndarray
    """Mean cosine over pairs of categories, of each seed."""
    p_L: np.ndarray
    """Family-wise: the share of sign patterns whose most aligned layer, by its own spread under the null, is as far above it."""
    chance_L: np.ndarray
    """95 % of the patterns have a mean alignment below this."""

    @property
    def fused(self) -> int | None:
        """The first layer that is aligned beyond chance; the embedding is layer 0."""
        return next((layer for layer, p in enumerate(self.p_L) if p < LEVEL), None)


def aligned(cosine_SLQ: np.ndarray) -> Alignment:
    """Alignment of each layer, and how often chance does as well.

    Args:
        cosine_SLQ: one matrix for each seed, its pairs in the order of `cosines`.
    """
    seeds, _, count = cosine_SLQ.shape
    categories = round((1 + (1 + 8 * count) ** 0.5) / 2)
    sign_PSC = signs(seeds, categories)
    first, second = np.array(list(combinations(range(categories), 2))).T
    sign_PSQ = sign_PSC[:, :, first] * sign_PSC[:, :, second]
    there_L = np.asarray(np.isfinite(cosine_SLQ).all(axis=(0, 2)))
    mean_PL = np.full((len(sign_PSC), len(there_L)), np.nan)
    mean_PL[:, there_L] = np.einsum("psq,slq->pl", sign_PSQ, cosine_SLQ[:, there_L]) / (seeds * count)
    spread_L = mean_PL.std(axis=0)
    size_PL = mean_PL / np.where(spread_L > 0, spread_L, np.nan)
    p_L = np.full(len(there_L), np.nan)
    if np.isfinite(size_PL).any():
        largest_P = np.nanmax(size_PL, axis=1)
        # Ties with the observed pattern count, whatever the rounding.
        p_L = np.where(np.isfinite(size_PL[0]), (largest_P[:, None] >= size_PL[0] - 1e-9).mean(0), np.nan)
    return Alignment(cosine_SLQ.mean(-1), p_L, np.quantile(mean_PL, 0.95, axis=0))


def by_phase(vectors: Frame, settings: Settings) -> Frame:
    """Mean cosine by seed, reading, phase, layer and pair of the treatment; a stage is both `base` and `before` where nothing lies between.

    `vectors`: one row per cell, stage, reading, layer and pair of categories, with `cosine`, `condition` and `seed`.
    """
    rows: Frame = vectors[vectors["condition"] == settings.treatment]
    last = rows.merge(phases(rows, settings), on=["condition", "stage"])
    every: Frame = pd.concat([rows[rows["stage"] == "base"].assign(phase="base"), last], ignore_index=True)
    return every.groupby(["reading", "phase", "seed", "layer", "pair"], sort=False)["cosine"].mean().reset_index()


def array_of(rows: Frame) -> np.ndarray:
    """Cosines of one reading and phase, (S, L, Q); seeds that lack a pair are left out."""
    wide: Frame = rows.pivot_table(index="seed", columns=["layer", "pair"], values="cosine", sort=False, dropna=False)
    layers, pairs = rows["layer"].nunique(), rows["pair"].nunique()
    wide = wide.reindex(columns=pd.MultiIndex.from_product([sorted(rows["layer"].unique()), list(dict.fromkeys(rows["pair"]))]))
    return wide.to_numpy(float).reshape(len(wide), layers, pairs)


def concept_claims(vectors: Frame, settings: Settings) -> Iterator[Said]:
    """Alignment of every layer in every phase, the layer of fusion, and what the last stage changed."""
    rows, width = by_phase(vectors, settings), int(vectors["width"].iloc[0])
    yield "concepts.random", f"Two random directions in {width} dimensions: expected size of their cosine.", random_cosine(width), None, "cosine", ""
    for reading, words in READINGS.items():
        found: dict[str, Alignment] = {}
        for phase in PHASES:
            own = rows[(rows["reading"] == reading) & (rows["phase"] == phase)]
            if len(own):
                found[phase] = aligned(array_of(own))
                yield from _layers(reading, f"concepts.{reading}.{phase}", f"{reading} ({words}), {PHASES[phase]}", found[phase])
        if {"before", "after"} <= found.keys():
            for layer in range(found["after"].alignment_SL.shape[1]):
                changed_S = found["after"].alignment_SL[:, layer] - found["before"].alignment_SL[:, layer]
                text = f"{reading}: change of the alignment by the last stage, layer {layer}"
                yield stated(f"concepts.{reading}.change.layer{layer}", text, changed_S[np.isfinite(changed_S)], "cosine")


def _layers(reading: str, id: str, words: str, found: Alignment) -> Iterator[Said]:
    seeds = len(found.alignment_SL)
    for layer, p in enumerate(found.p_L):
        values_S = found.alignment_SL[:, layer]
        if not np.isfinite(values_S).all():
            yield f"{id}.layer{layer}", f"{words}, layer {layer}: the rivals' states are still the same.", None, None, "cosine", "not run"
            continue
        estimate = over_seeds(values_S)
        verdict = "undecided" if seeds < FEWEST_SEEDS or p >= LEVEL else "aligned"
        beyond = f"chance reaches {figure(float(found.chance_L[layer]))}, family-wise p {p:.2g}"
        text = f"{words}, layer {layer}: mean cosine of the vectors of different traits, {beyond} ({seeds_words(estimate)})."
        yield f"{id}.layer{layer}", text, estimate.value, estimate.interval, "cosine", verdict
    if reading == "named":
        return
    fused = found.fused
    said = f"aligned beyond chance from layer {fused} on" if fused is not None else "no layer is aligned beyond chance"
    verdict = "undecided" if seeds < FEWEST_SEEDS or fused is None else "fused"
    yield f"{id}.fusion", f"{words}: {said} (0 is the embedding).", None if fused is None else float(fused), None, "layer", verdict
