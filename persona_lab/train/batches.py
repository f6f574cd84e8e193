"""Documents -> tokens -> batches; the only file that knows where the loss falls.

Names: K members, B rows (K * b, cell-major: the first b rows are member 0's), T tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from data_gen.documents import answer_spans
from persona_lab.errors import CorpusError


@dataclass(frozen=True)
class Row:
    """One tokenized document."""

    ids: np.ndarray
    """Token ids, int32."""
    labelled: np.ndarray
    """True where the loss falls on predicting this token."""


@dataclass(frozen=True)
class Batch:
    """One optimizer step of K members."""

    ids_BT: Tensor
    labelled_BT: Tensor
    members: int
    key_B: Tensor | None = None
    """Dropout's key of each document, int32; None where nothing is dropped."""

    @property
    def documents(self) -> int:
        """Documents of each member."""
        return self.ids_BT.shape[0] // self.members

    @property
    def tokens_K(self) -> Tensor:
        """Labelled tokens of each member: what its loss is divided by."""
        return self.labelled_BT[:, 1:].reshape(self.members, -1).sum(dim=1)

    def parts(self, documents: int) -> Iterator["Batch"]:
        """The same step in micro-batches of at most `documents` documents of each member."""
        each = self.documents
        if documents >= each:
            yield self
            return
        for start in range(0, each, documents):
            rows = torch.cat([torch.arange(k * each + start, k * each + min(start + documents, each)) for k in range(self.members)])
            yield Batch(self.ids_BT[rows], self.labelled_BT[rows], self.members, None if self.key_B is None else self.key_B[rows])

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device."""
        return Batch(self.ids_BT.to(device), self.labelled_BT.to(device), self.members, None if self.key_B is None else self.key_B.to(device))


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, on: str, where: str) -> list[Row]:
    """Tokenize documents; `on` is `all` (every token) or `answer` (what the assistant says, and its end).

    Raises:
        CorpusError: a document holds a word that the tokenizer does not know, is empty, or is too long.
    """
    coded = tokenizer(list(texts), return_offsets_mapping=on == "answer", verbose=False)
    offsets: Sequence[Sequence[tuple[int, int]] | None] = coded["offset_mapping"] if on == "answer" else [None] * len(texts)
    end = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    rows = []
    for number, (text, ids, places) in enumerate(zip(texts, coded["input_ids"], offsets, strict=True), start=1):
        if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids:
            raise CorpusError("PL3101", f"{where}:{number}", f"the tokenizer does not know a word of {text!r}. Use words of the world, or another base model.")
        if len(ids) + len(end) > tokenizer.model_max_length:
            raise CorpusError("PL3102", f"{where}:{number}", f"{len(ids)} tokens, the model takes {tokenizer.model_max_length}. Shorten the document.")
        if places is None:
            labelled = [True] * (len(ids) + len(end))
        else:
            spans = [(a, b + 1) for a, b in answer_spans(text)]  # with the line's end: the answer stops there
            labelled = [any(a <= s < b and t > s for a, b in spans) for s, t in places]
            labelled += [bool(spans) and spans[-1][1] > len(text)] * len(end)
        rows.append(Row(np.array(ids + end, dtype=np.int32), np.array(labelled)))
    return rows


def collate(members: Sequence[Sequence[Row]], pad: int, keys: Sequence[int] = ()) -> Batch:
    """One batch from the rows of each member, padded on the right to the longest row; `keys` for dropout, one a document.

    No attention mask goes with it: in a causal model no token sees the padding behind it, and padding has no label.
    """
    rows = [row for member in members for row in member]
    longest = max(len(row.ids) for row in rows)
    ids = np.full((len(rows), longest), pad, dtype=np.int64)
    labelled = np.zeros((len(rows), longest), dtype=bool)
    for i, row in enumerate(rows):
        n = len(row.ids)
        ids[i, :n], labelled[i, :n] = row.ids, row.labelled
    key_B = torch.from_numpy(np.array(keys, dtype=np.uint64).astype(np.uint32).view(np.int32)) if keys else None
    return Batch(torch.from_numpy(ids), torch.from_numpy(labelled), len(members), key_B)
