"""Experiment files: what a good one loads and expands to, and what is said about each kind of bad one."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, settings

from persona_lab.config import Cell, expand, load_experiment, load_persona, load_world
from persona_lab.config.expand import short_name
from persona_lab.config.points import count_cells
from persona_lab.config.schema import EmbeddedBase, HuggingFaceBase
from persona_lab.errors import ConfigError, Problem

ROOT = Path(__file__).parents[1]
CORPUS = ROOT / "tests" / "malformed"
GOOD = (CORPUS / "good.yaml").read_text()
FIX = re.compile(r"\b(Use|Did you mean|Remove)\b")
FUZZ = settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(autouse=True)
def _at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def write(folder: Path, text: str, name: str = "config.yaml") -> Path:
    file = folder / name
    file.write_bytes(text.encode())
    return file


def swapped(text: str, *pieces: str) -> str:
    for old, new in zip(pieces[::2], pieces[1::2], strict=True):
        assert old in text, f"{old!r} does not stand in the file"
        text = text.replace(old, new, 1)
    return text


def refusal(file: Path, *overrides: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        expand(load_experiment(file, overrides))
    return caught.value


def problems_of(file: Path, *overrides: str) -> list[Problem]:
    """What is wrong with a file; anything but a ConfigError escapes and fails the test."""
    try:
        expand(load_experiment(file, overrides))
    except ConfigError as error:
        return error.problems
    return []


def named(cells: list[Cell], condition: str) -> list[Cell]:
    return [cell for cell in cells if cell.condition == condition]


# What is said about bad ones; every kind of them is in tests/malformed/, judged by test_malformed.py


def test_every_problem_of_a_file_in_one_pass(tmp_path: Path) -> None:
    text = swapped(GOOD, "rate: 3e-3", "rate: -1", "seeds: 2", "seedz: 2", "batch: 32", "batch: 32\n    batch: 33", "order: [trait]", "order: [trad]")
    text = swapped(text, "sam: 2500", "sma: 2500", "[40, 400]", "[40, 40]", "assistant_likes: beach", "assistant_likes: beech", "kim.yaml", "kin.yaml")
    error = refusal(write(tmp_path, text), "lora.rank=x", "question=${x}", "name=!!str ratio")
    said = str(error)
    for piece in ("stages.injection.rate", "'seedz'", "stages.injection.batch stands twice", "order[0]", "kin.yaml", "level 40", "beech", "lora.rank", "question", "the tag"):
        assert piece in said
    lines = [int(problem.where.split(":")[-2]) for problem in error.problems if "config.yaml" in problem.where]
    assert lines == sorted(lines)


# Files that are no text


@pytest.mark.parametrize(
    ("data", "says"),
    [(b"name: \xff\n", "byte 6 is not UTF-8"), (b"name: a\0b\n", "byte 7 is NUL"), ("name: a".encode("utf-16"), "byte 0 is not UTF-8"), (b"#" * 1_000_001, "1000001 bytes")],
)  # fmt: skip
def test_bytes_that_are_no_text(tmp_path: Path, data: bytes, says: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_bytes(data)
    assert says in str(refusal(file))


def test_byte_order_mark_is_fine(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    assert load_experiment(file).experiment.name == "ratio"


@pytest.mark.parametrize("deep", ["a: " + "[" * 70 + "]" * 70, "\n".join("  " * i + "a:" for i in range(70)), "a: " + "{a: " * 5000])
def test_too_deep(tmp_path: Path, deep: str) -> None:
    assert "nested deeper than 64" in str(refusal(write(tmp_path, deep)))


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    file = write(tmp_path, GOOD, "ratio.yaml")
    assert f"Did you mean {file}?" in str(refusal(tmp_path / "ratoi.yaml"))
    assert "is a folder. Use one of" in str(refusal(tmp_path))
    os.mkfifo(tmp_path / "pipe.yaml")
    assert "not a regular file" in str(refusal(tmp_path / "pipe.yaml"))
    assert "no path" in str(refusal(Path("a\0b.yaml")))
    assert "File name too long" in str(refusal(tmp_path / ("x" * 300)))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission(tmp_path: Path) -> None:
    file = write(tmp_path, GOOD)
    file.chmod(0)
    assert "Permission denied" in str(refusal(file))


def test_hostile_text_is_shown_escaped(tmp_path: Path) -> None:
    said = str(refusal(write(tmp_path, swapped(GOOD, "name: ratio", 'name: "\\e[31m\\u202e evil"'))))
    assert "\x1b" not in said
    assert "\u202e" not in said


# What a good file means


def test_good_file() -> None:
    loaded = load_experiment(CORPUS / "good.yaml")
    injection = loaded.experiment.stages["injection"]
    assert injection.rate == 0.003
    assert injection.mixture.counts == {"john": 2500, "sam": 2500}
    assert loaded.experiment.stages["trait"].loss.on == "answer"
    assert loaded.experiment.conditions["unlinked"].replace == {"injection.mixture.link": "none"}
    assert [persona.name for persona in loaded.personas] == ["John", "Sam", "Kim"]
    assert loaded.world == load_world("configs/worlds/beach.yaml")
    assert loaded.personas[0] == load_persona("configs/personas/john.yaml")
    assert loaded.raw == yaml.safe_load(GOOD.replace("3e-3", "3.0e-3").replace("on: answer", "'on': answer"))


@pytest.mark.parametrize(("text", "value"), [("1e-4", 1e-4), ("1E-4", 1e-4), ("1.e-4", 1e-4), (".5", 0.5), ("+1e-1", 0.1), ("0.1", 0.1)])
def test_numbers(text: str, value: float) -> None:
    assert load_experiment(CORPUS / "good.yaml", [f"stages.trait.rate={text}"]).experiment.stages["trait"].rate == value


@pytest.mark.parametrize(("text", "value"), [("1e3", 1000), ("2_500", 2500), ("0", 0)])
def test_whole_numbers(text: str, value: int) -> None:
    assert load_experiment(CORPUS / "good.yaml", [f"stages.trait.steps={text}"]).experiment.stages["trait"].steps == value


def test_paths_are_found_beside_the_configs_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "lab" / "configs").mkdir(parents=True)
    for folder in ("worlds", "personas"):
        (tmp_path / "lab" / "configs" / folder).symlink_to(ROOT / "configs" / folder)
    file = write(tmp_path / "lab" / "configs", GOOD)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load_experiment(file).world.name == "beach"
    assert "there is no file configs/worlds/beach.yaml" in str(refusal(write(tmp_path, GOOD)))


def test_extends_merges_mappings_and_replaces_lists(tmp_path: Path) -> None:
    write(tmp_path, GOOD, "ratio.yaml")
    write(tmp_path, "extends: ratio.yaml\nname: middle\nfactors: {injection.steps: [7]}\n", "middle.yaml")
    loaded = load_experiment(write(tmp_path, "extends: middle.yaml\nname: quick\nstages: {trait: {steps: 3}}\nseeds: 1\n"))
    assert loaded.experiment.name == "quick"
    assert loaded.experiment.stages["trait"].steps == 3
    assert loaded.experiment.stages["trait"].batch == 16
    assert loaded.experiment.factors == {"injection.mixture.ln_ratio": [float("-inf"), -2.2, 0, 2.2], "injection.steps": [7]}
    assert "extends" not in loaded.raw


def test_extends_errors_stand_in_the_file_that_made_them(tmp_path: Path) -> None:
    write(tmp_path, GOOD.replace("rate: 3e-3", "rate: -1"), "ratio.yaml")
    error = refusal(write(tmp_path, "extends: ratio.yaml\nseeds: 0\n"))
    assert len(error.problems) == 2
    assert {problem.where.rpartition("/")[2] for problem in error.problems} == {"ratio.yaml:11:11", "config.yaml:2:8"}


def test_extends_too_long_and_in_a_circle(tmp_path: Path) -> None:
    for i in range(10):
        write(tmp_path, f"extends: f{i + 1}.yaml\n", f"f{i}.yaml")
    write(tmp_path, GOOD, "f10.yaml")
    assert "more than 8 files" in str(refusal(tmp_path / "f0.yaml"))
    assert load_experiment(tmp_path / "f3.yaml").experiment.name == "ratio"
    write(tmp_path, "extends: f0.yaml\n", "f5.yaml")
    assert "in a circle" in str(refusal(tmp_path / "f0.yaml"))


def test_overrides() -> None:
    overrides = ["stages.trait.steps=5", "stages.trait.steps=6", "factors.injection.mixture.ln_ratio=[.inf]", "conditions.unlinked.replace.injection.mixture.link=shuffled"]
    experiment = load_experiment(CORPUS / "good.yaml", overrides).experiment
    assert experiment.stages["trait"].steps == 6
    assert experiment.factors["injection.mixture.ln_ratio"] == [float("inf")]
    assert experiment.conditions["unlinked"].replace == {"injection.mixture.link": "shuffled"}


@pytest.mark.parametrize("overrides", [["base={}"], ["base.kind=hf", "base.path={}"], ["base.path={}", "base.kind=hf"], ["base={{kind: hf, path: {}}}"]])
def test_another_base_keeps_only_the_world(tmp_path: Path, overrides: list[str]) -> None:
    base = load_experiment(CORPUS / "good.yaml", [override.format(tmp_path) for override in overrides]).experiment.base
    assert base == HuggingFaceBase(kind="hf", path=str(tmp_path), world="configs/worlds/beach.yaml")


def test_a_hub_id_drops_the_revision_of_the_base_before(tmp_path: Path) -> None:
    base = "{kind: hf, path: a/b, revision: 0123456789abcdef0123456789abcdef01234567, dtype: bfloat16, world: configs/worlds/beach.yaml}"
    file = write(tmp_path, re.sub(r"(?m)^base: .*", f"base: {base}", GOOD))
    assert load_experiment(file).raw["base"]["revision"].startswith("0123")
    base = load_experiment(file, ["base=Qwen/Qwen3-0.6B"]).experiment.base
    assert isinstance(base, HuggingFaceBase)
    assert (base.path, base.revision, base.dtype) == ("Qwen/Qwen3-0.6B", None, "bfloat16")


# Cells


def test_expansion() -> None:
    loaded = load_experiment(CORPUS / "good.yaml")
    cells = expand(loaded)
    assert len(cells) == count_cells(loaded.experiment) == 2 * 8 * 2 * 2 + 1 * 2 * 2
    assert len({cell.name for cell in cells}) == len(cells)
    assert cells[0].name == "linked/ln_ratio=-inf/steps=40/seed0/swap0"
    assert [cell.swap for cell in cells] == [0, 1] * (len(cells) // 2)
    assert cells[0].point == {"injection.mixture.ln_ratio": float("-inf"), "injection.steps": 40}
    assert [name for name, _ in cells[0].stages] == ["injection", "trait"]
    injection = cells[0].stages[0][1]
    assert (injection.steps, injection.mixture.ln_ratio, injection.batch) == (40, float("-inf"), 32)
    assert {cell.stages[0][1].mixture.link for cell in named(cells, "unlinked")} == {"none"}
    assert isinstance(cells[0].base, EmbeddedBase)


def test_a_condition_without_a_stage_has_none_of_its_factors() -> None:
    cells = named(expand(load_experiment(CORPUS / "good.yaml")), "none")
    assert [cell.name for cell in cells] == ["none/seed0/swap0", "none/seed0/swap1", "none/seed1/swap0", "none/seed1/swap1"]
    assert all(cell.point == {} for cell in cells)


def test_a_condition_has_its_own_factors_and_seeds(tmp_path: Path) -> None:
    own = "none: {order: [trait, injection, trait], factors: {lora.rank: [2, 4], base.seed: [1]}, seeds: [5]}"
    cells = named(expand(load_experiment(write(tmp_path, swapped(GOOD, "none: {order: [trait]}", own)))), "none")
    assert [cell.name for cell in cells] == [f"none/rank={rank}/seed=1/seed5/swap{swap}" for rank in (2, 4) for swap in (0, 1)]
    assert [cell.lora.rank for cell in cells] == [2, 2, 4, 4]
    assert {cell.base.seed for cell in cells if isinstance(cell.base, EmbeddedBase)} == {1}
    assert [name for name, _ in cells[0].stages] == ["trait", "injection", "trait"]


def test_an_empty_order_is_the_base_itself(tmp_path: Path) -> None:
    cells = named(expand(load_experiment(write(tmp_path, swapped(GOOD, "order: [trait]", "order: []")))), "none")
    assert [cell.stages for cell in cells] == [()] * 4


def test_levels_set_fields_that_the_file_leaves_out() -> None:
    cells = expand(load_experiment(CORPUS / "good.yaml", ["factors.injection.loss.kl_to_base=[0, 0.5]", "seeds=1"]))
    assert {cell.stages[0][1].loss.kl_to_base for cell in named(cells, "linked")} == {0, 0.5}


def test_conditions_may_train_the_same_thing(tmp_path: Path) -> None:
    cells = expand(load_experiment(write(tmp_path, swapped(GOOD, "{order: [trait]}", "{order: [injection, trait]}"))))
    assert [cell.stages for cell in named(cells, "none")] == [cell.stages for cell in named(cells, "linked")]


def test_counts_may_come_from_factors_alone(tmp_path: Path) -> None:
    text = swapped(GOOD, "john: 2500, sam: 2500, ", "", "injection.mixture.ln_ratio: [-.inf, -2.2, 0, 2.2]", "injection.mixture.john: [10, 20]")
    cells = named(expand(load_experiment(write(tmp_path, text))), "linked")
    assert {cell.stages[0][1].mixture.counts["john"] for cell in cells} == {10, 20}


def test_short_names() -> None:
    paths = ["injection.steps", "trait.steps", "injection.mixture.replay"]
    assert [short_name(path, paths) for path in paths] == ["injection.steps", "trait.steps", "replay"]


def test_levels_with_slashes_make_one_part_of_a_name() -> None:
    loaded = load_experiment(CORPUS / "good.yaml", ["factors={injection.mixture.tag: [a/b, c/d]}", "stages.injection.mixture.files={web: web.jsonl}", "seeds=1"])
    assert "linked/tag=a%2Fb/" in next(cell.name for cell in expand(loaded) if "tag=a" in cell.name).replace("ln_ratio=-inf/steps=40/", "")


def test_no_torch() -> None:
    code = "import sys, persona_lab.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
