"""What one experiment needs of this machine, against what there is: disk, memory, its model, its engine.

    warn  plan memory        not measured. Use `persona-lab plan CONFIG --measure`.
    fail  model              Qwen/Qwen3-0.6B is not in the cache of the hub, and HF_HUB_OFFLINE is set. ...
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from persona_lab.config.schema import HuggingFaceBase
from persona_lab.errors import ModelError, printable
from persona_lab.experiment.checking.finding import Finding
from persona_lab.experiment.planning.costs import read_measured
from persona_lab.experiment.planning.forecast import Forecast, forecast
from persona_lab.experiment.planning.plan import Plan
from persona_lab.experiment.reading.status import estimate
from persona_lab.launch import engine_named

GIB = 2**30
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


def needs(plan: Plan, memory: float) -> Iterator[Finding]:
    """Each need of a plan; `memory` is that of this machine, bytes."""
    measured = read_measured(plan)
    foreseen = forecast(plan, measured) if measured else None
    yield _disk(plan, foreseen)
    yield _foretold(plan, memory) if foreseen is None else _memory(foreseen, memory)
    if isinstance(plan.loaded.experiment.base, HuggingFaceBase):
        yield model(plan.loaded.experiment.base)
    name = plan.loaded.experiment.machine.engine
    missing = engine_named(name).missing()
    yield Finding("engine", "fail", f"{name}: {missing.message}") if missing else Finding("engine", "ok", name)


def _disk(plan: Plan, foreseen: Forecast | None) -> Finding:
    wanted = foreseen.disk_bytes if foreseen else estimate(plan)["bytes"]
    there = next(folder for folder in (plan.runs.absolute(), *plan.runs.absolute().parents) if folder.exists())
    free = shutil.disk_usage(there).free
    if wanted is None:
        return Finding("plan disk", "warn", f"{free / GIB:.1f} GiB free; what it takes is not known yet. Use `persona-lab plan CONFIG --measure`.")
    said = f"takes {wanted / GIB:.2f} GiB of {free / GIB:.1f} GiB free"
    return Finding("plan disk", "ok", said) if wanted < free else Finding("plan disk", "fail", f"{said}. Free some, or use --runs on another disk.")


def _foretold(plan: Plan, memory: float) -> Finding:
    """Of a plan that was not measured: a Hugging Face base tells from its config what training on it takes of one device."""
    unknown = Finding("plan memory", "warn", "not measured. Use `persona-lab plan CONFIG --measure`.")
    if not isinstance(plan.loaded.experiment.base, HuggingFaceBase):
        return unknown
    import torch

    from persona_lab.experiment.checking.footprint import footprints

    try:
        found = footprints(plan)
    except ModelError:
        return unknown  # what is wrong with the model has a finding of its own
    if not found:
        return Finding("plan memory", "ok", "nothing is trained")
    largest = found[0]
    device = torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else memory
    said = f"{largest.total / GIB:.2f} GiB by one worker in {largest.stages}, of {device / GIB:.1f} GiB of one device"
    if largest.total < device:
        return Finding("plan memory", "ok", said)
    fix = "Set machine.micro_batch, or machine.checkpoint_activations=true, or divide the base: configs/accelerate/fsdp2.yaml."
    return Finding("plan memory", "fail", f"{said}. {fix}")


def _memory(foreseen: Forecast, memory: float) -> Finding:
    if not foreseen.seconds:
        return Finding("plan memory", "ok", "everything is made")
    said = f"{foreseen.peak_bytes_all / GIB:.2f} GiB by {foreseen.workers} workers, of {memory / GIB:.1f} GiB"
    return Finding("plan memory", "ok", said) if foreseen.peak_bytes_all < memory else Finding("plan memory", "fail", f"{said}. Set machine.workers or machine.stack lower.")


def hub() -> Finding:
    """Whether the hub may be asked."""
    from huggingface_hub.constants import HF_HUB_CACHE

    setting = next((name for name in OFFLINE if os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")), None)
    return Finding("hub", "ok", f"{f'offline by {setting}' if setting else 'may be asked; HF_HUB_OFFLINE=1 keeps it out'}; models are kept in {HF_HUB_CACHE}")


def model(base: HuggingFaceBase) -> Finding:
    """Whether the model of a config is here and whole; of a hub id the copy in the cache is looked at, and nothing is asked of the network."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    from persona_lab.models.hub import offline
    from persona_lab.models.inspection import check_model_folder, is_folder

    name = f"{base.path}@{base.revision or 'main'}"
    folder = Path(base.path)
    if not is_folder(base.path):
        try:
            folder = Path(snapshot_download(base.path, revision=base.revision, local_files_only=True))
        except HFValidationError as error:
            return Finding("model", "fail", printable(f"{base.path} is no hub id: {error}"))
        except LocalEntryNotFoundError:
            away = offline()
            said = "is not in the cache of the hub"
            fix = f"Use `hf download {base.path}{f' --revision {base.revision}' if base.revision else ''}` where there is a network."
            return Finding("model", "fail" if away else "warn", f"{name} {said}{', and the hub must not be asked' if away else ', and will be downloaded'}. {fix}")
    try:
        check_model_folder(folder)
    except ModelError as error:
        return Finding("model", "fail", error.problems[0].message)
    return Finding("model", "ok", f"{name} is in {folder}" if folder != Path(base.path) else f"{folder} is whole")
