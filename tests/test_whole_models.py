"""What needs a model whole says so: instruments under a launch that divides it, and a plan's memory of a config that leaves out sizes."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from test_measuring_processes import hamlet

from persona_lab.config.schema import Machine
from persona_lab.errors import EnvironmentFault, ModelError
from persona_lab.experiment.checking.footprint import footprints
from persona_lab.experiment.instruments.building import made, subject
from persona_lab.experiment.instruments.measure.plans import Effort, measure_plans
from persona_lab.experiment.instruments.measure.weights import Bench
from persona_lab.experiment.making.launch import check_whole
from persona_lab.experiment.planning.plan import Plan, make_plan
from persona_lab.experiment.run import make_nodes
from persona_lab.models.folders import load_model

pytestmark = pytest.mark.usefixtures("from_the_root")


def silent(*_: Any) -> None:
    """Progress that nobody is told of."""


# ------------------------------------------------------------------ instruments
@pytest.mark.parametrize("launch", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"])
def test_an_instrument_is_refused_by_a_launch_that_divides_models(launch: str, qwen_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    of = subject(str(qwen_folder), world=hamlet(tmp_path), runs=tmp_path / "runs")
    plan = measure_plans(of, of.chosen(["mary"]), Effort(seeds=1, steps=1)).bundles
    monkeypatch.setenv(launch, "true")
    for asked in (lambda: made(plan, silent), lambda: Bench(plan, "cpu").base):
        with pytest.raises(EnvironmentFault, match=r"PL5209.*loads its model whole.*Use it without --config_file"):
            asked()
    assert not (tmp_path / "runs").exists(), "nothing is begun"


def test_an_experiment_that_looks_into_adapters_is_refused_before_it_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    plan = make_plan("configs/em_narrow.yaml", ["underpowered=true"], tmp_path / "runs")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(EnvironmentFault, match=r"PL5209.*`adapters:` can be trained first"):
        make_nodes(plan, silent, launched=True)
    assert not list(tmp_path.glob("runs/store/*/*/COMMIT"))


def test_data_parallel_training_is_not_promised_to_instruments(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        check_whole(Machine())
        assert caplog.text == ""
        check_whole(Machine(data_parallel=True))
    assert "machine.data_parallel divides the steps of `run` alone" in caplog.text


# ------------------------------------------------------------------ configs
@pytest.fixture
def folder(qwen_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(qwen_folder, tmp_path / "model"))


def planned(folder: Path) -> Plan:
    base = {"kind": "hf", "path": str(folder), "world": "configs/worlds/beach.yaml"}
    return make_plan("configs/quickstart.yaml", [f"base={json.dumps(base)}"], folder.parent / "runs")


def edited(folder: Path, drop: tuple[str, ...] = (), **changes: Any) -> Path:
    file = folder / "config.json"
    kept = {name: value for name, value in json.loads(file.read_text()).items() if name not in drop}
    file.write_text(json.dumps(kept | changes))
    return folder


@pytest.mark.parametrize("name", ["hidden_size", "num_hidden_layers"])
def test_a_config_without_a_size_has_no_footprint_of_another_model(folder: Path, name: str):
    with pytest.raises(ModelError, match=rf"PL4016.*config\.json.*does not say {name}.*Use the complete config"):
        footprints(planned(edited(folder, drop=(name,))))


@pytest.mark.parametrize("changes", [{"hidden_act": "nonsense"}, {"rms_norm_eps": "small"}])
def test_a_config_of_which_no_model_can_be_made_is_one_error(folder: Path, changes: dict[str, Any]):
    plan = planned(edited(folder, **changes))
    for asked in (lambda: footprints(plan), lambda: load_model(str(folder))):
        with pytest.raises(ModelError, match=r"PL40(09|16)") as caught:
            asked()
        assert len(caught.value.problems) == 1
        assert "\n" not in str(caught.value)


def test_sizes_by_the_names_of_gpt_2_are_sizes(folder: Path):
    old = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}
    plan = planned(folder)
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({"vocab_size": said["vocab_size"], **old}))
    found = footprints(plan)[0]
    counted = sum(t.numel() for name, t in load_file(folder / "model.safetensors").items() if "embed" in name)
    assert found.weights > 4 * counted
