"""The verb `why`: what made a node, and what would force it to be made again. No torch.

    stage 4d528ab8071c   steps 60, batch 16, rate 0.001
      base 640aee31364f
      mixture 3425c1d3b0c4
        assistant: pool 220e4032bd95
"""

from collections.abc import Iterator
from typing import Any

from persona_lab.design import RECIPE_VERSIONS
from persona_lab.experiment.reading.runs import all_runs
from persona_lab.store.files import read_json
from persona_lab.store.nodes import Store

SHORT = 12
LONGEST = 100
"""Characters of one field that are shown; `--json` has all of it."""


def why(store: Store, prefix: str) -> dict[str, Any]:
    """A node by the first digits of its id: manifest, inputs as a tree, cells that need it, what would make it anew.

    Raises:
        ConfigError: no node, or several, start with the prefix.
    """
    _, node_id = store.find(prefix)
    manifests = {found: manifest for _, found, manifest in store.nodes()}
    manifest = manifests[node_id]
    recipe = manifest["recipe"]
    version, now = recipe["recipe_version"], RECIPE_VERSIONS[recipe["kind"]]
    return {
        "node": node_id,
        "kind": recipe["kind"],
        "folder": str(store.root / recipe["kind"] / node_id),
        "bytes": store.payload_bytes(manifest),
        "made": {key: manifest[key] for key in ("created", "git_commit", "versions", "notes")},
        "tree": tree(node_id, manifests),
        "needed_by": list(needed_by(store, node_id)),
        "made_again_by": made_again_by(recipe),
        "outdated": "" if version == now else f"made by recipe version {version}, this version of the lab has {now}: the next run makes it anew",
    }


def tree(node_id: str, manifests: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """A node with its fields and, below, everything that it was made from."""
    if node_id not in manifests:
        return {"node": node_id, "kind": "not in the store", "fields": {}, "inputs": {}}
    recipe = manifests[node_id]["recipe"]
    inputs = {role: tree(below, manifests) for role, below in recipe["inputs"].items()}
    file = manifests[node_id]["notes"].get("file")
    return {"node": node_id, "kind": recipe["kind"], "fields": recipe["fields"], "inputs": inputs, **({"file": file} if file else {})}


def made_again_by(recipe: dict[str, Any]) -> list[str]:
    """Every change after which the identity is another one."""
    fields = {**recipe["fields"].get("recipe", {}), **recipe["fields"]}
    changes = [f"another {name}" for name in fields if name != "recipe"]
    changes += [f"another {role} ({node_id[:SHORT]})" for role, node_id in recipe["inputs"].items()]
    return [*changes, f"code that changes what a {recipe['kind']} holds (recipe version {recipe['recipe_version']})", "loss or damage of its files"]


def needed_by(store: Store, node_id: str) -> Iterator[str]:
    """Cells of the runs beside the store that name the node, as `run cell stage`."""
    for folder in all_runs(store.root.parent):
        for cell in read_json(folder / "plan.json")["cells"]:
            for part in (*cell["stages"], *cell["scores"]):
                if part["node"] == node_id:
                    yield f"{folder.name} {cell['cell']} {part['stage']}"


def shown(found: dict[str, Any], role: str = "", depth: int = 0) -> Iterator[str]:
    """The tree as lines."""
    label = f"{role}: " if role not in ("", found["kind"]) else ""
    yield f"{'  ' * depth}{label}{found['kind']} {found['node'][:SHORT]}   {read_from(found)}{brief(found['fields'])}".rstrip()
    for below, child in found["inputs"].items():
        yield from shown(child, below, depth + 1)


def read_from(found: dict[str, Any]) -> str:
    """The file that a pool was read from."""
    return f"read from {found['file']}; " if "file" in found else ""


def brief(fields: dict[str, Any]) -> str:
    """Fields in one line: what is nested is named, not shown."""
    flat = {**fields.get("recipe", {}), **{name: value for name, value in fields.items() if name != "recipe"}}
    text = ", ".join(f"{name} {value}" for name, value in flat.items() if not isinstance(value, dict | list))
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
