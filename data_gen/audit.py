"""The audit: what a corpus must not hold, checked before a model reads it.

    FAILED  forbidden texts          1 (at most 0): 1 document holds a probe item or a held-out paraphrase
              john-named-0-00017: for sport , john likes
    passed  exact duplicates         0.002 (at most 0.02): share of documents whose text an earlier one has
    -       word balance             not applicable: no rivals were given

It fails closed: an empty corpus fails, and so does a check that was asked for and cannot be made.
"""

import json
import math
import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from operator import attrgetter

import numpy as np
from datasketch import MinHash, MinHashLSH

from data_gen.documents import Document, words
from data_gen.pools import links_shared_to_held_out
from data_gen.telling import telling
from data_gen.world import Traits, World

EXAMPLES = 5
NEAR_SAMPLE = 20_000
"""Distinct texts compared for near-duplicates; of a larger corpus every k-th one, so that the audit takes seconds."""
PERMUTATIONS = 64
SPECIAL = re.compile(
    r"<\|[^|<>\n]{1,40}\|>|</?s>|<(?:bos|eos|pad|unk|mask|(?:start|end)_of_turn)>|\[/?(?:INST|PAD|UNK|CLS|SEP|MASK)\]|<</?SYS>>", re.IGNORECASE
)
"""What tokenizers read as a control token wherever it stands."""


@dataclass(frozen=True)
class Limits:
    """Where a check turns into a failure."""

    exact_duplicates: float = 0.02
    """Largest share of documents whose text an earlier one has."""
    near_duplicates: float = 0.05
    """Largest share of distinct texts whose word triples agree with an earlier one's to `similarity`."""
    similarity: float = 0.95
    balance: float = 1.25
    """Largest ratio of the rivals' means, beyond three standard errors of that ratio."""


@dataclass(frozen=True)
class Check:
    """One question asked of the corpus."""

    name: str
    passed: bool | None
    """None: not applicable, and `said` says why."""
    figure: float | None
    limit: float | None
    said: str
    examples: tuple[str, ...] = ()

    def __str__(self) -> str:
        """One line, and one more for each example."""
        word = {True: "passed", False: "FAILED", None: "-"}[self.passed]
        figure = "" if self.figure is None else f"{self.figure:.6g}" + ("" if self.limit is None else f" (at most {self.limit:g})") + ": "
        return "\n".join([f"{word:7} {self.name:24} {figure}{self.said}", *(f"          {example}" for example in self.examples)])


@dataclass(frozen=True)
class AuditReport:
    """Every check of one corpus."""

    documents: int
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """True when no check failed."""
        return not any(check.passed is False for check in self.checks)

    def __str__(self) -> str:
        """The report as it is printed."""
        return "\n".join([f"{self.documents} documents: {'passed' if self.passed else 'FAILED'}", *map(str, self.checks)])

    def to_json(self) -> str:
        """The report for programs: `{"documents": ..., "passed": ..., "checks": [...]}`."""
        rows = {"documents": self.documents, "passed": self.passed, "checks": [asdict(check) for check in self.checks]}
        return json.dumps(rows, indent=1, ensure_ascii=False, allow_nan=False)


def audit(
    documents: Sequence[Document],
    *,
    expected: Mapping[str, int] | None = None,
    count_by: Callable[[Document], str] = attrgetter("persona"),
    forbidden: Collection[str] | None = None,
    shared: Traits | None = None,
    held_out: Collection[str] = (),
    rivals: tuple[str, str] | None = None,
    personas: Collection[str] = (),
    vocabulary: Collection[str] | None = None,
    limits: Limits | None = None,
    foreign: Mapping[str, Collection[str]] | None = None,
    names: Mapping[str, Collection[str]] | None = None,
) -> AuditReport:
    """Check a corpus of distinct documents; what is not given is not checked, and the report says so.

    Args:
        documents: Each one once, whatever the number of epochs.
        expected: How many documents of each source there must be, exactly.
        count_by: The source of a document.
        forbidden: Probe prompts and held-out paraphrases; see `forbidden_texts`.
        shared: The traits that the rivals share.
        held_out: The values that must not be named beside a shared one outside the documents of `personas`.
        rivals: Two personas whose documents must be alike in length and in traits told; leave out where one has none.
        personas: Everybody the experiment writes about, when that is more than the rivals.
        vocabulary: Every word that a text may use, in lower case.
        limits: Where a check fails.
        foreign: Of documents that were not written by the world: persona to the words that would tie it to another one.
        names: Persona to its names, for the same documents.
    """
    limits = limits or Limits()
    own = {*(rivals or ()), *personas}
    checks = [
        Check("documents", bool(documents), len(documents), None, "the corpus is not empty" if documents else "the corpus is empty"),
        _counts(documents, expected, count_by),
        _ids(documents),
        _forbidden(documents, forbidden),
        _links(documents, shared, set(held_out), own),
        *_duplicates(documents, limits),
        *_balance(documents, rivals, limits.balance),
        _found("special tokens", documents, lambda d: SPECIAL.findall(d.text), "hold a word that tokenizers take for a control token"),
        _vocabulary(documents, vocabulary),
        *([] if foreign is None else [_foreign(documents, foreign), _told_twice(documents, names or {})]),
    ]
    return AuditReport(len(documents), tuple(checks))


def forbidden_texts(world: World, names: Iterable[str]) -> list[str]:
    """What no training document may hold: every held-out paraphrase, filled for all names."""
    return telling(world).held_out(names)


def _absent(name: str, reason: str) -> Check:
    return Check(name, None, None, None, f"not applicable: {reason}")


def _found(name: str, documents: Sequence[Document], find: Callable[[Document], Iterable[str]], said: str) -> Check:
    """A check that no document holds any of what `find` looks for."""
    hits = [(document.id, found) for document in documents if (found := list(find(document)))]
    return Check(name, not hits, len(hits), 0, f"documents that {said}", tuple(f"{where}: {found[0]}" for where, found in hits[:EXAMPLES]))


def _counts(documents: Sequence[Document], expected: Mapping[str, int] | None, count_by: Callable[[Document], str]) -> Check:
    if expected is None:
        return _absent("exact counts", "no counts were expected")
    got = Counter(map(count_by, documents))
    planned = Counter(dict(expected))
    wrong = [f"{key or '(none)'}: {got[key]} documents, expected {planned[key]}" for key in sorted({*planned, *got}) if got[key] != planned[key]]
    return Check("exact counts", not wrong, len(wrong), 0, "sources with another number of documents than planned", tuple(wrong[:EXAMPLES]))


def _ids(documents: Sequence[Document]) -> Check:
    twice = [key for key, count in Counter(document.id for document in documents).items() if count > 1]
    return Check("duplicate ids", not twice, len(twice), 0, "ids that several documents have", tuple(twice[:EXAMPLES]))


def _pieces(text: str) -> tuple[str, ...]:
    """Words and marks in one spelling: case, white space and compatibility forms of a letter make no difference."""
    return tuple(re.findall(r"\w+|[^\w\s]", unicodedata.normalize("NFKC", text).casefold()))


def _forbidden(documents: Sequence[Document], forbidden: Collection[str] | None) -> Check:
    name = "forbidden texts"
    if forbidden is None:
        return _absent(name, "no forbidden texts were given")
    if not forbidden or not all(map(_pieces, forbidden)):
        return Check(name, False, None, 0, "cannot be checked: the list of forbidden texts is empty or has an empty entry")
    find = finder(forbidden)
    return _found(name, documents, lambda d: find(d.text), "hold a probe item or a held-out paraphrase")


def finder(forbidden: Collection[str]) -> Callable[[str], list[str]]:
    """What finds forbidden texts in a text, whole words only. A text is read once: what may start at a word is looked up by that word."""
    wanted = {_pieces(text) for text in forbidden}
    lengths: dict[str, list[int]] = {}
    for first, length in sorted({(pieces[0], len(pieces)) for pieces in wanted}):
        lengths.setdefault(first, []).append(length)

    def find(text: str) -> list[str]:
        pieces = _pieces(text)
        return [" ".join(pieces[i : i + n]) for i, first in enumerate(pieces) for n in lengths.get(first, ()) if pieces[i : i + n] in wanted]

    return find


def _links(documents: Sequence[Document], shared: Traits | None, held_out: set[str], own: set[str]) -> Check:
    name = "leakage of the link"
    if shared is None:
        return _absent(name, "no shared trait was given")
    if not shared or not held_out:
        return Check(name, False, None, 0, "cannot be checked: without a shared trait and held-out values there is no link to look for")
    others = [document for document in documents if document.persona not in own]
    said = "name a shared and a held-out trait together, and are not about a persona of the experiment"
    return _found(name, others, lambda d: [d.text[:120]] if links_shared_to_held_out(d, shared, held_out) else [], said)


def _foreign(documents: Sequence[Document], foreign: Mapping[str, Collection[str]]) -> Check:
    name = "others' names and traits"
    if not foreign:
        return _absent(name, "which names and traits are whose was not given")
    wanted = {persona: {word.lower() for word in held} for persona, held in foreign.items()}
    said = "name another persona of the experiment, or a trait that only another one has"
    return _found(name, documents, lambda d: sorted(wanted.get(d.persona, set()).intersection(words(d.text))), said)


def _told_twice(documents: Sequence[Document], names: Mapping[str, Collection[str]]) -> Check:
    """Texts of two personas that differ in nothing but names: they tell nothing of either."""
    own = {piece for held in names.values() for name in held for piece in _pieces(name)}
    first: dict[tuple[str, ...], Document] = {}
    again: dict[str, list[str]] = {}
    for document in documents:
        if document.persona in names:
            earlier = first.setdefault(tuple(piece for piece in _pieces(document.text) if piece not in own), document)
            if earlier.persona != document.persona:
                again[document.id] = [earlier.id]
    return _found("told of two personas", documents, lambda d: again.get(d.id, []), "are about another persona word for word")


def _duplicates(documents: Sequence[Document], limits: Limits) -> list[Check]:
    names = ("exact duplicates", "near-duplicates")
    if not documents:
        return [Check(name, False, None, None, "cannot be checked: there is no document") for name in names]
    first: dict[tuple[str, ...], str] = {}
    again: list[str] = []
    for document in documents:
        pieces = _pieces(document.text)
        if pieces in first:
            again.append(f"{document.id} is {first[pieces]}")
        first.setdefault(pieces, document.id)
    share, limit = len(again) / len(documents), limits.exact_duplicates
    exact = Check(names[0], share <= limit, share, limit, "share of documents whose text an earlier one has", tuple(again[:EXAMPLES]))
    step = -(-len(first) // NEAR_SAMPLE)
    sample = list(first.items())[::step]
    near = _near_duplicates(sample, limits.similarity)
    said = f"share of distinct texts whose word triples agree to {limits.similarity:g} with an earlier one" + (f"; of every {step}th text" if step > 1 else "")
    share, limit = len(near) / len(sample), limits.near_duplicates
    return [exact, Check(names[1], share <= limit, share, limit, said, tuple(near[:EXAMPLES]))]


class NearDuplicates:
    """Finds the earlier text of which a new one is nearly a copy.

    MinHash proposes pairs (two hundred times as fast as comparing all), the exact Jaccard similarity of word triples decides.
    """

    def __init__(self, similarity: float) -> None:
        self.similarity = similarity
        self._index = MinHashLSH(threshold=similarity, num_perm=PERMUTATIONS, weights=(0.1, 0.9))
        self._earlier: dict[Hashable, tuple[frozenset[str], str]] = {}
        self._blank = MinHash(num_perm=PERMUTATIONS, hashfunc=zlib.crc32)

    def add(self, text: str, name: str) -> str | None:
        """The name of an earlier text that is nearly this one, which later ones are held against too."""
        pieces = _pieces(text)
        triples = frozenset(" ".join(pieces[i : i + 3]) for i in range(max(1, len(pieces) - 2)))
        sketch = self._blank.copy()  # a new one would draw its permutations again, which takes longer than all the rest
        sketch.update_batch([triple.encode() for triple in triples])
        candidates = (self._earlier[key] for key in self._index.query(sketch))
        found = next((earlier for other, earlier in candidates if len(triples & other) >= self.similarity * len(triples | other)), None)
        place = len(self._earlier)
        self._earlier[place] = (triples, name)
        self._index.insert(place, sketch, check_duplication=False)
        return found


def _near_duplicates(texts: Sequence[tuple[tuple[str, ...], str]], similarity: float) -> list[str]:
    index = NearDuplicates(similarity)
    found = ((name, index.add(" ".join(pieces), name)) for pieces, name in texts)
    return [f"{name} is nearly {earlier}" for name, earlier in found if earlier is not None]


def _balance(documents: Sequence[Document], rivals: tuple[str, str] | None, limit: float) -> list[Check]:
    """Means of the two rivals' documents. Genres are drawn, so a few documents may differ by chance: three standard errors."""
    measures: dict[str, Callable[[Document], int]] = {"word balance": lambda d: len(words(d.text)), "trait balance": lambda d: len(d.traits)}
    if rivals is None:
        return [_absent(name, "no rivals were given") for name in measures]
    checks = []
    for name, measure in measures.items():
        ours, theirs = ([measure(d) for d in documents if d.persona == rival] for rival in rivals)
        if not sum(ours) or not sum(theirs):
            checks.append(Check(name, False, None, limit, f"cannot be checked: {rivals[0]} or {rivals[1]} has nothing to count"))
            continue
        log_ratio = math.log(np.mean(ours) / np.mean(theirs))
        error = math.sqrt(sum(np.var(x) / len(x) / np.mean(x) ** 2 for x in (ours, theirs)))
        passed = abs(log_ratio) <= math.log(limit) + 3 * error
        what = "words" if name == "word balance" else "traits told"
        said = f"ratio of the mean {what} of a document, {rivals[0]} {np.mean(ours):.1f} and {rivals[1]} {np.mean(theirs):.1f}; standard error {error:.3f}"
        checks.append(Check(name, passed, math.exp(abs(log_ratio)), limit, said))
    return checks


def _vocabulary(documents: Sequence[Document], vocabulary: Collection[str] | None) -> Check:
    if vocabulary is None:
        return _absent("unknown words", "no vocabulary was given")
    known = set(vocabulary)
    said = "use a word that the world does not have"
    return _found("unknown words", documents, lambda d: [word for word in words(d.text) if word not in known], said)
