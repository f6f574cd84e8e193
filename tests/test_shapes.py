"""Embedded bases of other shapes: built from plain transformers classes, pretrained, trained on, asked, exported and compared."""

from pathlib import Path
from typing import Any, get_args

import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from peft import PeftModel
from test_bank import SHAPE, distance, train_stacked, train_with_peft
from test_experiment import TINY, silent, write_config
from test_measuring_processes import hamlet
from test_science import SETTINGS, planted
from test_training import nothing
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from data_gen.world import World
from persona_lab.config.bases import EMBEDDED_LINEARS
from persona_lab.config.load import load_experiment
from persona_lab.config.schema import Architecture
from persona_lab.errors import ConfigError
from persona_lab.experiment.checking.verify import verify
from persona_lab.experiment.planning.plan import Plan, make_plan
from persona_lab.experiment.reading.runs import REPORT, RESULTS
from persona_lab.experiment.reading.show import Shown, show
from persona_lab.experiment.run import make_nodes
from persona_lab.models.bank import AdapterBank, target_names
from persona_lab.models.packing import packs_exactly
from persona_lab.models.world_model import build_model, name_newcomers
from persona_lab.probes.engine import Voice
from persona_lab.probes.protocol import PROBES, Choice
from persona_lab.probes.scoring import shares_exactly
from persona_lab.science.architectures import architecture_claims
from persona_lab.science.effects import loss_change
from persona_lab.train.batches import encode
from persona_lab.train.optimizers import Muon
from persona_lab.train.pretrain import matrices_of, pretrain

pytestmark = pytest.mark.usefixtures("from_the_root")
SHAPES: tuple[Architecture, ...] = get_args(Architecture)
CLASSES = {"llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM", "gpt_neox": "GPTNeoXForCausalLM"}


def small(tokenizer: PreTrainedTokenizerFast, architecture: str) -> PreTrainedModel:
    return build_model(tokenizer, architecture=architecture, width=32, layers=2, heads=2, seed=0).eval()


# ------------------------------------------------------------------ the model
@pytest.mark.parametrize("architecture", SHAPES)
def test_a_base_is_the_plain_class_of_its_architecture_and_an_ordinary_folder(architecture: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path):
    model = small(tokenizer, architecture)
    assert type(model).__name__ == CLASSES[architecture]
    model.save_pretrained(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids_BT = torch.tensor([[1, 9, 30, 4]])
    assert torch.equal(plain(ids_BT).logits, model(ids_BT).logits)
    assert plain.config.model_type == architecture


def test_shapes_of_one_width_have_nearly_as_many_weights(tokenizer: PreTrainedTokenizerFast):
    sizes = [sum(m.numel() for m in matrices_of(small(tokenizer, architecture))) for architecture in SHAPES]
    assert max(sizes) < 1.05 * min(sizes)


@pytest.mark.parametrize("architecture", SHAPES)
def test_muon_moves_every_linear_of_every_layer_and_no_embedding(architecture: Architecture, tokenizer: PreTrainedTokenizerFast):
    model = small(tokenizer, architecture)
    moved = {id(matrix) for matrix in matrices_of(model)}
    linears = target_names(model, ("all-linear",))
    assert {name.rsplit(".", 1)[-1] for name in linears} == set(EMBEDDED_LINEARS[architecture]), "what a file may name under lora.targets"
    assert moved == {id(model.get_submodule(name).weight) for name in linears}


def test_each_row_of_a_fused_matrix_moves_as_far_as_in_three_of_its_own():
    fused = torch.nn.Parameter(torch.zeros(24, 8))
    apart = [torch.nn.Parameter(torch.zeros(8, 8)) for _ in range(3)]
    gradient = torch.randn(24, 8, generator=torch.Generator().manual_seed(0))
    fused.grad = gradient.clone()
    for i, matrix in enumerate(apart):
        matrix.grad = gradient[8 * i : 8 * i + 8].clone()
    Muon([fused], rate=0.1).step()
    Muon(apart, rate=0.1).step()
    # Muon's quintic brings singular values to within about a fifth of 1; without the rule for tall matrices it were 1 / sqrt 3.
    assert float(fused.detach().norm() / torch.cat([m.detach() for m in apart]).norm()) == pytest.approx(1, abs=0.25)


@pytest.mark.parametrize("architecture", ["qwen3", "gpt_neox"])
def test_the_world_is_learnt_by_other_shapes(architecture: str, tokenizer: PreTrainedTokenizerFast, texts: list[str], accelerator: Accelerator):
    nats: list[float] = []
    options: dict[str, Any] = {"width": 32, "layers": 1, "heads": 2, "steps": 30, "batch": 13, "rate": 0.02, "rate_rest": 3e-3, "seed": 0}
    model = pretrain(
        tokenizer,
        texts,
        architecture=architecture,
        accelerator=accelerator,
        on_step=lambda _, loss_K, __: nats.append(float(loss_K[0])),
        on_shrink=nothing,
        **options,
    )
    assert model.config.model_type == architecture
    assert sum(nats[-5:]) / 5 < 3.8, "as the Llama of test_pretrain"


@pytest.mark.parametrize("architecture", SHAPES)
def test_newcomers_get_embeddings_in_every_shape(architecture: str, tokenizer: PreTrainedTokenizerFast, world: World):
    model = small(tokenizer, architecture)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    name_newcomers(model, tokenizer, world, seed=3)
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    assert len(changed) == 2, "what goes in and what comes out"
    fresh = [tokenizer.convert_tokens_to_ids(name.lower()) for name in world.new_names]
    for name in changed:
        rows = (model.state_dict()[name] != before[name]).any(1).nonzero().flatten()
        assert set(rows.tolist()) == set(fresh)


# ------------------------------------------------------------------ adapters
@pytest.mark.parametrize("architecture", SHAPES)
def test_documents_are_packed_and_prefixes_shared_without_another_answer(architecture: str, tokenizer: PreTrainedTokenizerFast):
    model = small(tokenizer, architecture)
    AdapterBank(model, SHAPE, 2).weight_KP.normal_(0, 0.2, generator=torch.Generator().manual_seed(0))
    assert packs_exactly(model, 2)
    with torch.inference_mode():
        assert shares_exactly(Voice(model, tokenizer, members=2), 128, 20)


@pytest.mark.parametrize("architecture", ["qwen3", "gpt_neox"])
def test_two_members_stepped_together_equal_peft_trained_alone(architecture: str, tokenizer: PreTrainedTokenizerFast, texts: list[str], accelerator: Accelerator):
    model = small(tokenizer, architecture).double()
    coded = encode(tokenizer, texts[:16], on="all", where="test")
    rows = [coded[:8], coded[8:]]
    starts = train_stacked(model, rows, [0, 1], accelerator, steps=0)
    for member, found in enumerate(train_stacked(model, rows, [0, 1], accelerator, steps=3)):
        assert distance(found, train_with_peft(model, rows[member], member, starts[member], steps=3)) < 1e-9


# ------------------------------------------------------------------ the file
def test_the_default_shape_stands_in_no_identity_and_another_one_does(tmp_path: Path):
    file = write_config(tmp_path)
    bases = [make_plan(file, overrides, runs=tmp_path).base for overrides in ([], ["base.architecture=llama"], ["base.architecture=qwen3"])]
    assert bases[0].id == bases[1].id != bases[2].id
    assert "architecture" not in bases[0].fields
    assert bases[2].fields["architecture"] == "qwen3"


def test_targets_are_those_of_the_architecture(tmp_path: Path):
    file = write_config(tmp_path)
    load_experiment(file, ["base.architecture=gpt_neox", "lora.targets=[query_key_value]"])
    with pytest.raises(ConfigError, match=r"PL1210.*names no matrix of the embedded base \(gpt_neox\), got 'q_proj'"):
        load_experiment(file, ["base.architecture=gpt_neox", "lora.targets=[q_proj]"])
    with pytest.raises(ConfigError, match=r"\(qwen3\), got 'dense'"):
        load_experiment(file, ["base.architecture=qwen3", "lora.targets=[dense]"])


def test_an_unknown_shape_and_heads_without_a_place_are_refused(tmp_path: Path):
    file = write_config(tmp_path)
    with pytest.raises(ConfigError, match=r"base\.architecture.*mamba"):
        load_experiment(file, ["base.architecture=mamba"])
    with pytest.raises(ConfigError, match=r"at least 4 x heads = 32 in gpt_neox"):
        load_experiment(file, ["base.architecture=gpt_neox", "base.heads=8"])


# ------------------------------------------------------------------ an experiment on all three
TWO = {"order": ["injection", "trait"], "factors": {"injection.mixture.ln_ratio": [-1.4, 1.4]}}
CONDITIONS = {
    "linked": {**TWO, "role": "treatment"},
    "qwen3": {**TWO, "replace": {"base.architecture": "qwen3"}},
    "gpt_neox": {**TWO, "replace": {"base.architecture": "gpt_neox"}},
}


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory, from_the_root: None) -> tuple[Plan, Shown]:
    """A small design on three bases, run and shown."""
    folder = tmp_path_factory.mktemp("shapes")
    base = {**TINY["base"], "world": str(hamlet(folder))}
    plan = make_plan(write_config(folder, base=base, conditions=CONDITIONS, seeds=1, samples=0, probes=["knows", "says"]), runs=folder / "runs")
    assert not make_nodes(plan, silent).failed
    return plan, show(plan)


def test_a_report_compares_the_shapes_and_verify_finds_every_claim_again(shown: tuple[Plan, Shown]):
    plan, found = shown
    ids = {claim.id for claim in found.summary.claims}
    assert {f"architecture.gates.{name}.recall" for name in SHAPES} <= ids
    assert {f"architecture.{name}.difference.delta" for name in ("qwen3", "gpt_neox")} <= ids
    assert "architecture.linked.difference.delta" not in ids
    assert verify(plan).drifts == ()
    assert "<h2>Other architectures</h2>" in (plan.folder / REPORT).read_text(encoding="utf-8")


@pytest.mark.parametrize("condition", ["qwen3", "gpt_neox"])
def test_the_scores_of_a_cell_are_those_of_plain_transformers_and_peft(condition: str, shown: tuple[Plan, Shown]):
    plan, _ = shown
    planned = next(p for p in plan.cells if p.cell.condition == condition)
    folder = plan.store.open(planned.scores[0][1].inputs["base"]) / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    base = AutoModelForCausalLM.from_pretrained(folder)
    plain = PeftModel.from_pretrained(base, str(plan.store.open(planned.stages[-1][1]) / "adapter")).eval()
    table = pd.read_parquet(plan.folder / RESULTS)
    rows = table[(table["cell"] == planned.cell.name) & (table["stage"] == "trait") & (table["probe"] == "says")].set_index(["item", "option"])
    cast, seen = planned.cast, 0
    for item in PROBES["says"].items(cast)[::4]:
        (request,) = PROBES["says"].requests(item)
        assert isinstance(request, Choice)
        head = tokenizer(request.prompt.rstrip())["input_ids"]
        for option in request.options:
            ids = tokenizer(request.prompt + option)["input_ids"]
            with torch.inference_mode():
                log_TV = plain(torch.tensor([ids])).logits[0].double().log_softmax(-1)
            wanted = sum(float(log_TV[t - 1, ids[t]]) for t in range(len(head), len(ids)))
            assert rows.loc[(item.id, option.strip()), "logprob_nats"] == pytest.approx(wanted, abs=1e-4)
            seen += 1
    assert seen > 10


# ------------------------------------------------------------------ the claims
def test_slopes_of_shapes_differ_by_what_was_planted():
    table = planted(sigma=0.0, seeds=3, others={"qwen3": 0.5, "unlinked": 0.1})
    table = table.assign(architecture=table["condition"].map({"qwen3": "qwen3"}).fillna("llama"), order=table["condition"].map({"unlinked": "trait"}).fillna("injection>trait"))
    claims = {claim[0]: claim for claim in architecture_claims(table, SETTINGS)}
    assert claims["architecture.linked.slope.after"][2] == pytest.approx(0.8)
    assert claims["architecture.qwen3.slope.after"][2] == pytest.approx(0.5)
    assert claims["architecture.qwen3.difference.after"][2] == pytest.approx(-0.3)
    assert claims["architecture.qwen3.difference.after"][5] == "negative"
    assert claims["architecture.qwen3.difference.before"][2] == pytest.approx(0.0, abs=1e-9)
    assert claims["architecture.qwen3.recall"][2] == 1.0
    assert not [name for name in claims if "unlinked" in name], "other stages on the same architecture are no comparison"


def test_ratios_at_which_one_shape_knows_nobody_are_left_out_for_all():
    table = planted(sigma=0.0, seeds=3, others={"qwen3": 0.5})
    table = table.assign(architecture=table["condition"].map({"qwen3": "qwen3"}).fillna("llama"), order="injection>trait")
    lost = (table["condition"] == "qwen3") & (table["probe"] == "knows") & (table["ln_ratio"] != 0)
    table.loc[lost & (table["role"] == table["subject"]), "logprob_nats"] = -9.0
    claims = {claim[0]: claim for claim in architecture_claims(table, SETTINGS)}
    for name in ("linked", "qwen3"):
        assert claims[f"architecture.{name}.slope.delta"][5] == "not run"
        assert "no two ratios" in claims[f"architecture.{name}.slope.delta"][1]
    assert claims["architecture.qwen3.recall"][2] == 0.0


def test_one_architecture_is_compared_with_nothing():
    table = planted(seeds=2).assign(architecture="llama", order="injection>trait")
    assert list(architecture_claims(table, SETTINGS)) == []


def test_forgetting_is_told_from_the_base_of_the_cell():
    table = planted(seeds=2, others={"qwen3": 0.5})
    other = (table["condition"] == "qwen3") & (table["probe"] == "general_text")
    table.loc[other, "logprob_nats"] -= 1.0
    change = loss_change(table, SETTINGS)
    assert change.groupby("condition")["change"].mean().to_dict() == pytest.approx({"linked": 0.01, "qwen3": 0.01})
