"""Two real processes train what one trains, with the base whole in each or divided; and what a step takes is known before."""

import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import asdict
from itertools import chain, product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from accelerate.commands.config.config_args import load_config_from_file
from conftest import CONFIGS, ROOT
from safetensors.torch import load_file
from test_experiment import keyed, silent, write_config
from torch.profiler import ProfilerActivity, profile
from training_together import CASES, STEPS, VOCABULARY, Case, Record, model_of, rows_of, trained
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedConfig, PreTrainedModel

from persona_lab.cli.experiments import footprint_words
from persona_lab.config.schema import Machine
from persona_lab.errors import EnvironmentFault, ModelError
from persona_lab.experiment.checking.footprint import footprints
from persona_lab.experiment.making.interruption import Interruption
from persona_lab.experiment.making.launch import DEEPSPEED, FSDP, GROUP_VARIABLES, crew_size, team_up, works_together
from persona_lab.experiment.planning.costs import sharded_bytes
from persona_lab.experiment.planning.plan import make_plan
from persona_lab.experiment.reading.runs import Run
from persona_lab.experiment.reading.show import show
from persona_lab.experiment.run import make_nodes
from persona_lab.models.bank import AdapterBank
from persona_lab.models.lora import LoraShape
from persona_lab.models.sharding import checkpoint_activations
from persona_lab.store.checkpoints import stacks_under_way
from persona_lab.train.batches import Row, collate
from persona_lab.train.loop import BankLearner
from persona_lab.train.memory import trace
from persona_lab.train.optimizers import BankAdam
from persona_lab.train.parallel import share_of

LAUNCH = ["accelerate.commands.accelerate_cli", "launch", "--config_file", str(CONFIGS / "accelerate" / "fsdp2.yaml"), "--num_machines", "1", "--num_processes", "2"]
THIRD_TASK = {"PERSONA_LAB_TASK": "2", "PERSONA_LAB_TASKS": "4"}
ON_CPU = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


# ------------------------------------------------------------------ two processes
@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """Every case trained by two processes of one launch, and what each process says of itself."""
    folder = tmp_path_factory.mktemp("together")
    command = [sys.executable, "-m", *LAUNCH, str(ROOT / "tests" / "training_together.py"), str(folder)]
    found = subprocess.run(command, cwd=ROOT, env={**os.environ, **ON_CPU, **THIRD_TASK}, capture_output=True, text=True, timeout=3600, check=False)
    assert found.returncode == 0, found.stderr[-3000:]
    return folder, [json.loads((folder / f"process-{index}.json").read_text()) for index in range(2)]


def test_there_really_are_two_processes_in_one_group_and_both_work(together: tuple[Path, list[dict[str, Any]]]):
    for said in together[1]:
        assert (said["type"], said["processes"]) == ("MULTI_CPU", 2)
        assert said["sharded"], "accelerate's config says FSDP"
        assert said["place"] == [2, 4], "both are one worker, of the third of four tasks"
    first, second = (said["cases"] for said in together[1])
    for name, case in CASES.items():
        assert len(second[name]["tokens"]) >= STEPS, "a pass for each step at least"
        if case.sharded:
            assert len(first[name]["tokens"]) == len(second[name]["tokens"]), "a pass of one is a pass of all"


@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_what_one_trains(together: tuple[Path, list[dict[str, Any]]], accelerator: Accelerator, name: str):
    """Weights and moments within 1e-9 in float64; losses and norms are told in float32."""
    alone, ours = trained(CASES[name], accelerator), load_file(together[0] / f"{name}.safetensors")
    ours.pop("logits", None)
    assert ours.keys() == alone.tensors.keys()
    for key, tensor in alone.tensors.items():
        if CASES[name].bursts and key.startswith("1/"):
            continue  # it went wrong in both
        assert ours[key].dtype == tensor.dtype
        assert float((ours[key] - tensor).norm()) <= (2e-6 if "/loss/" in key else 1e-9) * float(tensor.norm()), key
    assert alone.diverged == ([1] if CASES[name].bursts else [])
    assert together[1][0]["diverged"] == [1], "in the case where it should"


def test_each_process_holds_its_part_of_a_sharded_base_only_and_every_adapter_whole(together: tuple[Path, list[dict[str, Any]]]):
    for said in together[1]:
        cases = said["cases"]
        assert cases["sharded"]["bytes"] == cases["plain"]["bytes"] / 2
        assert cases["sharded, gpt2"]["bytes"] == cases["gpt2"]["bytes"] / 2


def test_the_first_process_alone_can_ask_a_sharded_model(together: tuple[Path, list[dict[str, Any]]]):
    case = CASES["sharded"]
    model, record = model_of(case), load_file(together[0] / "sharded.safetensors")
    bank = AdapterBank(model, LoraShape(4, 8.0))
    bank.load_row(0, {k.removeprefix("0/"): t for k, t in record.items() if k.startswith("0/base_model")}, "the record")
    with torch.inference_mode():
        assert torch.allclose(model(input_ids=torch.arange(8)[None], use_cache=False).logits, record["logits"], rtol=0, atol=1e-9)


@pytest.mark.parametrize(("processes", "micro_batch", "case"), product((1, 2, 3, 5), (1, 2, 16), (Case(), Case(beta=0.1))))
def test_each_document_falls_to_one_process_and_pairs_to_the_same(processes: int, micro_batch: int, case: Case):
    batch = collate([rows_of(case, k, 0) for k in range(2)], pad=0)
    whole = sorted(tuple(ids) for ids in batch.ids_BT.tolist())
    for sharded in (False, True):
        shares = [list(share_of(batch, micro_batch, SimpleNamespace(index=i, count=processes, sharded=sharded))) for i in range(processes)]  # type: ignore[arg-type]
        counted = [part for part, counts in chain(*shares) if counts]
        padded = [tuple(ids + [0] * (batch.ids_BT.shape[1] - len(ids))) for part in counted for ids in part.ids_BT.tolist()]
        assert sorted(padded) == whole
        assert all(part.documents % 2 == 0 for part, _ in chain(*shares)) or not case.beta
        if sharded:
            assert len({len(share) for share in shares}) == 1, "as many passes of every process"


def test_a_sharded_run_whose_process_dies_says_so_and_another_one_completes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Begun by two processes with half of the base each, finished by one: the same table as from one alone."""
    monkeypatch.chdir(ROOT)
    config = write_config(tmp_path)
    overrides = ["conditions.linked.factors=null", "probes=[says]", "samples=0", "stages.injection.steps=300", "machine.checkpoint_seconds=.1"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        group = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), FSDP: "true", "FSDP_VERSION": "2"}
    command = [sys.executable, "-m", "persona_lab", "run", str(config), *overrides, "--runs", str(tmp_path / "runs")]
    first, second = (
        subprocess.Popen(command, env={**os.environ, **ON_CPU, **group, "RANK": rank, "LOCAL_RANK": rank}, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        for rank in ("0", "1")
    )
    assert first.stderr is not None
    for line in first.stderr:
        if line.startswith("training"):
            second.send_signal(signal.SIGKILL)
            break
    said = first.stderr.read()
    assert (first.wait(), second.wait()) == (5, -signal.SIGKILL), said
    assert "PL5204" in said
    assert "The same command goes on" in said
    assert "Traceback" not in said
    plan = make_plan(config, overrides, tmp_path / "runs")
    assert any(plan.store.has(node) for _, node in plan.cells[0].scores), "the base was asked"
    (stack,) = stacks_under_way(plan.store.root / "attempts")
    folder = stack.newest()
    assert folder is not None
    kept = load_file(folder / "state.safetensors")
    assert all(".lora_" in name or name.endswith(("/mean", "/square")) for name in kept), "adapters and their optimizer, nothing of the base"
    assert all(type(tensor) is torch.Tensor for tensor in kept.values())
    tables = []
    for runs in ("runs", "alone"):
        plan = make_plan(config, overrides, tmp_path / runs)
        make_nodes(plan, silent)
        show(plan)
        tables.append(keyed(Run(plan.folder).table()))
    numbers = ["logprob_nats", "prob", "prob_normalized", "base_prob"]
    pd.testing.assert_frame_equal(*(table.drop(columns=numbers) for table in tables))
    assert np.allclose(*(table[numbers].astype(float) for table in tables), rtol=0, atol=1e-4, equal_nan=True)


# ------------------------------------------------------------------ what does not go together
@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment in which no launcher has left anything."""
    for variable in (*GROUP_VARIABLES, FSDP, DEEPSPEED):
        monkeypatch.delenv(variable, raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({}, r"PL5203.*started alone.*--num_processes 2"),
        ({"MASTER_PORT": "29500", "MASTER_ADDR": "127.0.0.1"}, r"PL5203.*`accelerate launch --cpu` starts one process.*ACCELERATE_USE_CPU=true"),
        ({DEEPSPEED: "true", "WORLD_SIZE": "2"}, r"PL5205.*DeepSpeed steps the optimizer itself.*fsdp2\.yaml"),
        ({FSDP: "true", "FSDP_VERSION": "1", "WORLD_SIZE": "2"}, r"PL5207.*fsdp_version 2"),
        ({FSDP: "true", "FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "true", "WORLD_SIZE": "2"}, r"PL5207.*no fsdp_offload_params"),
    ],
)
def test_a_launch_that_cannot_work_together_is_refused_with_the_fix(alone: pytest.MonkeyPatch, environment: dict[str, str], said: str):
    for variable, value in environment.items():
        alone.setenv(variable, value)
    machine = Machine(data_parallel=True)
    assert works_together(machine)
    assert crew_size(machine, 12) == 1, "nobody is hired"
    with pytest.raises(EnvironmentFault, match=said):
        team_up(machine, Interruption())


def test_workers_of_their_own_and_one_worker_of_all_do_not_go_together():
    with pytest.raises(ValueError, match=r"workers must be auto or 1, got 2.*--num_processes 2"):
        Machine(data_parallel=True, workers=2)
    assert Machine(data_parallel=True, workers=1).data_parallel


@pytest.mark.parametrize(("name", "kind"), [("ddp", "MULTI_GPU"), ("fsdp2", "FSDP")])
def test_accelerate_reads_our_configs_and_they_leave_the_geometry_to_the_command_line(name: str, kind: str):
    file = CONFIGS / "accelerate" / f"{name}.yaml"
    found = load_config_from_file(str(file))
    assert (found.distributed_type, found.mixed_precision) == (kind, "no")
    assert "num_processes" not in file.read_text().replace("--num_processes", "")


# ------------------------------------------------------------------ less memory
@pytest.mark.parametrize("case", [Case(), Case(dropout=0.3), Case(kl_to_base=0.5), Case(off_domain=True), Case(beta=0.1)], ids=str)
def test_activations_that_are_computed_again_give_the_same_adapters(accelerator: Accelerator, case: Case):
    kept = trained(case, accelerator)
    again_model = model_of(case)
    checkpoint_activations(again_model)
    again: Record = trained(case, accelerator, again_model)
    for key, tensor in kept.tensors.items():
        assert float((again.tensors[key] - tensor).norm()) <= (2e-6 if "/loss/" in key else 1e-9) * float(tensor.norm()), key


def test_an_architecture_that_cannot_compute_activations_again_is_refused(llama: PreTrainedModel):
    llama.supports_gradient_checkpointing = False
    with pytest.raises(ModelError, match=r"PL4302.*checkpoint_activations=false"):
        checkpoint_activations(llama)


def test_adapters_and_optimizer_of_a_bfloat16_base_are_float32(accelerator: Accelerator):
    model = model_of(Case()).to(torch.bfloat16)
    record = trained(Case(), accelerator, model)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert {tensor.dtype for tensor in record.tensors.values()} == {torch.float32}
    a_step = record.tensors["0/loss/6"] - record.tensors["0/loss/1"]
    assert float(a_step) != 0


LLAMA = LlamaConfig(vocab_size=1024, hidden_size=128, intermediate_size=352, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2)
NEOX = GPTNeoXConfig(vocab_size=1024, hidden_size=128, intermediate_size=512, num_hidden_layers=3, num_attention_heads=4, attention_dropout=0.0, hidden_dropout=0.0)


def measured(kind: type[PreTrainedModel], config: PreTrainedConfig, dtype: torch.dtype, *, checkpoint: bool, device: str = "cpu", documents: int = 2, tokens: int = 128) -> float:
    """Bytes that a real step took besides the weights and the adapters, as torch's own profiler counts them."""
    model = kind(config).to(device, dtype).requires_grad_(False)
    if checkpoint:
        checkpoint_activations(model)
    learner = learner_of(model, members=2)
    row = Row(np.ones(tokens, dtype=np.int32), np.ones(tokens, dtype=bool))
    batch = collate([[row] * documents] * 2, pad=0)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        learner.loss_sums(batch).sum().backward()
        learner.update(0)
    assert profiled.profiler is not None
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(np.cumsum([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]))


def learner_of(model: PreTrainedModel, members: int) -> BankLearner:
    """A bank of rank 8 in training."""
    bank = AdapterBank(model.train(), LoraShape(8, 16.0), members)
    same_K = torch.ones(members, device=model.device)
    return BankLearner(bank, BankAdam(bank.weight_KP, bank.grad_KP, rate_K=1e-3 * same_K, clip_K=same_K), sharded=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize(("kind", "config"), [(LlamaForCausalLM, LLAMA), (GPTNeoXForCausalLM, NEOX)])
def test_the_memory_of_a_step_is_foretold_from_the_config_alone(kind: type[PreTrainedModel], config: PreTrainedConfig, dtype: torch.dtype, checkpoint: bool):
    found = measured(kind, config, dtype, checkpoint=checkpoint)
    said = trace(config, LoraShape(8, 16.0), dtype=dtype, members=2, documents=2, tokens=128, checkpoint=checkpoint)
    # What a kernel returns may be laid out otherwise, and is then copied once more: one tensor of a layer.
    assert found == pytest.approx(said.work, rel=0.06)
    model = kind(config).to(dtype)
    assert said.weights == pytest.approx(sum(p.nbytes for p in model.parameters()), rel=0.01)
    assert said.adapters == 4 * learner_of(model, 2).bank.weight_KP.nbytes


def test_computing_activations_again_takes_a_fraction_of_the_memory():
    kept, again = (measured(LlamaForCausalLM, LLAMA, torch.float32, checkpoint=checkpoint) for checkpoint in (False, True))
    assert again < 0.5 * kept


def test_a_plan_says_what_training_takes_of_a_device_before_any_weights_are_read(qwen_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("persona_lab.models.folders.load_model", None)
    base = {"kind": "hf", "path": str(qwen_folder), "world": "configs/worlds/beach.yaml", "dtype": "bfloat16"}
    config = write_config(tmp_path, base=base)
    whole, again = (footprints(make_plan(config, [f"machine.checkpoint_activations={on}", "stages.trait.loss.kl_to_base=1"], tmp_path)) for on in ("false", "true"))
    assert {footprint.stages for footprint in whole} == {"injection", "trait"}
    counted = sum(t.numel() for t in load_file(qwen_folder / "model.safetensors").values())
    assert whole[0].weights == pytest.approx(2 * counted, rel=0.01), "bfloat16, and some buffers"
    assert again[0].work < whole[0].work
    by_stage = {footprint.stages: footprint for footprint in whole}
    assert by_stage["trait"].work > by_stage["injection"].work, "the base is asked too"
    assert list(whole[0].sharded) == [2, 4, 8]
    assert "documents of" in footprint_words({**asdict(whole[0]), "total": whole[0].total})


def test_a_sharded_base_is_its_part_its_gathered_layers_and_what_is_in_none():
    """80 GB in layers of 1 GB and 4 GB beside them, on 8 devices: 10.5 GB, 4 GB, and three layers."""
    assert sharded_bytes(84 * 10**9, 10**9, 4 * 10**9, 8) == 17.5 * 10**9


@pytest.mark.gpu
def test_the_largest_random_model_that_fits_a_gpu_takes_the_memory_that_was_planned():
    """8B in bfloat16, or as many layers of it as fit; peak as torch's allocator counts it, within 15 %."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    shape = LoraShape(16, 32.0)
    free = torch.cuda.mem_get_info()[0]
    for layers in (32, 16, 8, 4):
        config = LlamaConfig(vocab_size=128_256, hidden_size=4096, intermediate_size=14_336, num_hidden_layers=layers, num_attention_heads=32, num_key_value_heads=8)
        said = trace(config, shape, dtype=torch.bfloat16, members=1, documents=4, tokens=512, checkpoint=True)
        if said.weights + said.adapters + said.work < 0.8 * free:
            break
    with torch.device("cuda"):
        model = LlamaForCausalLM._from_config(config, dtype=torch.bfloat16).requires_grad_(False)
    checkpoint_activations(model)
    bank = AdapterBank(model.train(), shape)
    same_K = torch.ones(1, device="cuda")
    learner = BankLearner(bank, BankAdam(bank.weight_KP, bank.grad_KP, rate_K=1e-4 * same_K, clip_K=same_K), sharded=True)
    row = Row(np.arange(512, dtype=np.int32) % VOCABULARY, np.ones(512, dtype=bool))
    torch.cuda.reset_peak_memory_stats()
    for _ in range(3):
        (learner.loss_sums(collate([[row] * 4], pad=0)).sum() / 2044).backward()
        learner.update(0)
    assert torch.cuda.max_memory_allocated() == pytest.approx(said.weights + said.adapters + said.work, rel=0.15)
