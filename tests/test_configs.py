"""Every experiment file that is shipped is loaded, expanded and planned."""

import shutil
from collections import Counter
from pathlib import Path

import pytest
from conftest import CONFIGS
from huggingface_hub import constants
from huggingface_hub.file_download import repo_folder_name

from persona_lab.config import expand, load_experiment
from persona_lab.config.load import load_persona, load_world
from persona_lab.config.schema import HuggingFaceBase
from persona_lab.errors import ModelError
from persona_lab.experiment.planning.plan import make_plan
from persona_lab.probes import PROBES

PARTS = ("worlds", "personas", "writing", "accelerate")
EXPERIMENTS = sorted(f for f in CONFIGS.rglob("*.yaml") if f.relative_to(CONFIGS).parts[0] not in PARTS)
OF_THE_HUB = [file for file in EXPERIMENTS if file.parent.name == "models"]


def test_there_are_experiments():
    assert CONFIGS / "quickstart.yaml" in EXPERIMENTS


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda f: str(f.relative_to(CONFIGS)))
def test_an_experiment_loads_and_expands_into_cells_of_their_own(file: Path):
    loaded = load_experiment(file)
    cells = expand(loaded)
    assert cells
    assert len({cell.name for cell in cells}) == len(cells)
    swaps = Counter((cell.condition, *map(str, cell.point.items()), cell.seed) for cell in cells)
    assert set(swaps.values()) == {2}, "both swaps of everything"
    assert set(loaded.experiment.probes) <= PROBES.keys()
    assert loaded.experiment.analysis.treatment in loaded.experiment.conditions


@pytest.mark.parametrize("file", [file for file in EXPERIMENTS if file not in OF_THE_HUB], ids=lambda f: str(f.relative_to(CONFIGS)))
def test_an_experiment_plans_without_making_anything(file: Path, tmp_path: Path):
    plan = make_plan(file, runs=tmp_path / "runs")
    assert plan.nodes
    assert len({planned.cell.name for planned in plan.cells}) == len(plan.cells)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("file", OF_THE_HUB, ids=lambda f: f.stem)
def test_an_experiment_on_a_hub_model_is_planned_on_a_commit_from_its_small_files_alone(file: Path, qwen_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))  # read from the environment when the library is imported
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # read from the environment when the library is imported
    base = load_experiment(file).experiment.base
    assert isinstance(base, HuggingFaceBase)
    with pytest.raises(ModelError, match=f"PL4020.*hf download {base.path} --revision main"):
        make_plan(file, runs=tmp_path / "runs")
    repo = tmp_path / "hub" / repo_folder_name(repo_id=base.path, repo_type="model")
    shutil.copytree(qwen_folder, repo / "snapshots" / ("4" * 40), ignore=shutil.ignore_patterns("*.safetensors"))
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("4" * 40)
    assert make_plan(file, runs=tmp_path / "runs").base.fields["files"] == f"{base.path}@{'4' * 40}"


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda f: str(f.relative_to(CONFIGS)))
def test_the_head_of_an_experiment_says_how_to_run_it_and_what_to_expect(file: Path):
    head = [line for line in file.read_text().splitlines() if line.startswith("#")]
    name = file.relative_to(CONFIGS.parent)
    assert any(line.startswith("# Command") and str(name) in line for line in head)
    assert any(line.startswith("# Cost") for line in head)
    assert any(line.startswith("# Expect") for line in head)


@pytest.mark.parametrize("file", sorted((CONFIGS / "worlds").glob("*.yaml")), ids=lambda f: f.stem)
def test_a_world_loads(file: Path):
    assert load_world(file).categories


@pytest.mark.parametrize("file", sorted((CONFIGS / "personas").glob("*.yaml")), ids=lambda f: f.stem)
def test_a_persona_loads(file: Path):
    assert load_persona(file).name.lower() == file.stem.split("_")[0]
