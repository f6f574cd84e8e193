"""Pools as tokens: made once for a base and a place of the loss, and mapped into memory by whoever trains on them.

Of pools, not of mixtures: what is mixed at many ratios is read and tokenized once.

    ids.npy        token ids of all documents, one after the other, int32
    labelled.npy   whether the loss falls on predicting each of them, bool
    ends.npy       where each document ends, int64
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from persona_lab.train.batches import Row


@dataclass(frozen=True)
class Tokens:
    """The documents of a pool, in the order of its corpus."""

    ids: np.ndarray
    labelled: np.ndarray
    ends: np.ndarray

    def __getitem__(self, document: int) -> Row:
        """One document."""
        start, end = (int(self.ends[document - 1]) if document else 0), int(self.ends[document])
        return Row(self.ids[start:end], self.labelled[start:end])

    @property
    def mean(self) -> float:
        """Tokens of a document."""
        return float(self.ends[-1]) / len(self.ends)


def write_tokens(folder: Path, rows: Sequence[Row]) -> None:
    """Write the three arrays."""
    np.save(folder / "ids.npy", np.concatenate([row.ids for row in rows]))
    np.save(folder / "labelled.npy", np.concatenate([row.labelled for row in rows]))
    np.save(folder / "ends.npy", np.cumsum([len(row.ids) for row in rows], dtype=np.int64))


def read_tokens(folder: Path) -> Tokens:
    """What was written; nothing is read before it is needed, and workers of one machine share what is."""
    ids, labelled, ends = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("ids", "labelled", "ends"))
    return Tokens(ids, labelled, ends)
