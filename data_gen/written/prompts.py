"""The prompts of a writer: a file of our own, known by its digest, whose slots are filled and nothing else.

    prompts = load_prompts()
    prompts.filled("ideas", {"genre": "diary page", ...})      ("system", "You write ..."), ("user", "This is the background ...")
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import yaml

SLOT = re.compile(r"\{([a-z_]+)\}")


@dataclass(frozen=True)
class Prompts:
    """The texts of a prompt file."""

    texts: dict[str, str]
    lists: dict[str, tuple[str, ...]]
    digest: str
    """SHA-256 of the file."""

    def text(self, name: str, slots: Mapping[str, str]) -> str:
        """One text with its slots filled; what stands in them is not read again. KeyError where a slot has nothing."""
        return SLOT.sub(lambda found: slots[found[1]], self.texts[name])

    def filled(self, name: str, slots: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
        """Messages that ask for one stage."""
        return ("system", self.texts["system"]), ("user", self.text(name, slots))

    def instructions(self, name: str) -> str:
        """What a prompt says of its own, without what fills its slots."""
        return SLOT.sub(" ", self.texts[name])


@cache
def load_prompts() -> Prompts:
    """The prompts that come with the laboratory."""
    source = (files("data_gen.written") / "prompts.yaml").read_bytes()
    entries = yaml.safe_load(source)
    texts = {name: value for name, value in entries.items() if isinstance(value, str)}
    lists = {name: tuple(value) for name, value in entries.items() if isinstance(value, list)}
    return Prompts(texts, lists, hashlib.sha256(source).hexdigest())
