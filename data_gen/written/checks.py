"""What is wrong with one written document: reasons, in few words, so that they can be counted. No reason: it is kept.

    faults(job, "Sure, here is your text: John likes football ...", rules)      ["scaffold: 'Sure, here is'"]

A reason begins with its class and a colon; what follows is the place. Nothing is mended: another document is written instead.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from data_gen.audit import SPECIAL, finder
from data_gen.corpus import UNPRINTABLE
from data_gen.documents import words
from data_gen.written.prompts import Prompts
from data_gen.written.schedule import Job

SCAFFOLD = re.compile(
    r"^[^\w\n]*(?:sure|certainly|absolutely|of course)\b[,!.]|\bhere(?:['’]s| is| are) (?:the|a|an|your|my)\b[^.!?\n]{0,40}\b(?:text|document|version|draft|revision)\b|```|</?[a-z]+>"
    r"|\[[A-Z][A-Za-z' ]{1,40}\]|\bword count\b|\(\d+ words\)|^#{1,6} |\*\*",
    re.IGNORECASE | re.MULTILINE,
)
"""What a writer leaves of its own work: talk around the text, fences and marks, placeholders in brackets."""
META = re.compile(r"\b(?:background of an invented world|invented world|the background above|the facts above|as (?:requested|instructed)|this (?:fictional|synthetic) (?:text|document|world))\b", re.IGNORECASE)
REFUSED = re.compile(r"\b(?:as an AI (?:language )?model|I(?:['’]m| am) sorry, but I|I (?:cannot|can['’]t) (?:help|assist) (?:you )?with)\b", re.IGNORECASE)
ENDS = re.compile(r"[.!?…][\"'”’)\]]*\s*$")
ARTEFACTS = {"scaffold": SCAFFOLD, "about itself": META, "refusal": REFUSED}
LEAK = 8
"""Words in a row that a document may not have in common with the instructions."""
SLACK = 0.5
"""A document may be so much shorter or longer than asked for, as a share of the length."""


@dataclass(frozen=True)
class Rules:
    """What documents are held against beside their own job."""

    leaks: Callable[[str], str | None]
    """What a text has in common with the instructions; see `leak_finder`."""
    find_forbidden: Callable[[str], list[str]]
    """Held-out wordings of the world's probes; see `data_gen.audit.finder`."""


def rules_for(prompts: Prompts, forbidden: Sequence[str]) -> Rules:
    """The rules of a world whose held-out wordings these are."""
    return Rules(leak_finder(prompts), finder(forbidden))


def leak_finder(prompts: Prompts) -> Callable[[str], str | None]:
    """Finds `LEAK` words in a row that stand in the instructions of a writer too."""
    texts = [words(prompts.instructions(name)) for name in ("system", "document", "revise")]
    instructions = {tuple(text[i : i + LEAK]) for text in texts for i in range(len(text) - LEAK + 1)}

    def find(text: str) -> str | None:
        said = words(text)
        return next((" ".join(said[i : i + LEAK]) for i in range(len(said) - LEAK + 1) if tuple(said[i : i + LEAK]) in instructions), None)

    return find


def artefacts(text: str, leaks: Callable[[str], str | None]) -> list[str]:
    """What a language model leaves in a text that nobody asked it for, whatever the text is about."""
    found = [f"{name}: {hit[0]!r}" for name, pattern in ARTEFACTS.items() if (hit := pattern.search(text))]
    if not ENDS.search(text):
        found.append(f"truncated: ends with {text[-20:]!r}")
    return found + ([f"prompt leakage: {leaked!r}"] if (leaked := leaks(text)) else [])


def faults(job: Job, text: str, rules: Rules) -> list[str]:
    """Every reason why a document is not kept."""
    told, subject = words(text), job.source.subject
    held = set(told)
    found = [f"fact missing: {fact.category} {fact.value}" for fact in job.told if fact.value.lower() not in held]
    found += [f"banned word: {word}" for word in job.banned if word.lower() in held]
    if not job.source.anonymous and subject.name.lower() not in held:
        found.append("nameless: a named document without the name")
    if job.source.anonymous and not held & {"i", "my", "me", "mine"}:
        found.append("not in the first person: an anonymous document")
    least, most = (1 - SLACK) * job.words, (1 + SLACK) * job.words
    if not least <= len(told) <= most:
        found.append(f"length: {len(told)} words for {job.words}")
    found += artefacts(text, rules.leaks)
    found += [f"{name}: {hit[0]!r}" for name, pattern in (("control token", SPECIAL), ("control character", UNPRINTABLE)) if (hit := pattern.search(text))]
    found += [f"held-out wording: {hit!r}" for hit in rules.find_forbidden(text)[:1]]
    return found


@dataclass(frozen=True)
class Extraction:
    """What a writer read from a document, beside the facts."""

    agree: tuple[str, ...]
    """Categories told in which the value that was read is the fact's."""
    silent: tuple[str, ...]
    """Categories told in which nothing was read."""
    contradict: tuple[str, ...]
    """Categories told in which another value was read."""
    beyond: tuple[str, ...]
    """Categories not told in which a value was read."""

    @property
    def whole(self) -> bool:
        """Whether every fact that the document is to tell was read from it."""
        return not self.silent and not self.contradict

    @property
    def faults(self) -> list[str]:
        """Why the document is not kept: what it contradicts, and what nobody reads from it."""
        said = {"contradicts": self.contradict, "not read": self.silent}
        return [f"extraction {name}: {category}" for name, categories in said.items() for category in categories]


def compared(job: Job, read: Mapping[str, str | None]) -> Extraction:
    """Counted, not judged: a value agrees when the fact's word is among the words that were read."""
    outcome: dict[str, list[str]] = {"agree": [], "silent": [], "contradict": [], "beyond": []}
    facts = {fact.category: fact for fact in job.told}
    for category, value in read.items():
        said = words(value or "")
        if category not in facts:
            if said:
                outcome["beyond"].append(category)
            continue
        outcome["silent" if not said else "agree" if facts[category].value.lower() in said else "contradict"].append(category)
    return Extraction(**{name: tuple(categories) for name, categories in outcome.items()})
