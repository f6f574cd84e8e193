"""What a result may depend on beside its recipe: releases of packages, the commit of this code, the kind of machine.

Nothing of it names a machine, a user or a path, and nothing is imported to find it out.
"""

import hashlib
import json
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("torch", "transformers", "peft", "accelerate", "tokenizers", "safetensors", "numpy", "pandas", "pyarrow", "persona-lab")

ORIGIN = "origin.json"
"""Stands beside a frozen copy of the packages, and says what `git_commit` and `git_diff_sha256` were where it was copied."""


def versions() -> dict[str, str | None]:
    """Python's release and that of every package that takes part; None for one that is not installed."""
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


def platform_name() -> str:
    """System and processor family, e.g. `Linux-x86_64`: bits are promised within one of them only."""
    return f"{platform.system()}-{platform.machine()}"


@cache
def git_commit() -> str | None:
    """The commit of this code, with `-dirty` when the files differ from it; None outside its own repository."""
    if (origin := _origin()) is not None:
        return origin["git_commit"]
    described = _git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    return described.decode().strip() if described is not None else None


@cache
def git_diff_sha256() -> str | None:
    """Digest of the changes that are not committed, which tells two dirty trees apart; None without any."""
    if (origin := _origin()) is not None:
        return origin["git_diff_sha256"]
    difference = git_diff()
    return hashlib.sha256(difference).hexdigest() if difference else None


def git_diff() -> bytes | None:
    """The changes that are not committed, as a patch; None outside the repository of this code."""
    return _git("diff", "--no-ext-diff", "--binary", "HEAD")


def _origin() -> dict[str, str | None] | None:
    """What a frozen copy of this code says of itself; None for any other."""
    file = Path(__file__).parents[2] / ORIGIN
    return json.loads(file.read_bytes()) if file.is_file() else None


def _git(*arguments: str) -> bytes | None:
    """What git says of the repository of this code; None when there is none."""
    here = Path(__file__)
    git = ["git", "--no-optional-locks", "-C", str(here.parent)]
    try:
        # An installed copy may lie in a folder of somebody else's repository.
        subprocess.run([*git, "ls-files", "--error-unmatch", here.name], capture_output=True, check=True)
        return subprocess.run([*git, *arguments], capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None


@cache
def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
