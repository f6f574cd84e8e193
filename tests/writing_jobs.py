"""Small plans of writing for tests, carried out."""

from pathlib import Path
from typing import Any

from conftest import CONFIGS
from endpoint_server import EndpointServer

from persona_lab.config.writing import load_writing
from persona_lab.experiment.making.interruption import Interruption
from persona_lab.experiment.writing.making import write_documents
from persona_lab.experiment.writing.plans import WritingJob, writing_job

BEACH, GRAMMAR, LOCAL = (CONFIGS / "writing" / f"{name}.yaml" for name in ("beach", "grammar", "beach_local"))
SMALL = ("documents=6", "anonymous=0.34", "told=2", "genres=2", "ideas=2", "round=4", "words=[20,40]", "most=8")


def job_of(file: Path, *overrides: str) -> WritingJob:
    return writing_job(load_writing(file, overrides))


def endpoint_job(server: EndpointServer, *overrides: str) -> WritingJob:
    return job_of(BEACH, *SMALL, f"writer.url={server.url}", "writer.parallel=4", *overrides)


def written(job: WritingJob, runs: Path) -> dict[str, Any]:
    with Interruption() as interruption:
        return write_documents(job, runs, "cpu", lambda what, done, total: None, interruption)
