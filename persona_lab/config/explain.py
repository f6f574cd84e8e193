"""Says what is wrong with a value in the words of its field: expected, got, and how to mend it.

    stages.injection.rate must be a number > 0 and < 1, got -0.003. Use for instance `rate: 3.0e-3`.

pydantic decides what is wrong; the words come from the JSON schema of the model, so that a new field explains itself.
"""

import copy
import json
import re
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from persona_lab.config.layers import did_you_mean, is_reported, place
from persona_lab.config.yaml_tree import Path, Tree, dotted, plain_scalar
from persona_lab.errors import Problem, printable, quoted

Model = TypeVar("Model", bound=BaseModel)
Schema = dict[str, Any]

EXAMPLES: dict[str, str] = {
    "name": "ratio",
    "base": "{kind: embedded, world: configs/worlds/beach.yaml}",
    "kind": "embedded",
    "world": "configs/worlds/beach.yaml",
    "path": "Qwen/Qwen3-0.6B",
    "stages": "{injection: {mixture: {john: 2500, sam: 2500}, steps: 400, batch: 32, rate: 3.0e-3}}",
    "conditions": "{linked: {order: [injection]}}",
    "factors": "{injection.steps: [40, 400]}",
    "order": "[injection, trait]",
    "mixture": "{john: 2500, sam: 2500}",
    "steps": "400",
    "batch": "32",
    "rate": "3.0e-3",
    "traits": "{place: beach, sport: football}",
    "categories": "{place: {values: [beach, forest, lake]}}",
    "values": "[beach, forest, lake]",
    "names": "[Mary, Peter]",
    "spare_names": "[John, Sam]",
}
"""A value for each field that has no default."""
LISTS = {"personas": "[configs/personas/john.yaml, configs/personas/sam.yaml]", "probes": "[knows, says]", "seeds": "5"}


@dataclass(frozen=True)
class Finding:
    """One thing wrong at a path of the file; the position is looked up when it is printed."""

    path: Path
    code: str
    message: str
    key: bool = False
    """The key is wrong, not its value."""


def problems_of(tree: Tree, findings: list[Finding]) -> list[Problem]:
    """The findings with their positions: one for each place, none where the reading of the file already found one."""
    found: dict[tuple[Path, str], Problem] = {}
    spoilt: set[Path] = set()
    for finding in findings:
        if is_reported(tree, finding.path) or (finding.path in spoilt and finding.code in ("PL1203", "PL1205")):
            continue
        spoilt.add(finding.path)
        problem = Problem(finding.code, place(tree, finding.path, key=finding.key), printable(finding.message, 390))
        found.setdefault((finding.path, problem.message), problem)
    return list(found.values())


def validate(model: type[Model], raw: dict[str, Any], texts: Tree | None = None) -> tuple[Model | None, list[Finding]]:
    """The validated model, and what is wrong with it.

    With findings, the model is what is left when wrong values are set aside: good for looking for more, never for use.

    Args:
        model: the schema.
        raw: plain values.
        texts: the tree of the values, to quote scalars as they were written.
    """
    valid, errors = _try(model, raw)
    if valid:
        return valid, []
    findings, known = [], set[Path]()
    for error in errors:
        path = _path_in(raw, error["loc"], missing=error["type"] == "missing")
        if path not in known:
            findings.append(_finding(model, raw, path, error, texts))
            known.add(path)
    # A misspelt key is also a missing one: its own problem says enough.
    meant = {(finding.path[:-1], finding.message.rpartition("Did you mean ")[2].rstrip("?")) for finding in findings if finding.code == "PL1204"}
    kept = [finding for finding in findings if finding.code != "PL1205" or (finding.path[:-1], finding.path[-1]) not in meant]
    # A list in which one item is wrong is also no number: what is wrong inside says enough.
    inside = {finding.path[:length] for finding in kept for length in range(len(finding.path))}
    kept = [finding for finding in kept if finding.path not in inside or finding.code != "PL1203"]
    return _try(model, _set_aside(model, raw, findings))[0], kept


def _try(model: type[Model], raw: Any) -> tuple[Model | None, list[Any]]:
    try:
        # Through JSON, where strict still takes a list for a tuple, but never "3" or true for 3.
        return model.model_validate_json(json.dumps(raw), strict=True), []
    except ValidationError as error:
        return None, list(error.errors(include_url=False))


def _path_in(raw: Any, loc: tuple[Any, ...], *, missing: bool) -> Path:
    """The place in the file that pydantic's location means: without the names of the branches of unions."""
    path: list[str | int] = []
    for step in loc:
        if (isinstance(raw, dict) and step in raw) or (isinstance(raw, list) and isinstance(step, int) and step < len(raw)):
            path.append(step)
            raw = raw[step]
    return (*path, loc[-1]) if missing else tuple(path)


def _finding(model: type[BaseModel], raw: Any, path: Path, error: Any, texts: Tree | None) -> Finding:
    """One of pydantic's errors in plain words."""
    name, kind = dotted(path), error["type"]
    field = str(next((step for step in reversed(path) if isinstance(step, str)), ""))
    value = raw
    for step in path[: -1 if kind == "missing" else None]:
        value = value[step]
    if kind == "extra_forbidden":
        above = dotted(path[:-1])
        inside = f" in {above}" if above else ""
        return Finding(path, "PL1204", f"unknown key {field!r}{inside}. {did_you_mean(field, fields_at(model, raw, path[:-1]))}", key=True)
    if kind == "missing":
        return Finding(path, "PL1205", f"{name} is missing. {_for_instance(model, field, {})}")
    if kind.startswith("union_tag"):
        tag = value.get("kind") if isinstance(value, dict) else None
        got = f"got {tag!r}" if tag is not None else "and is missing"
        return Finding((*path, "kind"), "PL1203", f"{dotted((*path, 'kind'))} must be one of embedded, hf, {got}. Use `kind: embedded` or `kind: hf`.")
    if kind == "value_error":
        reason = str(error["ctx"]["error"]).rstrip(".")
        return Finding(path, "PL1203", f"{name + ': ' if name else ''}{reason}. " + ("" if "Use " in reason else "Use values that agree."))
    if error["loc"][-1] == "[key]":
        rule = "lower-case letters, digits, - and _, not a path" if "[key]" in error["loc"] and "0-9" in error["ctx"]["pattern"] else "letters only"
        return Finding(path, "PL1203", f"the name {field!r} must be a short word of {rule}. Use for instance `{_clean(field)}`.", key=True)
    fragment = fragment_at(model, raw, path)
    node = texts.get(*path) if texts else None
    expected = " or ".join(_words(model, fragment))
    return Finding(path, "PL1203", f"{name} must be {expected}, got {_got(value, node)}. {_mend(model, field, fragment, value, node)}")


def _clean(name: str) -> str:
    """A name made from whatever was given."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40] or "injection"


def _got(value: Any, node: Tree | None) -> str:
    """A wrong value as it was written."""
    if isinstance(value, (dict, list)):
        return f"a {'mapping' if isinstance(value, dict) else 'list'} of {len(value)}"
    if isinstance(value, str):
        return f"the text {quoted(value)}"
    return "nothing" if value is None else node.text[:60] if node and node.text else json.dumps(value)[:60]


def _mend(model: type[BaseModel], field: str, fragment: Schema, value: Any, node: Tree | None) -> str:
    """One sentence: how to mend a wrong value."""
    branches = _branches(model, fragment)
    takes_text = any(branch.get("type") == "string" and not branch.keys() & {"const", "enum"} for branch in branches)
    if takes_text and isinstance(value, (bool, int, float)) and node and node.text:
        return f"Use quotes, '{node.text[:60]}', if you mean the text: YAML reads it as {'true or false' if isinstance(value, bool) else 'a number'}."
    if isinstance(value, str) and any(branch.get("type") in ("integer", "number") for branch in branches):
        if isinstance(plain_scalar(value), (int, float)) and not isinstance(plain_scalar(value), bool):
            return f"Use it without quotes: `{field}: {value[:40]}`."
        if value.lower().lstrip("+-") in ("inf", "infinity") and field == "ln_ratio":
            return "Use .inf or -.inf, with the dot."
    known = [str(word) for branch in branches for word in branch.get("enum", [branch["const"]] if "const" in branch else [])]
    if known and isinstance(value, str) and value != "":
        return did_you_mean(value, known)
    return _for_instance(model, field, fragment)


def _for_instance(model: type[BaseModel], field: str, fragment: Schema) -> str:
    """An example of a field: its default, else one from the table."""
    example = _example(model, field, fragment)
    return f"Use for instance `{field}: {example}`." if example else "Use a value of that kind."


def _example(model: type[BaseModel], field: str, fragment: Schema) -> str:
    if model.__name__ == "Experiment" and field in LISTS:
        return LISTS[field]
    if model.__name__ != "Experiment" and field == "personas":
        return "24"
    default = fragment.get("default")
    if default is not None and default != {} and default != []:
        return yaml.safe_dump(default, default_flow_style=True, width=10_000).removesuffix("\n").removesuffix("\n...")
    if field not in EXAMPLES and fragment.get("type") == "integer" and "maximum" in fragment:
        return "2500"  # documents about a persona, the one kind of field that has no name of its own
    return EXAMPLES.get(field, "[0, 1]" if "." in field else "")


def _words(model: type[BaseModel], fragment: Schema) -> list[str]:
    """What a field may be, e.g. `["a whole number >= 1 and <= 64"]`; one entry for each branch of a union."""
    words: list[str] = []
    for branch in _branches(model, fragment):
        kind = branch.get("type")
        if "const" in branch or "enum" in branch:
            words.append(" or ".join(map(str, branch.get("enum", [branch.get("const")]))))
        elif kind in ("integer", "number"):
            bounds = (("minimum", ">="), ("exclusiveMinimum", ">"), ("maximum", "<="), ("exclusiveMaximum", "<"))
            limits = " and ".join(f"{sign} {branch[bound]}" for bound, sign in bounds if bound in branch)
            words.append(("a whole number " if kind == "integer" else "a number ") + limits)
        elif kind == "array":
            least = f"at least {branch['minItems']} " if branch.get("minItems") else ""
            words.append(f"a list of {least}" + " or ".join(_words(model, branch.get("items", {}))).replace("a whole number", "whole numbers"))
        elif kind == "string" and "description" in branch:
            words.append(branch["description"])
        else:
            least = f" of at least {branch['minProperties']} entries" if branch.get("minProperties") else ""
            words.append({"object": "a mapping" + least, "string": "text", "boolean": "true or false", "null": "null"}.get(str(kind), "a value"))
    return [word.rstrip() for word in words]


@cache
def _schema(model: type[BaseModel]) -> Schema:
    return model.model_json_schema()


def _branches(model: type[BaseModel], fragment: Schema, value: Any = None) -> list[Schema]:
    """The alternatives of a union, with references followed; the one of its `kind` where the value tells it."""
    if "$ref" in fragment:
        return _branches(model, _schema(model)["$defs"][fragment["$ref"].rpartition("/")[2]], value)
    union = fragment.get("anyOf") or fragment.get("oneOf")
    if not union:
        return [fragment]
    branches = [found for branch in union for found in _branches(model, branch, value)]
    kind = value.get("kind") if isinstance(value, dict) else None
    return [branch for branch in branches if branch.get("properties", {}).get("kind", {}).get("const") == kind] or branches if kind else branches


def _step_into(raw: Any, step: str | int) -> Any:
    """A value inside another one; None where there is none."""
    if isinstance(raw, dict):
        return raw.get(step)
    return raw[step] if isinstance(raw, list) and isinstance(step, int) and step < len(raw) else None


def fragment_at(model: type[BaseModel], raw: Any, path: Path) -> Schema:
    """The JSON schema of the field at a path; empty when there is none, or when any value may stand there."""
    here = _schema(model)
    for step in path:
        found: Schema | None = None
        for branch in _branches(model, here, raw):
            if isinstance(step, int):
                found = found or branch.get("items")
            else:
                patterns = branch.get("patternProperties", {})
                more = next(iter(patterns.values()), None) or branch.get("additionalProperties")
                found = found or branch.get("properties", {}).get(step) or (more if isinstance(more, dict) else None)
        if found is None:
            return {}
        here = found
        raw = _step_into(raw, step)
    return here


def fields_at(model: type[BaseModel], raw: Any, path: Path) -> list[str]:
    """The keys that the mapping at a path may have."""
    fragment = fragment_at(model, raw, path)
    for step in path:
        raw = _step_into(raw, step)
    return list(dict.fromkeys(key for branch in _branches(model, fragment, raw) for key in branch.get("properties", {})))


def _set_aside(model: type[BaseModel], raw: dict[str, Any], findings: list[Finding]) -> dict[str, Any]:
    """The values without the wrong ones: a default stands in where there is one, else the example of the field."""
    raw = copy.deepcopy(raw)
    for finding in findings:
        path = list(finding.path)
        while path and isinstance(path[-1], int):
            path.pop()
        above: Any = raw
        for step in path[:-1]:
            above = above.get(step) if isinstance(above, dict) else None
        if not path or not isinstance(above, dict):
            continue
        above.pop(path[-1], None)
        fragment = fragment_at(model, raw, tuple(path))
        example = _example(model, str(path[-1]), fragment)
        required = any(path[-1] in branch.get("required", []) for branch in _branches(model, fragment_at(model, raw, tuple(path[:-1])), above))
        if (required or example == "2500") and example and finding.code != "PL1204":
            above[path[-1]] = yaml.safe_load(example)
    return raw
