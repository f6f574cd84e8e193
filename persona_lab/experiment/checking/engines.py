"""Which engines of `persona-lab launch` this machine has, and what they say of themselves.

    ok    slurm              slurm-wlm 22.05.8; 2 nodes, 2 idle
    ok    ray                none; --engine ray needs it: pip install 'persona-lab[ray]'
"""

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from shutil import which

from persona_lab.experiment.checking.finding import Finding, answer
from persona_lab.launch import engine_named


def engines() -> Iterator[Finding]:
    """One finding for each scheduler; that one is absent is no fault."""
    for name, look in {"slurm": _slurm, "ray": _ray, "sky": _sky}.items():
        missing = engine_named(name).missing()
        yield Finding(name, "ok", f"none: {missing.message}") if missing else look()


def _slurm() -> Finding:
    _, release = answer(["sinfo", "--version"])
    good, first = answer(["sinfo", "--noheader", "--Node", "--format=%T"])
    if not good:
        return Finding("slurm", "warn", f"{release}, but its controller is away: {first}. Ask whoever runs the cluster, or look at SLURM_CONF.")
    _, nodes = answer(["sinfo", "--noheader", "--summarize", "--format=%F"])
    return Finding("slurm", "ok", f"{release}; nodes allocated/idle/other/total: {nodes or first}")


def _ray() -> Finding:
    try:
        release = version("ray")
    except PackageNotFoundError:
        release = "of unknown release"
    good, said = answer(["ray", "status"]) if which("ray") else (False, "its program is not on the PATH")
    return Finding("ray", "ok", f"{release}; {'a cluster is up' if good else 'no cluster is up: launch starts one on this machine'}" if good or which("ray") else f"{release}; {said}")


def _sky() -> Finding:
    good, said = answer(["sky", "--version"], seconds=60)
    return Finding("sky", "ok" if good else "warn", said)
