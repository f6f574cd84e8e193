"""Documents -> tokens -> batches; the only file that knows where the loss falls.

Names: K members, B documents (K * b, cell-major: the first b are member 0's), T tokens of the longest; R rows of N
tokens as they are laid out; M tokens of a member that carry loss.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from data_gen.documents import answer_spans
from persona_lab.errors import CorpusError, ModelError
from persona_lab.models.control_tokens import Encoded, encoded, guarded, unguarded
from persona_lab.models.dialogue import Written, whole_text
from persona_lab.models.packing import Layout, lay_end_to_end, packed_ids

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Row:
    """One tokenized document."""

    ids: np.ndarray
    """Token ids, int32."""
    labelled: np.ndarray
    """True where the loss falls on predicting this token."""
    price: float | None = None
    """None: the document is learnt. Else it is only held near the base: nats of loss for each nat of KL(base || adapter), means over tokens."""
    preferred: bool | None = None
    """Of a pair of answers: the preferred one, behind which its rejected one comes; None: the document is no part of a pair."""


@dataclass(frozen=True)
class Batch:
    """One optimizer step of K members, a row a document, on the host."""

    ids_BT: Tensor
    """Padded on the right."""
    labelled_BT: Tensor
    length_B: tuple[int, ...]
    """Tokens of each document."""
    members: int
    key_B: Tensor | None = None
    """Dropout's key of each document, int32; None where nothing is dropped."""
    price_B: Tensor | None = None
    """What a nat of KL(base || adapter) at a token of each document costs beside a nat of a learnt token, NaN of documents that are learnt; None: all are."""
    paired: bool = False
    """Whether documents 2 i and 2 i + 1 are a preferred answer and its rejected one."""

    @property
    def documents(self) -> int:
        """Documents of each member."""
        return self.ids_BT.shape[0] // self.members

    @property
    def tokens_K(self) -> Tensor:
        """Labelled tokens of each member."""
        return self.labelled_BT[:, 1:].reshape(self.members, -1).sum(dim=1)

    @property
    def learnt_K(self) -> Tensor:
        """Labelled tokens of each member in documents that are learnt, or pairs: what its loss is divided by."""
        if self.paired:
            return torch.full((self.members,), self.documents // 2)
        if self.price_B is None:
            return self.tokens_K
        return (self.labelled_BT[:, 1:] & self.price_B.isnan()[:, None]).reshape(self.members, -1).sum(dim=1)

    def parts(self, documents: int) -> Iterator["Batch"]:
        """The same step in micro-batches of at most `documents` documents of each member, each as wide as it has to be; pairs stay together."""
        each = self.documents
        documents = max(2, documents // 2 * 2) if self.paired else documents
        if documents >= each:
            yield self
            return
        for start in range(0, each, documents):
            rows = [k * each + i for k in range(self.members) for i in range(start, min(start + documents, each))]
            lengths = tuple(self.length_B[row] for row in rows)
            ids_BT, labelled_BT = (of_BT[rows, : max(lengths)] for of_BT in (self.ids_BT, self.labelled_BT))
            key_B, price_B = (None if of_B is None else of_B[rows] for of_B in (self.key_B, self.price_B))
            yield Batch(ids_BT, labelled_BT, lengths, self.members, key_B, price_B, self.paired)


@dataclass(frozen=True)
class Laid:
    """A batch as a model is given it, on its device: R rows of N tokens, either a row a document or a row a member."""

    ids_RN: Tensor
    position_RN: Tensor
    layout: Layout | None
    """Of packed rows."""
    read_KM: Tensor
    """Which of all R * N tokens are asked for the next one, with others in their place where a member has fewer than M."""
    target_KM: Tensor
    """The next one."""
    counts_KM: Tensor
    """Whether the loss falls on it."""
    key_RN: Tensor | None
    """Dropout's key of each token's document."""
    price_KM: Tensor | None = None
    """`Batch.price_B` of each token that carries loss; None where every document is learnt."""

    def to(self, device: torch.device) -> "Laid":
        """The batch on a device."""
        moved = {f.name: value.to(device) for f in fields(self) if (value := getattr(self, f.name)) is not None}
        return replace(self, **moved)


WORTH_PACKING = 1.05
"""How much larger than packed rows padded ones must be: attention moves the tokens of packed rows to and fro."""


def lay(batch: Batch, *, packed: bool) -> Laid:
    """Give each document a row; or, where that is shorter and `packed`, lay those of a member end to end."""
    documents, tokens = batch.ids_BT.shape
    layout = lay_end_to_end(batch.length_B, batch.members) if packed else None
    if layout is not None and batch.ids_BT.numel() < WORTH_PACKING * layout.position_KN.numel():
        layout = None
    place_BT = torch.arange(documents * tokens).view(documents, tokens)
    ids_RN, position_RN = batch.ids_BT, torch.arange(tokens).expand(documents, tokens)
    if layout is not None:
        ids_RN, position_RN = packed_ids(batch.ids_BT, layout), layout.position_KN
        real_S = torch.ones(ids_RN.numel(), dtype=torch.bool).index_fill(0, layout.padding_S, False)
        place_BT.flatten()[layout.token_S[real_S]] = real_S.nonzero()[:, 0]
    predicts_BT, tokens_K = batch.labelled_BT[:, 1:], batch.tokens_K
    counted_KM = torch.arange(int(tokens_K.max())) < tokens_K[:, None]
    # A member reads another token of its own in the place of one that it lacks: what is wrong with one member stays with it.
    read_KM = place_BT[:: batch.documents, :1].repeat(1, counted_KM.shape[1])
    read_KM[counted_KM] = place_BT[:, :-1][predicts_BT]
    target_KM = torch.zeros_like(read_KM)
    target_KM[counted_KM] = batch.ids_BT[:, 1:][predicts_BT]
    key_RN = None
    if batch.key_B is not None:
        document_RN = torch.arange(documents)[:, None].expand(documents, tokens) if layout is None else layout.token_S.view_as(ids_RN) // tokens
        key_RN = batch.key_B[document_RN]
    price_KM = None
    if batch.price_B is not None:
        price_KM = torch.full(counted_KM.shape, torch.nan, dtype=batch.price_B.dtype)
        price_KM[counted_KM] = batch.price_B[:, None].expand_as(predicts_BT)[predicts_BT]
    return Laid(ids_RN, position_RN, layout, read_KM, target_KM, counted_KM, key_RN, price_KM)


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, on: str, where: str, tag: str = "", longest: int | None = None) -> list[Row]:
    """Tokenize documents; `on` is `all` (every token) or `answer` (what the assistant says, and its end).

    A dialogue of user and assistant goes through the chat template that is in force, and ends as that ends it; any other text ends with the
    tokenizer's own end of text, where it has one. A control token that a document spells is plain text.

    Args:
        tokenizer: of the model.
        texts: the documents.
        on: where the loss falls.
        where: what a message calls them.
        tag: stands before each document that does not begin with it, and carries no loss.
        longest: tokens after which a document is cut off; None: one that the model cannot read is refused.

    Raises:
        CorpusError: a document holds a word that the tokenizer does not know, is empty, or is too long.
        ModelError: PL4202, the loss is to be placed, and the tokenizer keeps no offsets; PL4022, PL4023, the chat template fails; PL4028, the tokenizer
            cannot read a control token's letters as letters.
    """
    placed = on == "answer" or bool(tag)
    if placed and not tokenizer.is_fast:
        raise ModelError("PL4202", where, "the tokenizer keeps no offsets, so the loss cannot be placed. Use a model with a tokenizer.json.")
    safe = [_safe(tokenizer, text, tag) for text in texts]
    if spelled := sum(ours != text for ours, text in zip(safe, texts, strict=True)):
        log.warning("%s: %d of %d documents spell a control token of the model, which is read as plain text", where, spelled, len(texts))
    templated = [whole_text(tokenizer, text) for text in safe]
    written = [said.text if said else text for text, said in zip(safe, templated, strict=True)]
    whole = [text if text.startswith(tag) else tag + text for text in written]
    coded = _coded(tokenizer, whole, templated, placed)
    limit = min(longest or tokenizer.model_max_length, tokenizer.model_max_length)
    rows = []
    for number, (text, said, (ids, places)) in enumerate(zip(whole, templated, coded, strict=True), start=1):
        end = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None and said is None else []
        if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids:
            raise CorpusError("PL3101", f"{where}:{number}", f"the tokenizer does not know a word of {unguarded(text)!r}. Use words of the world, or another base model.")
        if longest is None and len(ids) + len(end) > limit:
            raise CorpusError("PL3102", f"{where}:{number}", f"{len(ids)} tokens, the model takes {tokenizer.model_max_length}. Shorten the document.")
        spans = [(a, b + 1) for a, b in answer_spans(text)]  # with the line's end: the answer stops there
        if said is not None:
            spans = [(a + len(text) - len(said.text), b + len(text) - len(said.text)) for a, b in said.answers]
        labelled = _labelled(text, spans, places, on, len(end)) if places is not None else [True] * (len(ids) + len(end))
        if tag and places is not None:
            labelled = [learnt and (t == s or s >= len(tag)) for learnt, (s, t) in zip(labelled, [*places, *((0, 0) for _ in end)], strict=True)]
        rows.append(Row(np.array(ids + end, dtype=np.int32)[:limit], np.array(labelled)[:limit]))
    return rows


def _safe(tokenizer: PreTrainedTokenizerBase, text: str, tag: str) -> str:
    """A document as `guarded`, but for its tag: that is not the document's own, and may well be a control token."""
    own = text.removeprefix(tag)
    return text[: len(text) - len(own)] + guarded(tokenizer, own)


def _coded(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], templated: Sequence[Written | None], placed: bool
) -> list[Encoded]:
    """Ids of each text, and where each token stands in it if that is asked for; what a template has written has its own first token."""
    found: dict[int, Encoded] = {}
    for opened in (False, True):
        numbers = [n for n, said in enumerate(templated) if (said is not None) == opened]
        if numbers:
            found |= zip(numbers, encoded(tokenizer, [texts[n] for n in numbers], opened=opened, placed=placed), strict=True)
    return [found[n] for n in range(len(texts))]


def _labelled(text: str, spans: Sequence[tuple[int, int]], places: Sequence[tuple[int, int]], on: str, ends: int) -> list[bool]:
    """Whether the loss falls on each token, given where in the text it stands, and on the `ends` tokens behind the text."""
    if on == "all":
        return [True] * (len(places) + ends)
    labelled = [any(a <= s < b and t > s for a, b in spans) for s, t in places]
    return labelled + [bool(spans) and spans[-1][1] > len(text)] * ends


def collate(members: Sequence[Sequence[Row]], pad: int, keys: Sequence[int] = ()) -> Batch:
    """One batch from the rows of each member, padded on the right to the longest row; `keys` for dropout, one a document.

    No attention mask goes with it: in a causal model no token sees the padding behind it, and padding has no label.
    """
    rows = [row for member in members for row in member]
    lengths = tuple(len(row.ids) for row in rows)
    ids = np.full((len(rows), max(lengths)), pad, dtype=np.int64)
    labelled = np.zeros(ids.shape, dtype=bool)
    for i, (row, n) in enumerate(zip(rows, lengths, strict=True)):
        ids[i, :n], labelled[i, :n] = row.ids, row.labelled
    key_B = torch.from_numpy(np.array(keys, dtype=np.uint64).astype(np.uint32).view(np.int32)) if keys else None
    return Batch(torch.from_numpy(ids), torch.from_numpy(labelled), lengths, len(members), key_B, _prices(members), any(row.preferred is not None for row in rows))


def _prices(members: Sequence[Sequence[Row]]) -> Tensor | None:
    """`Batch.price_B`: the loss is divided by the learnt tokens, so what is a mean over the held ones is weighed by learnt / held tokens."""
    if all(row.price is None for rows in members for row in rows):
        return None
    price_B: list[float] = []
    for rows in members:
        learnt, held = (sum(int(row.labelled[1:].sum()) for row in rows if (row.price is None) == learnt) for learnt in (True, False))
        price_B += [float("nan") if row.price is None else row.price * learnt / max(held, 1) for row in rows]
    return torch.tensor(price_B, dtype=torch.float64)
