"""Releases that are known to break: which, together with what, how it shows, and who says so.

    fail  accelerate 1.14.0  with peft: sharded adapters are saved from the first process alone. Use accelerate>=1.15 ...
"""

import importlib.metadata
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

from packaging.specifiers import SpecifierSet

from persona_lab.experiment.checking.finding import Finding, answer


@dataclass(frozen=True)
class Broken:
    """Releases that must not stand together; `packages` are names and the releases meant, as pip writes them."""

    packages: Mapping[str, str]
    shows: str
    fix: str
    source: str
    state: Literal["warn", "fail"] = "fail"


KNOWN = (
    Broken(
        {"accelerate": "<1.15", "peft": ">=0"},
        "sharded adapters are saved from the first process alone, and go on from noise",
        "accelerate>=1.15",
        "github.com/huggingface/accelerate/pull/4206",
    ),
    Broken({"transformers": ">=5.8", "torch": "<2.5"}, "transformers cannot be imported: no DTensor", "torch>=2.9", "github.com/huggingface/transformers/issues/45800"),
    Broken({"wandb": "<0.31"}, "a run that goes on offline forgets that it went on", "wandb>=0.31", "github.com/wandb/wandb/pull/12110"),
    Broken({"litellm": ">=1.82.7,<=1.82.8"}, "steals credentials: change every key that this machine has held", "no litellm", "github.com/BerriAI/litellm/issues/24512"),
    Broken(
        {"skypilot": ">=0", "wandb": ">=0.30"},
        "ask for different releases of click",
        "SkyPilot in an environment of its own: `uv tool install skypilot`",
        "the requirements of skypilot 0.14 (click<8.2) and of wandb 0.30 (click>=8.2)",
        "warn",
    ),
)


def known_breaks(installed: Mapping[str, str]) -> Iterator[Finding]:
    """Every known breakage of these releases; package name to release."""
    for broken in KNOWN:
        there = {name: installed.get(name) for name in broken.packages}
        if all(version is not None and SpecifierSet(broken.packages[name]).contains(version, prereleases=True) for name, version in there.items()):
            (first, version), *others = there.items()
            beside = "".join(f" with {name} {release}" for name, release in others)
            yield Finding(first, broken.state, f"{version}{beside}: {broken.shows}. Use {broken.fix}. See {broken.source}")


def releases() -> dict[str, str]:
    """What is installed of the packages that a known breakage names."""
    names = {name for broken in KNOWN for name in broken.packages}
    return {name: found for name in sorted(names) if (found := _release(name))}


def requirements() -> Finding:
    """Whether what is installed agrees with what it asks for, by pip's own check."""
    if find_spec("pip") is None:
        return Finding("requirements", "ok", "not checked: this environment has no pip. Use `uv pip check`.")
    good, said = answer([sys.executable, "-m", "pip", "check", "--disable-pip-version-check"], seconds=60)
    return Finding("requirements", "ok" if good else "warn", said if good else f"{said} Use `pip install -c constraints.txt -e .` in an environment of its own.")


def _release(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
