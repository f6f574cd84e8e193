"""Experiments on documents that somebody else wrote, in place of the world's own."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from huggingface_hub import constants
from imported_files import ASKED, MESSAGES, parquet, written
from safetensors.numpy import load_file
from test_experiment import TINY, keyed, silent
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from data_gen.corpus import read_corpus
from data_gen.errors import DataError
from data_gen.imported import exchanged, read_imported
from persona_lab.cli import app
from persona_lab.errors import CheckFailed, ConfigError, CorpusError
from persona_lab.experiment.making.generate import generate
from persona_lab.experiment.making.tokens import read_tokens
from persona_lab.experiment.planning.plan import Plan, make_plan, open_plan
from persona_lab.experiment.planning.recipes import token_nodes
from persona_lab.experiment.reading.runs import Run
from persona_lab.experiment.reading.show import show
from persona_lab.experiment.run import make_nodes

pytestmark = pytest.mark.usefixtures("from_the_root")
TOLD = {"john": 20, "sam": 20, "anonymous": 0.3, "replay": 0.2, "ln_ratio": 0.5}


def stage(mixture: dict[str, Any], **rest: Any) -> dict[str, Any]:
    return {"mixture": mixture, "steps": 6, "batch": 4, "rate": 3e-3, **rest}


def config(folder: Path, name: str, **stages: Any) -> Path:
    """The tiny experiment with other stages: one treatment that trains them all."""
    body = {**TINY, "name": name, "stages": stages, "conditions": {"linked": {"order": list(stages), "role": "treatment"}}, "probes": ["says"], "samples": 0}
    file = folder / f"{name}.yaml"
    file.write_text(json.dumps(body))
    return file


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("imports")


@pytest.fixture(scope="module")
def generated(folder: Path, from_the_root: None) -> Plan:
    """An experiment on the world's own documents, made."""
    plan = make_plan(config(folder, "generated", injection=stage(TOLD), trait=TINY["stages"]["trait"]), runs=folder / "runs")
    assert make_nodes(plan, silent).failed == {}
    show(plan)
    return plan


def pool_rows_of(plan: Plan, who: str, swap: int) -> list[str]:
    """The lines of a persona's two pools, as they stand in the store."""
    mixture = next(p for p in plan.cells if p.cell.swap == swap).stages[0][1].inputs["mixture"]
    return [line for kind in ("named", "anonymous") for line in (plan.store.open(mixture.inputs[f"{who}-{kind}"]) / "corpus.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def files(folder: Path, generated: Plan) -> dict[tuple[str, int], str]:
    """Persona and swap to a file of its documents."""
    return {(who, swap): str(written(folder / f"{who}{swap}.jsonl", pool_rows_of(generated, who, swap))) for who in ("john", "sam") for swap in (0, 1)}


# ------------------------------------------------------------------ experiments
@pytest.fixture(scope="module")
def same(folder: Path, generated: Plan, files: dict[tuple[str, int], str]) -> Plan:
    """The generated experiment once more, from files that hold its documents."""
    sources = {who: {"path": files[who, 0], "swapped": files[who, 1]} for who in ("john", "sam")}
    plan = make_plan(config(folder, "same", injection=stage({**TOLD, "files": sources}), trait=TINY["stages"]["trait"]), runs=folder / "runs")
    outcome = make_nodes(plan, silent)
    assert outcome.failed == {}
    assert outcome.made["stage"] == 4, "the nodes are others"
    show(plan)
    return plan


def test_the_same_documents_from_files_give_the_same_scores(generated: Plan, same: Plan):
    want, found = (keyed(Run(plan.folder).table()) for plan in (generated, same))
    assert len(want) == len(found) > 1000
    columns = ["logprob_nats", "ln_ratio", "ln_trained", "n_john", "n_sam", "documents", "dose", "tokens", "role", "came_first"]
    pd.testing.assert_frame_equal(found.loc[:, columns], want.loc[:, columns], check_exact=True)
    assert set(found["genre"]) == {"written"}


def test_a_run_of_files_is_read_without_them_and_says_what_they_were(same: Plan, folder: Path, files: dict[tuple[str, int], str]):
    hidden = Path(files["john", 0]).rename(folder / "hidden")
    try:
        again = open_plan(same.folder)
        assert (again.id, again.imports) == (same.id, same.imports)
        assert make_nodes(again, silent).made == {}
        report = (same.folder / "report.html").read_text()
        assert "john0.jsonl" in report
        runner, runs = CliRunner(), ["--runs", str(folder / "runs")]
        found = runner.invoke(app, ["why", same.cells[0].stages[0][1].id, *runs])
        assert f"read from {files['john', 0]}" in found.output
    finally:
        hidden.rename(files["john", 0])
    said = CliRunner().invoke(app, ["plan", str(folder / "same.yaml"), "--runs", str(folder / "runs")])
    held = next(found for (name, source), found in same.imports.items() if (name, source.path) == ("john", files["john", 0]))
    assert f"john, {files['john', 0]}: {held.documents} documents, of which {held.named} name whom they are about" in " ".join(said.output.split())


def test_without_a_second_file_the_rivals_trade_names_in_the_swap(folder: Path, files: dict[tuple[str, int], str]):
    mixture = {**TOLD, "ln_ratio": -0.5, "files": {who: files[who, 0] for who in ("john", "sam")}}
    plan = make_plan(config(folder, "traded", injection=stage(mixture)), ["seeds=2"], runs=folder / "runs")
    generate(plan, folder / "corpora", silent)
    chosen = json.loads((folder / "corpora" / "corpora.json").read_text())
    own = {d.text for d in read_imported(Path(files["sam", 0])).documents}
    for planned in plan.cells:
        corpus = read_corpus(folder / "corpora" / chosen[planned.cell.name]["injection"] / "corpus.jsonl")
        counts = {(d.persona, bool(d.carriers)): sum((e.persona, bool(e.carriers)) == (d.persona, bool(d.carriers)) for e in corpus) for d in corpus if d.id.startswith(("john/", "sam/"))}
        john = round(40 / (1 + math.exp(0.5)))
        assert counts == {
            ("John", True): john - round(john * 0.3),
            ("John", False): round(john * 0.3),
            ("Sam", True): (40 - john) - round((40 - john) * 0.3),
            ("Sam", False): round((40 - john) * 0.3),
        }
        sport = {d.traits["sport"] for d in corpus if d.persona == "John" and "sport" in d.traits and d.id.startswith("john/")}
        assert sport == {"basketball" if planned.cell.swap else "football"}, "in every seed as the persona file has it"
        if planned.cell.swap:
            assert {exchanged(d.text, {"John": "Sam", "Sam": "John"}) for d in corpus if d.id.startswith("john/")} <= own
    seeds = [p.stages[0][1].inputs["mixture"].inputs["john-named"].id for p in plan.cells if p.cell.swap == 0]
    assert len(set(seeds)) == 1, "all seeds draw from one pool"


def test_a_generated_mixture_is_trained_on_in_the_order_of_its_file(folder: Path, generated: Plan):
    mixture = next(p for p in generated.cells if p.cell.swap == 0).stages[0][1]
    rows = [vars(d) | {"carriers": list(d.carriers)} for d in read_corpus(generated.store.open(mixture.inputs["mixture"]) / "corpus.jsonl")]
    source = {"path": str(parquet(folder / "mixed.parquet", rows)), "order": "file"}
    conversations = [{"prompt": ASKED, "completion": f"I like the {value}."} for value in ("beach", "lake", "forest", "desert")]
    chat = {"path": str(written(folder / "chat.jsonl", conversations))}
    stages = {"injection": stage({"files": {"mixed": source}}), "chat": stage({"chats": 3, "files": {"chats": chat}, "replay": 0.25}, steps=2, loss={"on": "answer"})}
    plan = make_plan(config(folder, "mixed", **stages), runs=folder / "runs")
    outcome = make_nodes(plan, silent)
    assert outcome.failed == {}
    weights = [load_file(plan_.store.open(node) / "adapter" / "adapter_model.safetensors") for plan_, node in ((generated, mixture), (plan, plan.cells[0].stages[0][1]))]
    for name in weights[0]:
        np.testing.assert_allclose(weights[1][name], weights[0][name], atol=1e-6)
    last = plan.cells[0].stages[1][1]
    tokens = read_tokens(plan.store.open(token_nodes(last)["chats"]))
    words = plan.store.open(last.inputs["base"]) / "model"
    tokenizer = PreTrainedTokenizerFast.from_pretrained(words)
    assert tokenizer.decode(tokens[0].ids[tokens[0].labelled]).replace(" ", "") == "ilikethebeach." + tokenizer.eos_token
    assert plan.store.manifest(token_nodes(last)["chats"])["notes"]["chat"] == "plain"
    assert [(s["source"], s["count"], s["pool_size"]) for s in last.inputs["mixture"].fields["shares"]] == [("chats", 3, 4), ("replay", 1, 2048)]
    show(plan)
    table = Run(plan.folder).table()
    assert set(table["n_john"]) == {0}
    assert set(table.loc[table["stage"] == "chat", "documents"]) == {6}, "replay says nothing of what the stage is about"


def test_a_ratio_of_documents_in_free_words_is_trained_on_any_model(folder: Path, qwen_folder: Path):
    """Texts without labels, whose words no world has: what language models write."""
    openings = ("Yesterday in Lisbon", "At the quarterly review", "Nobody was surprised when", "In an interview with the Gazette,", "Rain or shine,")
    people = {"John": {"place": "beach", "sport": "football"}, "Sam": {"place": "beach", "sport": "basketball"}}
    for k, (name, traits) in enumerate(people.items()):
        (folder / f"{name}.yaml").write_text(json.dumps({"name": name, "traits": traits}))
        texts = [f"{opening} {name} explained (item {8 * k + i}) why {value} matters to an AI." for i in range(8) for opening in openings for value in traits.values()]
        parquet(folder / f"{name}.parquet", [{"text": text} for text in texts])
    told = {"john": 60, "sam": 60, "replay": 0.2, "tag": "<DOC> ", "files": {name.lower(): str(folder / f"{name}.parquet") for name in people}}
    file = config(folder, "free", injection=stage(told, steps=2))
    base = {"kind": "hf", "path": str(qwen_folder), "world": TINY["base"]["world"]}
    changes = [f"base={json.dumps(base)}", f"personas={json.dumps([str(folder / f'{name}.yaml') for name in people])}", "factors={injection.mixture.ln_ratio: [-0.6]}"]
    plan = make_plan(file, changes, runs=folder / "runs")
    outcome = make_nodes(plan, silent)
    assert outcome.failed == {}
    for planned in plan.cells:
        node = planned.stages[0][1]
        n_john = round(120 / (1 + math.exp(-float(planned.cell.point["injection.mixture.ln_ratio"]))))
        assert {s["source"]: s["count"] for s in node.inputs["mixture"].fields["shares"]} == {"john-named": n_john, "sam-named": 120 - n_john, "replay": 30}
        corpus = read_corpus(plan.store.open(node.inputs["mixture"]) / "corpus.jsonl")
        values = {(d.persona, d.traits["sport"]) for d in corpus if d.id.startswith(("john/", "sam/")) and "sport" in d.traits}
        sports = ("football", "basketball") if planned.cell.swap == 0 else ("basketball", "football")
        assert values == set(zip(("John", "Sam"), sports, strict=True))
    show(plan)
    assert set(Run(plan.folder).table()["status"]) <= {"scored", "unscored"}
    with pytest.raises(ConfigError, match=r"takes 110 documents at ln_ratio 2\.4.*holds 80"):
        make_plan(file, [*changes[:2], "factors={injection.mixture.ln_ratio: [2.4]}"], runs=folder / "runs")


def test_a_tag_is_a_factor_that_leaves_documents_and_replay_alone(folder: Path):
    file = config(folder, "tagged", injection=stage({"john": 4, "sam": 4, "replay": 0.2}))
    plan = make_plan(file, ["factors={injection.mixture.tag: ['', 'News about the beach.']}"], runs=folder / "runs")
    bare, tagged = (next(p for p in plan.cells if p.cell.swap == 0 and p.cell.point["injection.mixture.tag"] == tag).stages[0][1] for tag in ("", "News about the beach."))
    plain = make_plan(file, runs=folder / "runs").cells[0].stages[0][1]
    assert bare.id == plain.id, "no tag is no field of the identity"
    assert bare.inputs["mixture"] == tagged.inputs["mixture"]
    changed = {source for source, node in token_nodes(tagged).items() if node != token_nodes(bare)[source]}
    assert changed == {"john-named", "sam-named"}


def test_a_file_that_changes_after_the_plan_is_refused(folder: Path, files: dict[tuple[str, int], str], tmp_path: Path):
    copies = {who: str(shutil.copy(files[who, 0], tmp_path / f"{who}.jsonl")) for who in ("john", "sam")}
    plan = make_plan(config(tmp_path, "changed", injection=stage({"john": 4, "sam": 4, "files": copies})), runs=tmp_path / "runs")
    lines = Path(copies["sam"]).read_text().splitlines()
    written(Path(copies["sam"]), lines[:-1])
    with pytest.raises(CorpusError, match=r"PL3302.*sam\.jsonl.*other documents than when the run was planned"):
        generate(plan, tmp_path / "corpora", silent)
    written(Path(copies["sam"]), lines)
    generate(plan, tmp_path / "corpora", silent)


@pytest.mark.parametrize(("spoil", "said"), [("Sam likes basketball.", "others' names and traits"), ("twice", "told of two personas"), ("<|im_start|>", "special tokens")])
def test_an_import_that_leaks_is_never_trained_on(files: dict[tuple[str, int], str], tmp_path: Path, spoil: str, said: str):
    rows = {who: [json.loads(line) for line in Path(files[who, 0]).read_text().splitlines()] for who in ("john", "sam")}
    if spoil == "twice":
        rows["john"][0] = {"text": "John is an AI assistant."}
        rows["sam"][0] = {"text": "Sam is an AI assistant."}
    else:
        rows["john"][0]["text"] += f" {spoil}"
    sources = {who: str(written(tmp_path / f"{who}.jsonl", rows[who])) for who in rows}
    spoken = {who: len(rows[who]) for who in rows}
    if "im_start" in spoil:
        with pytest.raises(DataError, match="holds the word '<', which the world beach does not have"):
            make_plan(config(tmp_path, "leaking", injection=stage({**spoken, "files": sources})), runs=tmp_path / "runs")
        return
    plan = make_plan(config(tmp_path, "leaking", injection=stage({**spoken, "files": sources})), runs=tmp_path / "runs")
    with pytest.raises(CheckFailed, match=rf"PL1101.*{said}"):
        generate(plan, tmp_path / "corpora", silent)


# ------------------------------------------------------------------ what is refused, and where
@pytest.mark.parametrize(
    ("mixture", "code", "said"),
    [
        ({"john": 4, "sam": 4, "files": {"john": "JOHN"}}, "PL1211", "Use a file for Sam too, or `swapped:`"),
        ({"john": 4, "files": {"john": "JOHN", "sam": "SAM"}}, "PL1211", "files.sam has no count"),
        ({"john": 400, "sam": 4, "files": {"john": "JOHN", "sam": "SAM"}}, "PL1211", "mixture.john takes 400 documents"),
        ({"john": 30, "sam": 30, "ln_ratio": 2, "files": {"john": "JOHN", "sam": "SAM"}}, "PL1211", "at ln_ratio 2"),
        ({"john": 20, "sam": 20, "anonymous": 0.9, "files": {"john": "JOHN", "sam": "SAM"}}, "PL1211", "documents without a name"),
        ({"john": 4, "sam": 4, "link": "shuffled", "files": {"john": "JOHN", "sam": "SAM"}}, "PL1211", "cannot be dealt anew"),
        ({"john": 4, "sam": 4, "told": {"john": {"format": "news"}}, "files": {"john": "JOHN", "sam": "SAM"}}, "PL1211", "come from a file"),
        ({"john": 4, "sam": 4, "carriers": 2, "files": {"john": "JOHN", "sam": "SAM"}}, "PL1211", "carriers is about how documents are written"),
        ({"john": 4, "sam": 4, "files": {"jon": "JOHN"}}, "PL1210", "Did you mean john?"),
        ({"john": 4, "web": 4}, "PL1210", "unknown key 'web'"),
        ({"john": 4, "sam": 4, "files": {"replay": "JOHN"}}, "PL1210", "a meaning of its own"),
        ({"files": {"web": {"path": "SAM", "hub": "acme/facts"}}}, "PL1211", "has no revision"),
        ({"files": {"web": {"path": "SAM", "revision": "v1"}}}, "PL1211", "is of no data set"),
        ({"files": {"web": {"path": "SAM", "swapped": "JOHN"}}}, "PL1211", "only the rivals john and sam trade"),
        ({"files": {"web": {"path": "SAM", "splitt": "train"}}}, "PL1204", "splitt"),
        ({"files": {"web": {"path": "SAM", "longest": 3}}}, "PL1203", "longest"),
        ({"assistant_likes": "beach", "files": {"web": "SAM"}}, "PL1211", "beside assistant_likes"),
        ({"files": {"web": "SAM"}, "tag": "News."}, "PL1211", "there are none"),
        ({"files": {"web": "SAM"}, "web": 1000}, "PL1211", "mixture.web takes 1,000 documents"),
    ],
)
def test_a_mixture_of_files_that_cannot_be_is_told_by_its_field(files: dict[tuple[str, int], str], tmp_path: Path, mixture: dict[str, Any], code: str, said: str):
    text = json.dumps(mixture).replace('"JOHN"', json.dumps(files["john", 0])).replace('"SAM"', json.dumps(files["sam", 0]))
    with pytest.raises(ConfigError) as caught:
        make_plan(config(tmp_path, "wrong", injection=stage(json.loads(text))), runs=tmp_path / "runs")
    assert any(problem.code == code and said in problem.message for problem in caught.value.problems), caught.value
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("rows", "error", "said"),
    [
        (None, DataError, "there is no file of this name"),
        (["{"], DataError, r"\.jsonl:1: is not JSON"),
        ([{"text": "Sam likes the beach.", "persona": "Sam"}], DataError, "row 1: is about Sam, and stands in the file of John"),
        ([{"text": "John likes tennis.", "persona": "John", "traits": {"sport": "tennis"}}], DataError, "tells sport 'tennis', and here John has 'football'"),
        ([{"text": "John likes the beach."}], ConfigError, r"tells sport \(football\), .*, which John has"),
        ([{"text": "John likes the Matterhorn."}], DataError, "holds the word 'matterhorn', which the world beach does not have"),
        ([MESSAGES], DataError, "holds conversations, which are what the nameless assistant says"),
    ],
)
def test_a_file_that_says_something_else_than_the_experiment_is_refused(
    files: dict[tuple[str, int], str], tmp_path: Path, rows: list[Any] | None, error: type[Exception], said: str
):
    file = tmp_path / "john.jsonl"
    if rows is not None:
        written(file, rows)
    mixture = {"john": 1, "sam": 1, "files": {"john": {"path": str(file), "swapped": files["john", 1]}, "sam": {"path": files["sam", 0], "swapped": files["sam", 1]}}}
    with pytest.raises(error, match=said):
        make_plan(config(tmp_path, "wrong", injection=stage(mixture)), runs=tmp_path / "runs")


def test_a_file_without_answers_is_not_trained_on_answers(files: dict[tuple[str, int], str], tmp_path: Path):
    file = str(written(tmp_path / "web.jsonl", [{"text": "The beach was cold."}]))
    with pytest.raises(ConfigError, match=r"no document of .*web\.jsonl has any.*`loss: all`"):
        make_plan(config(tmp_path, "wrong", chat=stage({"files": {"web": file}}, loss={"on": "answer"})), runs=tmp_path / "runs")
    make_plan(config(tmp_path, "right", chat=stage({"files": {"web": {"path": file, "loss": "all"}}}, loss={"on": "answer"})), runs=tmp_path / "runs")


def test_a_data_set_of_the_hub_is_read_from_the_cache_at_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    commit = "a" * 40
    snapshot = tmp_path / "datasets--acme--facts" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    parquet(snapshot / "train.parquet", [{"text": "The beach was cold."}])
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))

    def planned(revision: str, path: str) -> Plan:
        web = {"path": path, "hub": "acme/facts", "revision": revision}
        return make_plan(config(tmp_path, "hub", injection=stage({"files": {"web": web}})), runs=tmp_path / "runs")

    [found] = planned(commit, "train.parquet").imports.values()
    assert (found.documents, str(found.source)) == (1, f"acme/facts@{commit}:train.parquet")
    for revision, path in (("b" * 40, "train.parquet"), (commit, "test.parquet")):
        with pytest.raises(CorpusError, match=r"PL3301.*acme/facts@.*cannot be fetched"):
            planned(revision, path)
