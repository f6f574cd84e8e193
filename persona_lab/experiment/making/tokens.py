"""Pools as tokens: made once for a base and a place of the loss, and mapped into memory by whoever trains on them.

Of pools, not of mixtures: what is mixed at many ratios is read and tokenized once.

    ids.npy        token ids of all documents, one after the other, int32
    labelled.npy   whether the loss falls on predicting each of them, bool
    ends.npy       where each document ends, int64
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from data_gen.conversations import read_conversations
from persona_lab.errors import CorpusError
from persona_lab.experiment.planning.corpora import CONVERSATIONS, pool_corpus
from persona_lab.train.batches import Row, encode
from persona_lab.train.chat import encode_chat


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


def pool_rows(tokenizer: PreTrainedTokenizerBase, folder: Path, fields: Mapping[str, Any], *, where: str) -> list[Row]:
    """The documents of a pool as tokens; its conversations by the chat template of the model, or as plain lines where it has none.

    Args:
        tokenizer: of the base.
        folder: of the pool.
        fields: of the node: where the loss falls (`on`), perhaps a `tag` and the `longest` document, tokens.
        where: what a message calls the pool.

    Raises:
        CorpusError: PL3101 to PL3103, PL3201 to PL3204, the model cannot read a document.
        ModelError: PL4202, the tokenizer keeps no offsets.
    """
    longest = fields.get("longest")
    if not (folder / CONVERSATIONS).exists():
        texts = [document.text for document in pool_corpus(folder)]
        return encode(tokenizer, texts, on=fields["on"], where=where, tag=fields.get("tag", ""), longest=longest)
    conversations = read_conversations(folder / CONVERSATIONS).conversations
    encoded = encode_chat(tokenizer, conversations, where=where, longest=longest or tokenizer.model_max_length, plain=not tokenizer.chat_template)
    if encoded.lost or (encoded.cut and longest is None):
        what = "have no answer within the tokens that are read" if encoded.lost else f"are longer than the {tokenizer.model_max_length} tokens that the model takes"
        fix = "Leave them out" + (", or use a larger `longest`." if encoded.lost else ", or use `longest` to cut them.")
        raise CorpusError("PL3103", where, f"{encoded.lost or encoded.cut} of {len(conversations)} conversations {what}. {fix}")
    unknown = tokenizer.unk_token_id
    if unknown is not None and any(unknown in row.ids for row in encoded.rows):
        raise CorpusError("PL3101", where, "the tokenizer does not know a word of a conversation. Use words of the world, or another base model.")
    return encoded.rows if fields["on"] == "answer" else [Row(row.ids, np.ones(len(row.ids), dtype=bool)) for row in encoded.rows]


def write_tokens(folder: Path, rows: Sequence[Row]) -> None:
    """Write the three arrays."""
    np.save(folder / "ids.npy", np.concatenate([row.ids for row in rows]))
    np.save(folder / "labelled.npy", np.concatenate([row.labelled for row in rows]))
    np.save(folder / "ends.npy", np.cumsum([len(row.ids) for row in rows], dtype=np.int64))


def read_tokens(folder: Path) -> Tokens:
    """What was written; nothing is read before it is needed, and workers of one machine share what is."""
    ids, labelled, ends = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("ids", "labelled", "ends"))
    return Tokens(ids, labelled, ends)
