"""Saboteurs: patches that each take away one protection. What no test misses is not protected.

    python -m tests.saboteurs                        all of them, one at a time, in a copy of the project
    python -m tests.saboteurs evict-unchecked        some of them

`patches.yaml` has them: what is lost, the text that is replaced, and the tests that must fail.
"""

from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Patch:
    """One protection less."""

    name: str
    removes: str
    """The protection, in words."""
    file: str
    """Relative to the project."""
    old: str
    new: str
    tests: tuple[str, ...]
    """Node ids below `tests/`, of which one at least must fail."""

    def applied(self, source: str) -> str:
        """The text of the file without the protection.

        Raises:
            ValueError: the text that is replaced does not stand there exactly once.
        """
        if (count := source.count(self.old)) != 1:
            raise ValueError(f"{self.name}: the old text stands {count} times in {self.file}")
        return source.replace(self.old, self.new)


def patches() -> list[Patch]:
    """Every saboteur, in the order of the file; TypeError when one lacks a field or has another."""
    listed = yaml.safe_load((Path(__file__).parent / "patches.yaml").read_text())
    return [Patch(**{**fields, "tests": tuple(fields["tests"])}) for fields in listed]
