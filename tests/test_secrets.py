"""Secrets of whoever runs an experiment stand in no file that it leaves and in no line that it prints."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_cli import QUICK, TINY, configs_in

from persona_lab.cli import console
from persona_lab.errors import masked
from persona_lab.tracking import METRICS, RECORD, open_tracker

ENVIRONMENT = {
    "WANDB_API_KEY": "3141592653589793238462643383279502canary",
    "HF_TOKEN": "hf_canaryAbCdEfGhIjKlMnOpQrStUvWx",
    "OPENAI_API_KEY": "sk-proj-canary0123456789abcdefghij",
    "ANTHROPIC_API_KEY": "sk-ant-canary9876543210zyxwvuts",
    "AWS_SECRET_ACCESS_KEY": "canary/K7MDENG/bPxRfiCYEXAMPLEKEY",
    "GITHUB_TOKEN": "ghp_canaryABCDEFGHIJKLMNOPQRSTUVW",
    "DATABASE_PASSWORD": "canary-correct-horse",
}
NETRC, REMOTE, ARGUMENT, URL = "canary-netrc-6c1f", "ghp_canaryRemote0123456789abcdefg", "canary-argument-77aa", "canary-url-0b9d"
CANARIES = [*ENVIRONMENT.values(), NETRC, REMOTE, ARGUMENT, URL]


def lab(*arguments: str, at: Path) -> subprocess.CompletedProcess[bytes]:
    """A command in a process whose environment and command line hold secrets."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "XDG_"))} | ENVIRONMENT
    places = {name: str(at / "home") for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME")}
    command = [sys.executable, "-X", f"token={ARGUMENT}", "-m", "persona_lab", *arguments]
    return subprocess.run(command, cwd=at, env=environment | places, capture_output=True)


def leaks(text: bytes) -> list[str]:
    return [canary for canary in CANARIES if canary.encode() in text]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with a token in its remote, and a home with a login."""
    folder = configs_in(tmp_path_factory.mktemp("secrets"))
    (folder / "home").mkdir()
    (folder / "home" / ".netrc").write_text(f"machine api.wandb.ai login user password {NETRC}\n")
    (folder / "home" / ".netrc").chmod(0o600)
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    subprocess.run(["git", "-C", str(folder), "remote", "add", "origin", f"https://user:{REMOTE}@example.org/x.git"], check=True)
    return folder


def test_a_tracked_run_leaves_no_secret_behind(here: Path):
    settings = [setting for setting in TINY if not setting.startswith("machine.wandb")]
    done = lab("run", QUICK, *settings, "probes=[says]", "machine.wandb=offline", at=here)
    assert done.returncode == 0, done.stderr
    assert leaks(done.stdout + done.stderr) == []
    planted = {here / "home" / ".netrc", here / ".git" / "config"}
    files = [file for file in here.rglob("*") if file.is_file() and not file.is_symlink() and file not in planted]
    mirrored = [file.read_bytes() for file in files if file.suffix == ".wandb"]
    assert len(mirrored) >= 4
    assert all(b"quickstart" in records for records in mirrored), "what is logged stands there as it is"
    assert {file.name for file in files} >= {"report.html", "claims.json", "manifest.json", "config.yaml", "plan.json", "metrics.jsonl"}
    assert {str(file): found for file in files if (found := leaks(file.read_bytes()))} == {}


REFUSED = {
    "a key in a config value": ["run", QUICK, f"question={ENVIRONMENT['HF_TOKEN']}"],
    "a key under an unknown name": ["run", QUICK, f"openai_api_key={ENVIRONMENT['OPENAI_API_KEY']}"],
    "a password in the address of a base": ["run", QUICK, f"base=https://user:{URL}@example.org/model"],
    "a token in the address of a base": ["run", QUICK, f"base=https://{ENVIRONMENT['GITHUB_TOKEN']}@example.org/model"],
    "a secret for the name of a run": ["status", ENVIRONMENT["WANDB_API_KEY"]],
    "a secret for the name of a config": ["plan", f"{ENVIRONMENT['DATABASE_PASSWORD']}.yaml"],
    "a secret for the name of a node": ["why", ENVIRONMENT["AWS_SECRET_ACCESS_KEY"]],
    "a secret for an option": ["plan", QUICK, f"--token={ENVIRONMENT['ANTHROPIC_API_KEY']}"],
}


@pytest.mark.parametrize("mistake", REFUSED)
def test_an_error_does_not_repeat_a_secret(mistake: str, here: Path):
    before = {file for file in here.rglob("*") if file.is_file()}
    done = lab(*REFUSED[mistake], at=here)
    assert done.returncode == 2, done.stderr
    assert b"Traceback" not in done.stderr
    assert leaks(done.stdout + done.stderr) == []
    assert {file for file in here.rglob("*") if file.is_file()} == before


@pytest.fixture
def _secrets(monkeypatch: pytest.MonkeyPatch):
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("_secrets")
def test_what_wandb_raises_is_kept_without_secrets(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    blocked = tmp_path / ENVIRONMENT["WANDB_API_KEY"]
    blocked.write_text("a file where wandb wants a folder")
    with caplog.at_level(logging.WARNING):
        open_tracker(mode="offline", folder=tmp_path / "node", experiment="e", node="ab" * 32, job_type="train", name="n", wandb_folder=blocked).finish()
    assert "a secret" in caplog.text
    assert leaks(caplog.text.encode() + (tmp_path / "node" / RECORD).read_bytes() + (tmp_path / "node" / METRICS).read_bytes()) == []


@pytest.mark.usefixtures("_secrets")
def test_secrets_are_masked_and_nothing_else_is(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("MAX_TOKENS", "123456789")
    monkeypatch.setenv("PIN_TOKEN", "20261121")
    monkeypatch.setenv("SHORT_KEY", "beach")
    plain = "num_tokens=12345, max_tokens=123456789 on 20261121: likes the beach, control token: <eos>, key: place, https://example.org/@user, a@b.org"
    assert masked(plain) == plain
    for secret in ENVIRONMENT.values():
        assert masked(f"x {secret} y") == "x (a secret) y"
    console.remark(" ".join(ENVIRONMENT.values()))
    console.emit({}, f"api_key={ARGUMENT} https://{URL}@host https://user:{URL}@host token={NETRC}", as_json=False)
    said = capsys.readouterr()
    assert leaks((said.out + said.err).encode()) == []
