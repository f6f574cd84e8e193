"""Hub ids: which commit a revision is today, and the folder of this machine that holds its files.

    pinned("Qwen/Qwen3-0.6B", "main")                  "c1899de289a04d12100db370d81485cdf75e47ca"
    snapshot("Qwen/Qwen3-0.6B", "c1899de2...")         .../models--Qwen--Qwen3-0.6B/snapshots/c1899de2...

A commit is never looked up, and what is in the cache is never asked for again: a machine without a network works on
what another command has downloaded.
"""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    HTTPError,  # type: ignore[attr-defined]  # not exported: the other way is the HTTP library that it asks with, which is another one in each release
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from persona_lab.errors import ModelError, printable
from persona_lab.models.inspection import INDEX, read_json

COMMIT = re.compile(r"[0-9a-f]{40}")
FEW = ("*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt")
"""Files of a model that are small: what is known before its weights are there."""
REFUSALS = (RepositoryNotFoundError, GatedRepoError, RevisionNotFoundError, HFValidationError)
SECONDS = 10.0
"""How long the hub may take to say which commit a branch is."""

log = logging.getLogger(__name__)


def pinned(path: str, revision: str | None) -> str:
    """The commit of a hub id's revision (none: main): the hub's word, or where it cannot be reached, that of the cache.

    Raises:
        ModelError: PL4020, the hub cannot be reached and the cache has no such revision; PL4021, the hub refuses.
    """
    if revision is not None and COMMIT.fullmatch(revision):
        return revision
    name = revision or constants.DEFAULT_REVISION
    if not offline():
        try:
            return _commit(path, name)
        except (HTTPError, OSError) as error:
            log.warning("the hub cannot be reached (%s): of %s the %s that was downloaded last is taken", type(error).__name__, path, name)
    try:
        config = try_to_load_from_cache(path, "config.json", revision=name)
    except HFValidationError as error:
        raise refused(path, name, error) from error
    if not isinstance(config, str):
        raise unreachable(path, name)
    return Path(config).parent.name


def snapshot(path: str, commit: str, *, weights: bool = True) -> Path:
    """The folder with a commit's files; what is missing of them is downloaded: safetensors and text, nothing that could run.

    Raises:
        ModelError: PL4020, the hub cannot be reached and the files were never downloaded; PL4021, the hub refuses.
    """
    wanted: dict[str, Any] = {"revision": commit, "allow_patterns": [*FEW, *(["model*.safetensors"] if weights else [])]}
    try:
        here = Path(snapshot_download(path, local_files_only=True, **wanted))
    except LocalEntryNotFoundError:
        here = None
    except HFValidationError as error:
        raise refused(path, commit, error) from error
    if here is not None and (offline() or _whole(here, weights=weights)):
        return here
    if offline():
        raise unreachable(path, commit)
    try:
        _commit(path, commit)  # in a moment, where to download without a network is tried for half a minute
        return Path(snapshot_download(path, **wanted))
    except REFUSALS as error:  # what a gated model is may be asked by everybody, its files may not
        raise refused(path, commit, error) from error
    except (HTTPError, OSError) as error:
        raise unreachable(path, commit, error) from error


def downloaded(path: str, commit: str) -> bool:
    """Whether the cache has a commit whole, weights and all; nothing is asked of the network."""
    try:
        return _whole(Path(snapshot_download(path, revision=commit, local_files_only=True)), weights=True)
    except LocalEntryNotFoundError:
        return False


def _commit(path: str, revision: str) -> str:
    """The commit of a revision as the hub says; ModelError PL4021 when it refuses."""
    try:
        found = HfApi().model_info(path, revision=revision, timeout=SECONDS).sha
    except REFUSALS as error:
        raise refused(path, revision, error) from error
    assert found is not None, "the hub names the commit of every revision"
    return found


def offline() -> bool:
    """Whether the environment says that the hub is not to be asked (`HF_HUB_OFFLINE=1`)."""
    return constants.is_offline_mode()


def _whole(folder: Path, *, weights: bool) -> bool:
    """Whether a snapshot has its config, and where they are asked for every shard of its weights."""
    if not (folder / "config.json").is_file():
        return False
    if not weights:
        return True
    if not (folder / INDEX).is_file():
        return (folder / "model.safetensors").is_file()
    named = read_json(folder / INDEX).get("weight_map")
    return isinstance(named, Mapping) and all((folder / str(shard)).is_file() for shard in named.values())


def refused(path: str, revision: str, error: Exception) -> ModelError:
    """PL4021."""
    said = printable(" ".join(str(error).partition(". ")[0].split()), 200)
    fix = "Use an id and a revision that the hub has; where it is private or gated, accept its licence on the hub and log in with `hf auth login`."
    return ModelError("PL4021", f"{path}@{revision}", f"base.path: the hub refuses it: {said}. {fix}")


def unreachable(path: str, revision: str, error: Exception | None = None) -> ModelError:
    """PL4020; a full disk, for instance, is told of by the error of the download."""
    why = f" ({printable(' '.join(str(error).split()), 200)})" if error else ""
    fix = f"Download it where there is a network (`hf download {path} --revision {revision}`), or use a local folder"
    return ModelError("PL4020", f"{path}@{revision}", f"base.path: the hub cannot be reached{why}, and the cache {constants.HF_HUB_CACHE} does not have it. {fix}.")

