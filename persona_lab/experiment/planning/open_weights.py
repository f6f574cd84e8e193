"""A Hugging Face base as a plan sees it, before its weights are read by a model: which commit, which files, which chat template.

    pinned_base(base)     the base with the commit in the place of `revision: main`
    found_in(base)        {"files": "Qwen/Qwen3-0.6B@c1899de2...", "template": "4f3a..."}: what of the model is part of its identity
"""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from persona_lab.config import LoadedExperiment
from persona_lab.config.schema import EmbeddedBase, HuggingFaceBase
from persona_lab.models.dialogue import template_in_force
from persona_lab.models.inspection import check_config, folder_digest, is_folder

VALUE_TOKENS = "value_tokens.json"
"""Payload of the node: how many tokens each value of each category is."""
FOUND = ("files", "template")
"""Fields of a base node that its files give it. `template`: digest of the chat template in force, where one is."""


def pinned_base(base: EmbeddedBase | HuggingFaceBase) -> EmbeddedBase | HuggingFaceBase:
    """The base with a commit for its revision, when it is a hub id; ModelError PL4020, PL4021."""
    if isinstance(base, EmbeddedBase) or is_folder(base.path):
        return base
    from persona_lab.models.hub import pinned

    return base.model_copy(update={"revision": pinned(base.path, base.revision)})


def pinned_experiment(loaded: LoadedExperiment) -> LoadedExperiment:
    """The experiment on that base."""
    base = pinned_base(loaded.experiment.base)
    return loaded if base is loaded.experiment.base else replace(loaded, experiment=loaded.experiment.model_copy(update={"base": base}))


def found_in(base: EmbeddedBase | HuggingFaceBase) -> Mapping[str, str]:
    """What the files of a Hugging Face base give its node; nothing for one that is pretrained here.

    Of a hub id the small files are downloaded where the cache does not have them, and looked at as those of a folder.

    Raises:
        ModelError: the folder is refused (`check_model_folder`), the hub or its cache does not have it, or it lacks the chat template that is asked for.
    """
    if isinstance(base, EmbeddedBase):
        return {}
    if is_folder(base.path):
        folder = Path(base.path)
        files = folder_digest(folder)
    else:
        from persona_lab.models.hub import pinned, snapshot

        commit = pinned(base.path, base.revision)
        folder = snapshot(base.path, commit, weights=False)
        check_config(folder)
        files = f"{base.path}@{commit}"
    template = template_in_force(folder, base.chat)
    return {"files": files, **({"template": hashlib.sha256(template.encode()).hexdigest()} if template else {})}
