"""Hub ids: a revision becomes a commit before anything is made, and what the cache has is used without a network."""

import json
import shutil
import socket
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from huggingface_hub import constants
from huggingface_hub.file_download import repo_folder_name

from persona_lab.errors import ModelError
from persona_lab.experiment.launching import warnings_of
from persona_lab.experiment.planning.plan import Plan, make_plan, open_plan
from persona_lab.models import hub
from persona_lab.models.folders import load_model
from persona_lab.models.inspection import INDEX

pytestmark = pytest.mark.usefixtures("from_the_root")
FIRST, SECOND = "1" * 40, "2" * 40
REPO = "lab/tiny-qwen3"


@pytest.fixture
def cache(qwen_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of huggingface_hub, with one model at one commit, which `main` names; offline."""
    cache = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))  # read from the environment when the library is imported
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # read from the environment when the library is imported
    repo = cache / repo_folder_name(repo_id=REPO, repo_type="model")
    shutil.copytree(qwen_folder, repo / "snapshots" / FIRST)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(FIRST)
    return cache


def planned(folder: Path, *overrides: str) -> Plan:
    return make_plan("configs/quickstart.yaml", [f"base={REPO}", *overrides], folder / "runs")


def refusal(*overrides: str, folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        planned(folder, *overrides)
    (problem,) = caught.value.problems
    assert problem.where.startswith(REPO)
    return f"{problem.code} {problem.message}"


@pytest.mark.usefixtures("cache")
def test_a_revision_is_a_commit_in_the_identity_and_in_the_config_of_the_run(tmp_path: Path):
    unpinned, branch, commit = (planned(tmp_path, *more) for more in ((), ("base.revision=main",), (f"base.revision='{FIRST}'",)))
    assert unpinned.base.fields["files"] == f"{REPO}@{FIRST}"
    assert {plan.base.id for plan in (unpinned, branch, commit)} == {unpinned.base.id}
    assert {plan.id for plan in (unpinned, branch, commit)} == {unpinned.id}
    unpinned.write()
    assert json.loads((unpinned.folder / "config.json").read_text())["base"]["revision"] == FIRST


def test_a_run_goes_on_with_its_commit_when_the_branch_has_moved(cache: Path, tmp_path: Path):
    before = planned(tmp_path)
    before.write()
    repo = next(cache.iterdir())
    shutil.copytree(repo / "snapshots" / FIRST, repo / "snapshots" / SECOND)
    (repo / "refs" / "main").write_text(SECOND)
    after = planned(tmp_path)
    assert after.base.fields["files"] == f"{REPO}@{SECOND}"
    assert after.folder != before.folder
    assert open_plan(before.folder).base.id == before.base.id


@pytest.mark.usefixtures("cache")
def test_a_cached_model_loads_without_a_network(qwen_folder: Path):
    ours, theirs = (load_model(path)[0] for path in (REPO, str(qwen_folder)))
    assert all(a.equal(b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_what_the_cache_lacks_is_one_clear_error_when_there_is_no_network(cache: Path, tmp_path: Path):
    for revision in ("dev", SECOND):
        said = refusal(f"base.revision='{revision}'", folder=tmp_path)
        assert said.startswith("PL4020 base.path: the hub cannot be reached")
        assert f"hf download {REPO} --revision {revision}" in said
    (next(cache.iterdir()) / "snapshots" / FIRST / "model.safetensors").unlink()
    planned(tmp_path)
    with pytest.raises(ModelError, match=r"model\.safetensors: the weights are missing"):
        load_model(REPO)
    shutil.rmtree(cache)
    assert refusal(folder=tmp_path).startswith("PL4020")
    assert not (tmp_path / "runs").exists()


def test_a_launch_on_a_cluster_warns_of_weights_that_its_machines_may_be_unable_to_download(cache: Path, tmp_path: Path):
    whole = planned(tmp_path)
    assert [warning for name in ("slurm", "ray") for warning in warnings_of(whole, name) if "weights" in warning] == []
    (next(cache.iterdir()) / "snapshots" / FIRST / "model.safetensors").unlink()
    for name in ("slurm", "ray"):
        assert f"the weights of {REPO} are not in this machine's cache" in warnings_of(whole, name)[-1]
        assert f"hf download {REPO} --revision {FIRST}" in warnings_of(whole, name)[-1]
    assert [warning for name in ("local", "sky") for warning in warnings_of(whole, name) if "weights" in warning] == []


def test_a_hub_that_does_not_answer_is_not_waited_for_where_the_cache_has_the_model(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    def refuse(*_: object, **__: object) -> None:
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # read from the environment when the library is imported
    monkeypatch.setattr(socket, "getaddrinfo", refuse)  # a machine without a network, whatever this one has
    monkeypatch.setattr(socket.socket, "connect", refuse)  # nor an address that is known without asking
    assert planned(tmp_path).base.fields["files"] == f"{REPO}@{FIRST}"
    assert "the hub cannot be reached (ConnectError)" in caplog.text
    assert hub.snapshot(REPO, FIRST).name == FIRST
    with pytest.raises(ModelError, match="PL4020"):
        hub.snapshot(REPO, SECOND)


class Gated(BaseHTTPRequestHandler):
    """A hub that tells everybody of a model, and keeps its files from those who are not logged in."""

    def do_GET(self) -> None:
        files = [{"type": "file", "path": "config.json", "size": 2, "oid": FIRST}]
        told = json.dumps(files if "/tree/" in self.path else {"id": REPO, "sha": SECOND}).encode() if self.path.startswith("/api/models/") else b""
        self.send_response(200 if told else 403)
        for name, value in {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"}.items() if not told else ():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(told)))
        self.end_headers()
        self.wfile.write(told if self.command == "GET" else b"")

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.mark.usefixtures("cache")
def test_a_gated_model_without_a_login_is_told_from_a_hub_that_does_not_answer(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # read from the environment when the library is imported
    with ThreadingHTTPServer(("127.0.0.1", 0), Gated) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        here = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, here))  # the hub is a server of the test
        monkeypatch.setattr(constants, "ENDPOINT", here)  # likewise read at import
        assert hub.pinned(REPO, "main") == SECOND
        with pytest.raises(ModelError, match=r"PL4021.*the hub refuses it.*accept its licence on the hub and log in"):
            hub.snapshot(REPO, SECOND)
        server.shutdown()


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("ask", [lambda path: hub.pinned(path, "main"), lambda path: hub.snapshot(path, FIRST)], ids=["pinned", "snapshot"])
def test_what_is_no_hub_id_is_one_clear_error_without_a_network_too(ask: Callable[[str], object]):
    with pytest.raises(ModelError, match=r"PL4021.*lab/models/tiny.*the hub refuses it"):
        ask("lab/models/tiny")


def test_a_hub_model_that_names_code_is_refused_when_it_is_planned(cache: Path, tmp_path: Path):
    file = next(cache.iterdir()) / "snapshots" / FIRST / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "auto_map": {"AutoModelForCausalLM": "modeling.Own"}}))
    with pytest.raises(ModelError, match=r"PL4004.*auto_map.*never run"):
        planned(tmp_path)


def test_a_snapshot_is_whole_with_every_shard_that_its_index_names(cache: Path):
    folder = next(cache.iterdir()) / "snapshots" / FIRST
    assert hub._whole(folder, weights=True)
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model.safetensors"}}))
    assert not hub._whole(folder, weights=True)
    assert hub._whole(folder, weights=False)
