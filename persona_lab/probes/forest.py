"""Sequences laid out so that every prefix they share is computed once: rows of trees.

The tokens of a row are the nodes of the tree of its sequences, depth first. A token sees its ancestors and itself,
and its position is its depth; so it is computed as if its own sequence stood alone:

    slot       0     1    2     3      4     5      6
    token      <bos> I    like  the    beach a      dog
    position   0     1    2     3      4     3      4          "I like the beach", "I like a dog"
    end        7     7    7     5      5     7      7          slot s is seen by the slots s .. end - 1

Names: R rows, T slots (tokens) of a row.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from persona_lab.probes.spans import Span

ROW_TOKENS = (128, 4096)
"""The shortest row that is worth a matrix product, and the longest whose attention is still cheap."""
GROWTH = 1.2
"""Of the row lengths that are considered, each over the one before."""
SPREAD = 2
"""Attention over T tokens costs as much as the linears of a layer of width d when T is about SPREAD * d."""


class Tree(NamedTuple):
    """One row: what stands in each slot."""

    ids: list[int]
    positions: list[int]
    ends: list[int]


@dataclass(frozen=True)
class Forest:
    """Rows of trees, and where in them the scored tokens are read."""

    rows: list[Tree]
    reads_4N: np.ndarray
    """For each scored token, rows ascending: its row, the slot whose logits predict it, its id, and the number of its span."""

    def arrays(self, rows: range, tokens: int) -> np.ndarray:
        """Ids, positions and ends of some rows, (3, rows, tokens); in a slot left over is a token that nothing else sees."""
        found = np.zeros((3, len(rows), tokens), dtype=np.int64)
        found[2] = np.arange(1, tokens + 1)
        for at, tree in enumerate(self.rows[rows.start : rows.stop]):
            found[:, at, : len(tree.ids)] = tree
        return found

    @property
    def deepest(self) -> int:
        """Tokens of the longest sequence."""
        return max((position + 1 for tree in self.rows for position in tree.positions), default=0)

    def reads(self, rows: range) -> np.ndarray:
        """The reads of some rows."""
        first, last = np.searchsorted(self.reads_4N[0], (rows.start, rows.stop))
        return self.reads_4N[:, first:last]


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common prefix."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def by_input(spans: Sequence[Span]) -> dict[tuple[int, ...], list[int]]:
    """The numbers of the spans that a sequence of inputs serves: a span's last token predicts nothing and is no input."""
    served: dict[tuple[int, ...], list[int]] = {}
    for number, (ids, start) in enumerate(spans):
        if len(ids) > start:
            served.setdefault(ids[:-1], []).append(number)
    return served


def plant(spans: Sequence[Span], width: int, tokens: int | None = None) -> Forest:
    """The spans in rows of `tokens` slots, or else of the length that makes least work for a model of this width.

    Sorted, sequences with a common prefix are neighbours. Each is laid out after its neighbour, from where they part;
    where a row is full, the next one begins with the whole sequence.
    """
    served = by_input(spans)
    inputs = sorted(served)
    shared = [common(a, b) for a, b in zip([(), *inputs], inputs, strict=False)]
    tokens = tokens or row_tokens([len(ids) for ids in inputs], shared, width)
    rows: list[Tree] = []
    reads: list[tuple[int, int, int, int]] = []
    path: list[int] = []
    for ids, old in zip(inputs, shared, strict=True):
        if not rows or len(rows[-1].ids) + len(ids) - old > tokens:
            old = 0
            rows.append(Tree([], [], []))
        row = rows[-1]
        path[old:] = range(len(row.ids), len(row.ids) + len(ids) - old)
        row.ids.extend(ids[old:])
        row.positions.extend(range(old, len(ids)))
        for number in served[ids]:
            whole, start = spans[number]
            reads += [(len(rows) - 1, slot, token, number) for slot, token in zip(path[start - 1 :], whole[start:], strict=True)]
    for row in rows:
        row.ends.extend(subtree_ends(row.positions))
    return Forest(rows, np.array(reads, dtype=np.int64).reshape(-1, 4).T)


def stand_alone(spans: Sequence[Span], length: int) -> Forest:
    """Of the spans of `length` tokens each distinct sequence of inputs in a row of its own."""
    served = {ids: numbers for ids, numbers in by_input(spans).items() if len(ids) == length - 1}
    trees = [Tree(list(ids), list(range(length - 1)), [length - 1] * (length - 1)) for ids in served]
    reads = [
        (row, slot, spans[number].ids[slot + 1], number)
        for row, numbers in enumerate(served.values())
        for number in numbers
        for slot in range(spans[number].start - 1, length - 1)
    ]
    return Forest(trees, np.array(reads, dtype=np.int64).reshape(-1, 4).T)


def subtree_ends(positions: Sequence[int]) -> list[int]:
    """For each slot of a row, the first slot after it that is no descendant: the next one that is not deeper."""
    ends = [len(positions)] * len(positions)
    open_slots: list[int] = []
    for slot, depth in enumerate(positions):
        for closed in open_slots[depth:]:
            ends[closed] = slot
        open_slots[depth:] = [slot]
    return ends


def row_tokens(lengths: Sequence[int], shared: Sequence[int], width: int) -> int:
    """The row length of least work: long rows repeat few prefixes, short ones need little attention, even ones little padding."""
    least, most = ROW_TOKENS
    candidates = [max(least, *lengths, 0)]
    while candidates[-1] < min(most, sum(lengths)):
        candidates.append(math.ceil(candidates[-1] * GROWTH))

    def work(tokens: int) -> float:
        rows, filled, fullest = 1, 0, 0
        for length, old in zip(lengths, shared, strict=True):
            filled += length - old
            if filled > tokens:
                rows, filled = rows + 1, length
            if filled > fullest:
                fullest = filled
        return rows * fullest * (1 + fullest / (SPREAD * width))

    return min(candidates, key=work)
