"""Layers: a file over the files that it `extends`, and the command line over all of them.

    # configs/quick.yaml                    persona-lab run configs/quick.yaml stages.trait.steps=20 base=Qwen/Qwen3-0.6B
    extends: ratio.yaml
    seeds: 1

Mappings are merged key by key, the later layer wins, lists are replaced. A layer that changes `base.kind` starts `base`
anew and keeps only its `world`: the width of an embedded model means nothing to another one.
"""

import difflib
import os
import re
import stat
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path as File

import yaml

from persona_lab.config.yaml_tree import WANDB_KEY, Path, Tree, merge, parse, refused_text
from persona_lab.errors import SECRET, ConfigError, Problem, printable

MAX_BYTES = 100_000
"""Read in two seconds at worst; the largest file of the project has three thousand."""
MAX_EXTENDS = 8
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """How to mend a wrong word: the nearest known one, or else the list of them."""
    near = difflib.get_close_matches(word[:80], known, n=1, cutoff=0.6)
    if near:
        return f"Did you mean {near[0]}?"
    some = ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")
    return f"Use one of: {some}." if known else "Remove it."


def read_text(file: File, at: str = "") -> str:
    """The text of a YAML file.

    Args:
        file: the file.
        at: the position that names it, when it is not the command line.

    Raises:
        ConfigError: PL1200 when it cannot be read, PL1201 when it is not UTF-8 text.
    """
    where, shown = at or str(file), printable(str(file), 120)
    try:
        status = file.stat()
        if stat.S_ISDIR(status.st_mode):
            raise ConfigError("PL1200", where, f"{shown} is a folder. {_neighbours(file / 'x')}")
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError("PL1200", where, f"{shown} is not a regular file. Use the path of a YAML file.")
        if status.st_size > MAX_BYTES:
            raise ConfigError("PL1200", where, f"{shown} has {status.st_size} bytes, the most is {MAX_BYTES}. Use a smaller file; data does not belong here.")
        data = file.read_bytes()
    except FileNotFoundError:
        raise ConfigError("PL1200", where, f"there is no file {shown}. {_neighbours(file)}") from None
    except OSError as error:
        raise ConfigError("PL1200", where, f"cannot read {shown}: {error.strerror or error}. Use a file that you may read.") from None
    except ValueError:  # a NUL in the path
        raise ConfigError("PL1200", where, f"{shown} is no path. Use the path of a YAML file.") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError("PL1201", str(file), f"byte {error.start} is not UTF-8. Use UTF-8 text, saved anew by your editor.") from None
    if "\0" in text:
        raise ConfigError("PL1201", str(file), f"byte {data.index(0)} is NUL: this is not a text file. Use a YAML file.")
    return text


def _neighbours(file: File) -> str:
    """YAML files that stand where this one was looked for."""
    try:
        names = sorted(name for name in os.listdir(file.parent) if name.endswith((".yaml", ".yml")))
    except (OSError, ValueError):
        names = []
    near = difflib.get_close_matches(file.name, names, n=1, cutoff=0.5)
    if near:
        return f"Did you mean {file.parent / near[0]}?"
    return f"Use one of: {', '.join(str(file.parent / name) for name in names[:5])}." if names else "Use the path of a YAML file."


def read_tree(file: File, problems: list[Problem], at: str = "") -> Tree:
    """The tree of one file, without what it extends.

    Raises:
        ConfigError: PL1200 or PL1201, there is no mapping to go on with.
    """

    def where(mark: yaml.Mark) -> str:
        return f"{file}:{mark.line + 1}:{mark.column + 1}"

    tree = parse(read_text(file, at), where, problems)
    if not isinstance(tree.value, dict):
        got = "a list" if isinstance(tree.value, list) else "nothing" if tree.value is None else "a single value"
        raise ConfigError("PL1201", tree.at, f"the file must be a mapping, got {got}. Use lines of the form `key: value`.")
    return tree


def read_layers(file: File, overrides: Sequence[str], problems: list[Problem]) -> Tree:
    """A file over all that it extends, with the command line on top; `extends` itself is gone.

    Raises:
        ConfigError: one of the files cannot be read or is not YAML.
    """
    tree = read_tree(file, problems)
    layers, seen = [tree], [os.path.realpath(file)]
    while "extends" in tree.mapping():
        link = tree.mapping()["extends"]
        if link.reported:
            break
        if not isinstance(link.value, str) or not link.value:
            raise ConfigError("PL1207", link.at, "extends must be the path of another YAML file. Use for instance `extends: ratio.yaml`.")
        file = File(os.path.normpath(file.parent / link.value))
        if os.path.realpath(file) in seen:
            raise ConfigError("PL1207", link.at, f"extends goes in a circle, back to {file}. Use a file that does not extend this one.")
        if len(seen) > MAX_EXTENDS:
            raise ConfigError("PL1207", link.at, f"more than {MAX_EXTENDS} files extend one another. Use fewer layers.")
        tree = read_tree(file, problems, link.at)
        layers.append(tree)
        seen.append(os.path.realpath(file))
    result = layers.pop()
    for layer in reversed(layers):
        result = _put_over(result, layer)
    result = _put_over(result, override_layer(overrides, problems))
    return replace(result, value={key: child for key, child in result.mapping().items() if key != "extends"})


def _put_over(low: Tree, high: Tree) -> Tree:
    """The merge of two layers of an experiment, with the rule for another kind of base."""
    kind, old = high.get("base", "kind"), low.get("base", "kind")
    if kind and old and kind.value != old.value:
        kept = {key: child for key, child in low.mapping("base").items() if key == "world"}
        low = replace(low, value={**low.mapping(), "base": replace(low.mapping()["base"], value=kept)})
    return merge(low, high)


def override_layer(overrides: Sequence[str], problems: list[Problem]) -> Tree:
    """The command line's `key.path=value` as one layer; later ones win over earlier ones."""
    layer = Tree({}, "command line")
    for override in overrides:
        key, equals, text = override.partition("=")
        shown = "a secret" if SECRET.search(key) else key if SECRET.search(text) or WANDB_KEY.fullmatch(text) else override
        at = printable(f"command line: {shown}", 100)
        path = override_path(key)
        if not equals or not all(path):
            problems.append(Problem("PL1208", at, "an override must be `key.path=value`. Use for instance `stages.trait.steps=20`."))
            continue
        if path == ("extends",):
            problems.append(Problem("PL1208", at, "extends belongs in a file. Use a file that extends this one, or override single keys."))
            continue
        if refused := refused_text(key, ()):
            problems.append(Problem(refused[0], at, f"a key here {refused[1]}"))
            continue

        def where(_: yaml.Mark, at: str = at) -> str:
            return at

        try:
            tree = parse(text, where, problems, path)
        except ConfigError as error:
            problems += error.problems
            continue
        if path == ("base",) and isinstance(tree.value, str) and not tree.reported:
            if not os.path.isdir(tree.value) and (os.path.exists(tree.value) or not HUB_ID.fullmatch(tree.value)):
                problems.append(Problem("PL1208", at, f"base: there is no folder {tree.value}. Use a model folder, or a hub id such as Qwen/Qwen3-0.6B."))
                tree = replace(tree, reported=True)
            tree = Tree({key: replace(tree, value=value, key_at=at) for key, value in (("kind", "hf"), ("path", tree.value), ("revision", None))}, at)
        tree = replace(tree, key_at=at)
        for step in reversed(path):
            tree = Tree({str(step): tree}, at, at)
        layer = merge(layer, tree)
    return layer


def override_path(key: str) -> Path:
    """The path of a dotted key; what follows `factors` or `replace` is one key, which has dots of its own."""
    parts = key.split(".")
    for at, word in ((0, "factors"), (2, "factors"), (2, "replace")):
        if parts[at : at + 1] == [word] and len(parts) > at + 1 and (at == 0 or parts[0] == "conditions"):
            return (*parts[: at + 1], ".".join(parts[at + 1 :]))
    return tuple(parts)


def place(tree: Tree, path: Path, *, key: bool = False) -> str:
    """Where a path stands in the file, or the nearest thing above it."""
    nodes = tree.trail(path)
    at = nodes[-1].key_at if key and len(nodes) == len(path) + 1 else nodes[-1].at
    return at or tree.at


def is_reported(tree: Tree, path: Path) -> bool:
    """True when a value on the way to this path already has its problem."""
    return any(node.reported for node in tree.trail(path))
