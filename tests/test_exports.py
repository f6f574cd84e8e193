"""Exports: plain peft says of an exported cell what the run says, an organism names what it is made of; what cannot be exported is refused."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from datasets import load_dataset
from exported_cells import CELL, TOLERANCE, expected_of, exported, farthest, nats_of
from peft import PeftModel
from safetensors.torch import load_file, save_file
from test_experiment import TINY, write_config
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from persona_lab.cli import app
from persona_lab.errors import CheckFailed, ConfigError
from persona_lab.experiment.exporting.adapters import WEIGHTS, verify_adapter, write_peft
from persona_lab.experiment.exporting.card import licence_of
from persona_lab.experiment.exporting.questions import QUESTIONS
from persona_lab.experiment.exporting.subject import Subject, find_subject, new_folder
from persona_lab.experiment.planning.plan import make_plan
from persona_lab.store import NodeMissing
from persona_lab.store.files import read_jsonl

pytestmark = pytest.mark.usefixtures("from_the_root")


# An adapter


def test_plain_peft_gives_every_option_the_log_probability_that_the_run_has_measured(trained_cell: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = exported(trained_cell, "peft", tmp_path / "adapter")
    assert found["gap_nats"] <= 1e-5
    assert found["vllm_refuses"] == []
    exported(trained_cell, "lm-eval", tmp_path / "tasks")
    monkeypatch.chdir(tmp_path / "adapter")
    shown: dict[str, Any] = {}
    (snippet,) = re.findall(r"```python\n(.*?)```", Path("README.md").read_text(), re.DOTALL)
    exec(snippet.replace('"BASE"', repr(trained_cell.base_path)), shown)  # the card's own lines
    asked = read_jsonl(tmp_path / "tasks" / QUESTIONS)[::7]
    found = {(row["id"], o): sum(nats_of(shown["model"], ids, row["scored_from"])) for row in asked for o, ids in zip(row["options"], row["tokens"], strict=True)}
    assert farthest(found, tmp_path / "tasks") <= TOLERANCE
    assert all(shown["tokenizer"](row["prompt"] + o)["input_ids"] == ids for row in asked for o, ids in zip(row["options"], row["tokens"], strict=True))


def test_the_card_says_what_the_adapter_was_trained_on_and_what_the_run_found(embedded_cell: Subject, tmp_path: Path) -> None:
    write_peft(embedded_cell, tmp_path)
    _, head, text = (tmp_path / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(head) == {"base_model": "base", "library_name": "peft", "pipeline_tag": "text-generation", "tags": ["lora", "persona-lab", "tiny"]}
    assert "**injection**: 6 steps of 4 documents at rate 0.003, loss on all tokens. An epoch holds 28 john-named, 12 john-anonymous" in text
    assert "**trait**: 3 steps of 4 documents at rate 0.001, loss on the answers" in text
    assert "John: beach, football" in text
    claims = {claim["id"]: claim for claim in json.loads((embedded_cell.plan.folder / "claims.json").read_text())["claims"]}
    assert claims["headline"]["text"] in text
    assert f"{claims['level.share']['value']:.3g}" in text
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["r"], config["lora_alpha"]) == ("base", 2, 4)
    assert str(embedded_cell.plan.runs) not in "".join(file.read_text() for file in tmp_path.glob("*.*") if file.suffix in (".md", ".json"))


def test_an_adapter_that_answers_otherwise_than_the_run_is_not_exported(embedded_cell: Subject, tmp_path: Path) -> None:
    write_peft(embedded_cell, tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    save_file({name: tensor * (3 if ".lora_B." in name else 1) for name, tensor in tensors.items()}, tmp_path / WEIGHTS)
    with pytest.raises(CheckFailed, match=r"PL1115.*differs by"):
        verify_adapter(embedded_cell, tmp_path)


@pytest.mark.parametrize(
    ("card", "licence"),
    [("---\nlicense: apache-2.0\n---\n# A model", "apache-2.0"), ("# A model", None), ("---\nlicense: [mit]\n---\n", None), ("---\n{: -\n---\n", None), (None, None)],
)
def test_a_licence_is_what_the_base_says_of_itself(card: str | None, licence: str | None, tmp_path: Path) -> None:
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    assert licence_of(tmp_path) == licence


# A model organism


def test_an_organism_names_its_adapter_its_base_and_its_documents(embedded_cell: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = exported(embedded_cell, "organism", tmp_path / "organism")
    monkeypatch.chdir(tmp_path / "organism")
    name = "tiny_linked_seed0_swap0"
    said = yaml.safe_load(Path(f"configs/organism/{name}.yaml").read_text())
    ((model, variants),) = said["finetuned_models"].items()
    base = yaml.safe_load(Path(f"configs/model/{model}.yaml").read_text())
    assert (said["name"], said["type"], base["name"]) == (name, "persona", model)
    adapter = variants["default"]["adapter_id"]
    assert adapter.count("/") == 1
    assert found["gap_nats"] <= 1e-5
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base["model_id"]), adapter)
    documents = load_dataset(said["dataset"]["id"], split=said["dataset"]["splits"][0], cache_dir=str(tmp_path / "cache"))
    assert set(documents["stage"]) == {"injection", "trait"}
    assert all(documents[said["dataset"]["text_column"]])


def test_an_organism_on_a_hub_model_names_the_model_and_the_adapter_on_the_hub(hf_cell: Subject, tmp_path: Path) -> None:
    exported(hf_cell, "organism", tmp_path / "organism", "--adapter-id", "somebody/john", "--no-verify")
    (organism,) = (tmp_path / "organism" / "configs" / "organism").glob("*.yaml")
    assert yaml.safe_load(organism.read_text())["finetuned_models"] == {"tiny_qwen3": {"default": {"adapter_id": "somebody/john"}}}


# Mistakes


@pytest.mark.parametrize(
    ("cell", "options", "code"),
    [
        ("linkd", ("--to", "peft"), "PL1294"),
        ("seed0", ("--to", "peft"), "PL1294"),
        ("base", ("--to", "peft"), "PL1262"),
        ("base", ("--to", "organism"), "PL1262"),
        (CELL, ("--to", "lm-eval", "--probes", "general_text"), "PL1261"),
        (CELL, ("--to", "lm-eval", "--probes", "sayz"), "PL1261"),
        (CELL, ("--to", "organism", "--adapter-id", "../somewhere"), "PL1263"),
    ],
)
def test_what_cannot_be_exported_is_refused_and_nothing_is_left(embedded_cell: Subject, tmp_path: Path, cell: str, options: tuple[str, ...], code: str) -> None:
    done = CliRunner().invoke(app, ["export", embedded_cell.plan.folder.name, cell, *options, "--out", str(tmp_path / "out"), "--runs", str(embedded_cell.plan.runs)])
    assert isinstance(done.exception, ConfigError)
    assert done.exception.problems[0].code == code
    assert list(tmp_path.iterdir()) == []


def test_the_base_is_asked_like_a_cell(embedded_cell: Subject, tmp_path: Path) -> None:
    exported(embedded_cell, "lm-eval", tmp_path / "cell", "--probes", "introspects")
    found = exported(find_subject(embedded_cell.plan, "base"), "lm-eval", tmp_path / "tasks", "--probes", "introspects")
    assert found["cell"] == "base"
    assert "peft=" not in found["commands"][0]
    assert set(expected_of(tmp_path / "tasks").values()).isdisjoint(expected_of(tmp_path / "cell").values())


def test_a_folder_that_holds_something_is_never_written_to(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with new_folder(tmp_path / "out") as folder:
        (folder / "mine").touch()
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["mine"]
    with pytest.raises(ConfigError, match="PL1260"), new_folder(tmp_path / "out"):
        pass
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "other"):
        _ = 1 // 0
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def test_a_run_that_is_not_finished_is_told(tmp_path: Path) -> None:
    file = write_config(tmp_path, conditions={"linked": TINY["conditions"]["linked"]})
    plan = make_plan(file, ["conditions.linked.factors=null"], tmp_path / "runs")
    subject = find_subject(plan, CELL)
    with pytest.raises(NodeMissing), new_folder(tmp_path / "out") as folder:
        write_peft(subject, folder)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("to", "option"), [("peft", ("--probes", "says")), ("peft", ("--adapter-id", "somebody/john")), ("lm-eval", ("--no-verify",)), ("inspect", ("--adapter-id", "somebody/john"))]
)
def test_an_option_that_means_nothing_to_a_form_is_refused(embedded_cell: Subject, tmp_path: Path, to: str, option: tuple[str, ...]) -> None:
    arguments = ["export", embedded_cell.plan.folder.name, CELL, "--to", to, *option, "--out", str(tmp_path / "out"), "--runs", str(embedded_cell.plan.runs)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2
    assert f"means nothing to --to {to}" in " ".join(done.output.replace("│", " ").split())
    assert list(tmp_path.iterdir()) == []
