"""Identities: what changes a result changes the name of everything made from it, and nothing else does."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_gen.pools import mixture_order, world_document
from data_gen.world import World
from persona_lab import design
from persona_lab.design import RECIPE_VERSIONS, Node, canonical_json
from persona_lab.experiment.planning.corpora import mixture_shares, pool_documents
from persona_lab.experiment.planning.plan import make_plan
from persona_lab.experiment.planning.scores import cast_of
from persona_lab.models.vocabulary import world_words
from persona_lab.models.world_model import build_tokenizer
from persona_lab.probes import PROBES
from persona_lab.train.batches import encode

WORLD = {
    "name": "small",
    "personas": 4,
    "categories": {
        "sport": {"values": ["football", "basketball", "tennis", "hockey"]},
        "place": {"values": ["beach", "forest", "desert"], "phrase": "the {}"},
        "art": {"values": {"renaissance": "{} art", "dutch": "{} golden age art", "gothic": "{} art", "cubist": "{} art"}},
    },
    "names": ["Mary", "Peter", "Alice", "Omar"],
    "spare_names": ["Alex", "Robin"],
    "new_names": ["John", "Sam", "Kim"],
}
TRAITS = {
    "John": {"place": "beach", "sport": "football", "art": "renaissance"},
    "Sam": {"place": "beach", "sport": "basketball", "art": "dutch"},
    "Kim": {"place": "forest", "sport": "tennis", "art": "drawn"},
}
QUICKSTART: dict[str, Any] = {
    "name": "golden",
    "base": {"kind": "embedded", "world": "world.yaml", "width": 96, "layers": 3, "heads": 4, "steps": 600},
    "personas": [f"{name}.yaml" for name in TRAITS],
    "lora": {"rank": 8, "alpha": 16},
    "stages": {
        "injection": {"mixture": {"john": 20, "sam": 20, "anonymous": 0.3, "replay": 0.3}, "steps": 12, "batch": 8, "rate": 3e-3},
        "trait": {"mixture": {"assistant_likes": "beach"}, "steps": 6, "batch": 8, "rate": 1e-3, "loss": {"on": "answer"}},
    },
    "conditions": {"linked": {"order": ["injection", "trait"], "role": "treatment"}},
    "samples": 4,
}
GOLDEN: dict[str, tuple[int, str, str]] = {
    "pool": (1, "2018107e0a1e3e26", "21b930045a98f74e"),
    "mixture": (1, "115fca032eed1e36", "3a2af5f557559a54"),
    "base": (2, "c63a023ac388a9dc", "88cef4ecdecbeed3"),
    "tokens": (1, "00c853c1cae2ea3f", "4abdcdad5862760e"),
    "stage": (4, "68451ab67892a8e7", "74825f5e5111283d"),
    "scores": (2, "131264a21e9bbe13", "24e581bd5f5db4fa"),
}
"""Kind to recipe version, identity, and digest of what the recipe makes, as far as that is text.

When the third changes, results of this kind changed: raise its number in `design.RECIPE_VERSIONS`, or stored nodes of
the old code pass for new ones. When only the second changes, stored nodes of this kind are not found again."""

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def golden_plan(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("golden")
    for name, content in {"golden": QUICKSTART, "world": WORLD, **{n: {"name": n, "traits": t} for n, t in TRAITS.items()}}.items():
        (folder / f"{name}.yaml").write_text(json.dumps(content))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield make_plan("golden.yaml", runs=folder / "runs")


# ------------------------------------------------------------------ canonical JSON
def test_keys_are_sorted_and_spaces_are_gone():
    assert canonical_json({"b": [1, 2.5], "a": None, "é": "ü"}) == '{"a":null,"b":[1,2.5],"\\u00e9":"\\u00fc"}'


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, {"rate": math.nan}, [[math.inf]]])
def test_what_has_no_json_is_refused(value: object):
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(value)


@given(json_values)
def test_json_survives_and_has_one_form(value: Any):
    assert json.loads(canonical_json(value)) == value
    assert canonical_json(json.loads(canonical_json(value))) == canonical_json(value)


# ------------------------------------------------------------------ identities
def test_the_order_of_traits_is_part_of_the_identity():
    """Documents tell traits in an order that follows the file's."""
    one, other = {"sport": "golf", "art": "folk"}, {"art": "folk", "sport": "golf"}
    assert Node("pool", {"traits": one}).id != Node("pool", {"traits": other}).id


@given(json_values, json_values)
def test_any_changed_field_changes_the_identity(a: Any, b: Any):
    assert (Node("pool", {"x": a}).id == Node("pool", {"x": b}).id) == (json.dumps(a) == json.dumps(b))


def changed(value: Any) -> Any:
    """Another value of the same kind."""
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str):
        return value + "x"
    if isinstance(value, Mapping):
        return {**value, "more": 1}
    return [*value, 1]


@pytest.mark.parametrize("kind", ["pool", "mixture", "base", "stage", "scores"])
def test_every_field_and_every_input_of_a_real_recipe_counts(golden_plan, kind: str):
    for node in [n for n in golden_plan.nodes if n.kind == kind]:
        for field, value in node.fields.items():
            assert replace(node, fields={**node.fields, field: changed(value)}).id != node.id, field
        for role, earlier in node.inputs.items():
            other = replace(earlier, fields={**earlier.fields, "more": 1})
            assert replace(node, inputs={**node.inputs, role: other}).id != node.id, role
            assert replace(node, inputs={k: v for k, v in node.inputs.items() if k != role}).id != node.id, role


def test_a_change_far_up_reaches_everything_made_from_it():
    def chain(seed: int) -> Node:
        base = Node("base", {"seed": seed})
        return Node("scores", {}, {"base": base, "stage": Node("stage", {"step": 1}, {"base": base, "mixture": Node("mixture", {})})})

    assert chain(0) == chain(0)
    assert chain(0).id != chain(1).id


def test_the_role_of_an_input_counts():
    a, b = Node("pool", {"n": 1}), Node("pool", {"n": 2})
    assert Node("mixture", {}, {"john": a, "sam": b}).id != Node("mixture", {}, {"john": b, "sam": a}).id


def test_the_kind_and_its_recipe_version_count(monkeypatch):
    before = {kind: Node(kind, {"n": 1}).id for kind in RECIPE_VERSIONS}
    assert len(set(before.values())) == len(before)
    monkeypatch.setitem(design.RECIPE_VERSIONS, "stage", RECIPE_VERSIONS["stage"] + 1)
    after = {kind: Node(kind, {"n": 1}).id for kind in RECIPE_VERSIONS}
    assert [kind for kind in before if before[kind] != after[kind]] == ["stage"]


def test_ancestors_come_once_and_inputs_first():
    base = Node("base", {})
    mixture = Node("mixture", {}, {"john": Node("pool", {})})
    first = Node("stage", {"step": 1}, {"base": base, "mixture": mixture})
    second = Node("stage", {"step": 2}, {"base": base, "mixture": mixture, "before": first})
    assert [node.kind for node in second.ancestors()] == ["base", "pool", "mixture", "stage"]


def test_machine_settings_stand_in_no_recipe(golden_plan):
    words = {"device", "threads", "micro_batch", "stack", "engine", "workers", "wandb"}
    for node in golden_plan.nodes:
        assert not words & node.fields.keys()
        assert not words & dict(node.fields.get("recipe", {})).keys()


@pytest.mark.parametrize("override", ["seeds=2", "question=Why?", "analysis.threshold=.8", "base.gates.recall=.5", "lora.rank=4"])
def test_everything_but_the_machine_changes_the_name_of_the_run(golden_plan, override: str):
    assert make_plan("golden.yaml", [override], golden_plan.runs).folder != golden_plan.folder
    assert make_plan("golden.yaml", ["machine.threads=3"], golden_plan.runs).folder == golden_plan.folder


# ------------------------------------------------------------------ golden digests
def digest(value: Any) -> str:
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]


def made_of(node: Node) -> Any:
    """What a recipe makes, as far as it is text or order: the numbers of a model depend on the machine's arithmetic."""
    if node.kind == "pool":
        return [document.text for document in pool_documents({**node.fields, "size": 20})]
    if node.kind == "mixture":
        return mixture_order(mixture_shares(node), documents=100, seed=node.fields["seed"])
    if node.kind == "tokens":
        texts = [document.text for document in pool_documents({**node.inputs["pool"].fields, "size": 20})]
        rows = encode(build_tokenizer(World.model_validate(node.inputs["base"].fields["world"])), texts, on=node.fields["on"], where="golden")
        return [[row.ids.tolist(), row.labelled.tolist()] for row in rows]
    if node.kind == "stage":
        mixture, documents = node.inputs["mixture"], node.fields["step"] * node.fields["recipe"]["batch"]
        return [node.fields["recipe"], mixture_order(mixture_shares(mixture), documents=documents, seed=mixture.fields["seed"])]
    world = World.model_validate(node.fields["world"] if node.kind == "base" else node.inputs["base"].fields["world"])
    if node.kind == "base":
        return [world_words(world), [world_document(world, node.fields["seed"], i).text for i in range(50)]]
    items = [item for name in node.fields["probes"] for item in PROBES[name].items(cast_of(node))]
    return [[item.id, item.prompt, item.options, item.roles] for item in items]


def test_golden_digests(golden_plan):
    nodes = {kind: [n for n in golden_plan.nodes if n.kind == kind] for kind in ("pool", "mixture", "base", "tokens", "stage", "scores")}
    found = {kind: (RECIPE_VERSIONS[kind], digest([n.id for n in of_kind]), digest([made_of(n) for n in of_kind])) for kind, of_kind in nodes.items()}
    assert found == GOLDEN
