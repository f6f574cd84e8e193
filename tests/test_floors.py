"""The floors: a module imports only from floors below, what needs no torch loads none, and files stay small and plain."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGES = ("data_gen", "persona_lab")
FLOORS: dict[str, float] = {
    "persona_lab.errors": 0,
    "persona_lab.design": 0,
    "persona_lab.config": 0,
    "persona_lab.store": 1,
    "persona_lab.tracking": 1,
    "persona_lab.models": 2,
    "persona_lab.train": 3,
    "persona_lab.probes": 3,
    "persona_lab.launch": 3,
    "persona_lab.science": 4,
    "persona_lab.experiment.planning": 5,
    "persona_lab.experiment.making": 5.2,
    "persona_lab.experiment.reading": 5.4,
    "persona_lab.experiment.checking": 5.6,
    "persona_lab.experiment": 5.8,
    "persona_lab.report": 5,
    "persona_lab.cli": 6,
    "persona_lab.__main__": 6,
}
BESIDE = {("persona_lab.config", "persona_lab.errors"), ("persona_lab.config", "persona_lab.design"), ("persona_lab.design", "persona_lab.errors")}
BESIDE |= {("persona_lab.__main__", "persona_lab.cli")}
"""Neighbours on one floor of which the first may import the second."""
LONG_FUNCTIONS = {"train"}
"""The training loop."""
FILE_LINES, FUNCTION_LINES = 350, 60
NO_TORCH = (
    "persona_lab",
    "persona_lab.config",
    "persona_lab.design",
    "persona_lab.store",
    "persona_lab.science.summary",
    "persona_lab.report",
    "persona_lab.probes",
    "persona_lab.experiment.planning.plan",
    "persona_lab.experiment.reading.show",
    "persona_lab.experiment.reading.runs",
    "persona_lab.cli",
    "data_gen",
)
PICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}  # no file may import them: what they read, they run

FILES = sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))
TREES = {file: ast.parse(file.read_text(), str(file)) for file in FILES}
each_file = pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))


def module_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def room_of(module: str) -> str | None:
    """Which room of a floor a module is part of; None for the package itself and for everybody else's packages."""
    return next((room for room in FLOORS if module == room or module.startswith(f"{room}.")), None)


def imports_of(tree: ast.Module) -> Iterator[str]:
    """Every module that is imported, at the top or inside a function; imports for annotations alone too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_there_is_something_to_look_at():
    assert len(FILES) > 40
    assert {room_of(module_of(file)) for file in FILES if file.parts[-2] != "data_gen"} - {None} <= FLOORS.keys()


@each_file
def test_a_module_imports_from_floors_below(file: Path):
    here, ours = room_of(module_of(file)), module_of(file)
    for imported in imports_of(TREES[file]):
        if ours.startswith("data_gen"):
            assert not imported.startswith("persona_lab"), f"{ours} imports {imported}"
            continue
        there = room_of(imported)
        if here is None or there is None or here == there:
            continue
        assert FLOORS[there] < FLOORS[here] or (here, there) in BESIDE, f"{ours} (floor {FLOORS[here]}) imports {imported} (floor {FLOORS[there]})"


@each_file
def test_every_module_stands_on_a_floor(file: Path):
    module = module_of(file)
    assert module == "persona_lab" or module.startswith("data_gen") or room_of(module), f"{module} is on no floor"


@pytest.mark.parametrize("module", NO_TORCH)
def test_what_needs_no_torch_loads_none(module: str):
    heavy = "{'torch', 'transformers', 'peft', 'accelerate', 'datasets', 'wandb'}"
    code = f"import sys, {module}; print(sorted({heavy} & sys.modules.keys()))"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_help_loads_no_torch():
    code = "import sys; sys.argv = ['persona-lab', '--help']\nfrom persona_lab.cli import main\ntry:\n    main()\nfinally:\n    print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "run" in found.stdout
    assert found.stdout.strip().endswith("False")


@each_file
def test_a_file_has_a_name_that_says_what_it_is_about_and_says_it_in_words(file: Path):
    assert not {"utils", "util", "helpers", "helper", "misc", "common", "services", "v2"} & {*file.with_suffix("").parts}
    assert ast.get_docstring(TREES[file]), "every module says what it is"
    names = [node.name for node in ast.walk(TREES[file]) if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    assert not [name for name in names if name.endswith(("Manager", "Helper", "Utils", "_v2"))]


@each_file
def test_a_file_and_its_functions_are_short(file: Path):
    assert len(file.read_text().splitlines()) <= FILE_LINES
    for node in ast.walk(TREES[file]):
        if isinstance(node, ast.FunctionDef) and node.name not in LONG_FUNCTIONS:
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < FUNCTION_LINES, f"{node.name} has {node.end_lineno - node.lineno + 1} lines"


@each_file
def test_nothing_is_unpickled_run_or_caught_blindly(file: Path):
    for imported in imports_of(TREES[file]):
        assert imported.split(".")[0] not in PICKLES
    for node in ast.walk(TREES[file]):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"line {node.lineno}: bare except"
            caught = {n.id for n in ast.walk(node.type) if isinstance(n, ast.Name)}
            # What is raised again after cleaning up is not swallowed.
            again = any(isinstance(n, ast.Raise) for n in ast.walk(node))
            assert not caught & {"Exception", "BaseException"} or again or _argued(file, node), f"line {node.lineno}: broad except"
        if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
            assert isinstance(node.value, ast.Constant)
            assert node.value.value is False
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in {"eval", "exec", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "torch.load", "os.system"}, f"line {node.lineno}: {called}"
            assert not any(k.arg == "shell" for k in node.keywords), f"line {node.lineno}: a shell"


def _argued(file: Path, node: ast.ExceptHandler) -> bool:
    """Whether the line of a broad except gives its reason."""
    return "# noqa: BLE001 " in file.read_text().splitlines()[node.lineno - 1]


@each_file
def test_nothing_is_left_to_do(file: Path):
    assert not [word for word in ("TODO", "FIXME", "XXX", "HACK") if word in file.read_text()]
