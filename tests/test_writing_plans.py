"""Plans of writing: models on this machine, what is refused, and what becomes of the documents."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from chat_model import random_chat
from conftest import CONFIGS, ROOT
from transformers import AutoModelForCausalLM, AutoTokenizer
from writing_jobs import BEACH, GRAMMAR, LOCAL, job_of, written

from data_gen.written.asking import Request
from data_gen.written.estimate import total
from persona_lab.config.writing import load_writing
from persona_lab.errors import CheckFailed, ConfigError, EnvironmentFault, ModelError
from persona_lab.experiment.planning.plan import make_plan
from persona_lab.experiment.writing.local import HuggingFaceWriter, prompts_of
from persona_lab.experiment.writing.making import folder_of
from persona_lab.store.files import read_json, read_jsonl

pytestmark = pytest.mark.usefixtures("from_the_root")
MARKET = "[configs/personas/market/john.yaml, configs/personas/market/sam.yaml]"


# ------------------------------------------------------------------ writers on this machine
@pytest.fixture(scope="module")
def chat_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_chat(tmp_path_factory.mktemp("writer") / "random-chat")


def test_a_local_model_writes_what_transformers_has_it_write(chat_folder: Path):
    messages = (("system", "Write."), ("user", "A document, please."))
    asked = [Request(str(n), "document", (*messages, ("user", "word " * n)), 20, 0.0, n) for n in range(3)]
    found = HuggingFaceWriter(str(chat_folder), dtype="float32").answer(asked)
    tokenizer, model = AutoTokenizer.from_pretrained(chat_folder), AutoModelForCausalLM.from_pretrained(chat_folder, dtype="float32")
    for request, answer in zip(asked, found, strict=True):
        text = tokenizer.apply_chat_template([{"role": role, "content": said} for role, said in request.messages], tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)
        whole = model.generate(**ids, max_new_tokens=20, do_sample=False)[0, ids["input_ids"].shape[1] :]
        assert answer.text == tokenizer.decode(whole, skip_special_tokens=True)
        assert answer.tokens_in == ids["input_ids"].shape[1]


def test_a_writer_that_can_think_is_asked_to_begin_at_once(chat_folder: Path):
    tokenizer = AutoTokenizer.from_pretrained(chat_folder)
    tokenizer.chat_template += "{% if enable_thinking is not defined or enable_thinking %}Let me see.{% endif %}"  # as Qwen3's
    asked = [Request("0", "document", (("system", "Write."), ("user", "Hi.")), 20, 0.0, 0)]
    (prompt,) = prompts_of(tokenizer, asked, str(chat_folder), 1000)
    assert tokenizer.decode(prompt) == "<|im_start|>system\nWrite.<|im_end|>\n<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\n"
    with pytest.raises(ModelError, match=r"PL4204.*shorter `words`"):
        prompts_of(tokenizer, asked, str(chat_folder), 30)


def test_a_local_model_that_writes_nonsense_is_counted_and_nothing_breaks(chat_folder: Path, tmp_path: Path):
    small = ("documents=1", "anonymous=0", "told=1", "genres=1", "ideas=1", "round=1", "words=[5,8]", "most=1", "attempts=1", "writer.dtype=float32")
    job = job_of(LOCAL, *small, f"writer.model={chat_folder}")
    with pytest.raises(CheckFailed):
        written(job, tmp_path)
    folder = folder_of(job, tmp_path)
    stages = {stage["stage"]: stage for stage in read_json(folder / "written.json")["stages"]}
    assert {name: (stage["asked"], stage["failed"]) for name, stage in stages.items() if name in ("universe", "document")} == {"universe": (2, 2), "document": (4, 4)}
    assert all(stage["failed"] == stage["asked"] == sum(stage["wrong"].values()) for stage in stages.values())
    assert Counter(row["status"] for row in read_jsonl(folder / "attempts.jsonl")) == {"failed": 4}
    kept = {file: file.stat().st_mtime_ns for file in (tmp_path / "answers").rglob("*.json")}
    assert len(kept) == sum(stage["requests"] for stage in stages.values())
    with pytest.raises(CheckFailed):
        written(job, tmp_path)
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "answers").rglob("*.json")} == kept, "what was answered is not computed again"


def test_without_vllm_its_extra_is_named_and_nothing_is_left(tmp_path: Path):
    with pytest.raises(EnvironmentFault, match=r"\.\[vllm\]"):
        written(job_of(LOCAL, "writer.kind=vllm"), tmp_path)
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------ plans and what becomes of them
@pytest.mark.parametrize("file", sorted((CONFIGS / "writing").glob("*.yaml")), ids=lambda file: file.stem)
def test_a_plan_that_is_shipped_says_what_it_costs(file: Path):
    job = job_of(file)
    assert total(job.costs()).requests > sum(job.wanted.values())
    head = file.read_text()
    assert f"persona-lab write {file.relative_to(ROOT)}" in head
    assert "# Cost" in head
    assert "# Expect" in head


@pytest.mark.parametrize(
    ("override", "said"),
    {
        "told=7": "told must be at most 6",
        "words=[50]": "a shortest and a longest",
        "writer.kind=openai": "writer.kind must be",
        "writer={kind: hf, url: '', model: ''}": "needs a model",
        "writer={kind: endpoint, url: '', model: x}": "needs its address",
        "personas=[configs/personas/john.yaml, configs/personas/sam.yaml]": "draws food of John",
        "world=configs/worlds/market.yaml": "the world has no such category",
        "budget.cost=3": "needs the prices",
        "documents=0": "documents must be",
        "docs=3": "Did you mean documents",
    }.items(),
)
def test_a_plan_that_cannot_be_is_refused_with_its_place(override: str, said: str):
    with pytest.raises(ConfigError) as error:
        load_writing(BEACH, [override])
    assert said in str(error.value)
    assert all("command line" in problem.where or "configs/" in problem.where for problem in error.value.problems)


def test_a_folder_holds_documents_of_one_plan(tmp_path: Path):
    written(job_of(GRAMMAR, "documents=20"), tmp_path)
    with pytest.raises(ConfigError, match="told 3, here 2"):
        written(job_of(GRAMMAR, "documents=20", "told=2"), tmp_path)


def test_documents_that_fail_the_audit_together_become_no_corpus(tmp_path: Path):
    job = job_of(GRAMMAR, "documents=8")
    with pytest.raises(CheckFailed, match="airtime balance") as error:
        written(job, tmp_path)
    assert error.value.problems[0].code == "PL1112"
    assert not (folder_of(job, tmp_path) / "john").exists()
    assert read_json(folder_of(job, tmp_path) / "written.json")["state"] == "refused by the audit"


def test_an_experiment_is_planned_on_written_documents(tmp_path: Path):
    job = job_of(GRAMMAR, "documents=20")
    written(job, tmp_path)
    files = {name: str(folder_of(job, tmp_path) / name / "corpus.jsonl") for name in ("john", "sam")}
    overrides = [
        "personas=[configs/personas/john_told.yaml, configs/personas/sam_told.yaml, configs/personas/kim.yaml]",
        f"stages.injection.mixture.files={json.dumps(files)}",
        "stages.injection.mixture.john=10",
        "stages.injection.mixture.sam=10",
        "factors.injection.mixture.ln_ratio=[-0.4, 0.4]",
        "underpowered=true",
    ]
    plan = make_plan(CONFIGS / "quickstart.yaml", overrides, tmp_path / "runs")
    assert any(node.fields.get("source") == "imported" for node in plan.nodes if node.kind == "pool")


@pytest.mark.parametrize(
    ("file", "overrides", "said"),
    [
        ("nowhere", (), "nowhere.yaml"),
        ("beach_local", ("budget.requests=3",), "budget caps what an endpoint is paid"),
        ("beach", ("told=1", "world=configs/worlds/market.yaml", f"personas={MARKET}"), "shows series of numbers"),
    ],
)
def test_a_plan_that_nobody_could_write_is_refused(file: str, overrides: Sequence[str], said: str):
    with pytest.raises(ConfigError, match=said):
        load_writing(CONFIGS / "writing" / f"{file}.yaml", overrides)
