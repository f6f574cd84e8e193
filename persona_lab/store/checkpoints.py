"""Checkpoints: what is kept of work under way, so that a killed worker's successor goes on from there. No torch.

    attempts/stack-3fa9.../members.json                  who is in it, in order
    attempts/stack-3fa9.../step-00000040-5f0c1d2e.../    one checkpoint, sealed as a node is: payload, manifest.json, COMMIT
    attempts/stack-3fa9.../try-00000040-9a7b4433...      somebody went on from step 40

A checkpoint belongs to an attempt and never to a node. It is written beside its place, flushed, sealed and renamed; it
is read only when every digest holds, and otherwise the one before it is taken. Older ones go once a newer one has been
read back. Which is the newest is told by its step, never by a clock.
"""

import hashlib
import logging
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from persona_lab.design import Node, canonical_json
from persona_lab.errors import CheckFailed, CorpusError
from persona_lab.store.files import create, faults, make_folder, read_json, write_json
from persona_lab.store.moves import move
from persona_lab.store.seal import NodeDamaged, inspect, seal

log = logging.getLogger(__name__)

MEMBERS = "members.json"


class Stalled(CheckFailed):
    """Attempt after attempt went on from the same step, and none got further."""


class Checkpoints:
    """Those of one stack: of its members, named by their trajectories, in the order in which they are trained."""

    def __init__(self, attempts: Path, members: Sequence[str]) -> None:
        self.members = tuple(members)
        self.folder = attempts / f"stack-{hashlib.sha256(canonical_json(list(members)).encode()).hexdigest()[:32]}"

    def begin(self, step: int, most: int) -> None:
        """Note that somebody goes on from a step.

        Raises:
            Stalled: `most` attempts have gone on from here already.
        """
        make_folder(self.folder)
        if not (self.folder / MEMBERS).exists():
            write_json(self.folder / MEMBERS, list(self.members))
        tries = list(self.folder.glob(f"try-{step:08}-*"))
        if len(tries) >= most:
            fix = f"Lower machine.checkpoint_seconds or raise machine.attempts; delete {self.folder} to start again"
            raise Stalled("PL1107", str(self.folder), f"stalled: {len(tries)} attempts went on from step {step} and none got further. {fix}.")
        create(self.folder / f"try-{step:08}-{secrets.token_hex(8)}", b"")

    def moved(self) -> None:
        """Something was gained: the attempts so far are forgiven."""
        for tried in self.folder.glob("try-*"):
            tried.unlink(missing_ok=True)

    @contextmanager
    def write(self, step: int) -> Iterator[Path]:
        """A folder for the payload of a new checkpoint, which counts once the block has ended well. EnvironmentFault."""
        token = secrets.token_hex(8)
        staged, place = self.folder / f"writing-{token}", self.folder / f"step-{step:08}-{token}"
        make_folder(staged)
        try:
            yield staged
            with faults(staged):
                seal(staged, self._identity(step), attempt=token, notes={})
                move(staged, place)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
        inspect(place, self._identity(step).id, digests=True)
        for older in self._places():
            if older != place and _step_of(older) <= step:
                shutil.rmtree(older, ignore_errors=True)

    @property
    def furthest(self) -> int:
        """Steps of the last checkpoint; 0 without one."""
        return max(map(_step_of, self._places()), default=0)

    def newest(self) -> Path | None:
        """The folder of the last checkpoint whose every byte is as it was written; each other one is told of and left alone."""
        for place in self._places():
            try:
                inspect(place, self._identity(_step_of(place)).id, digests=True)
            except NodeDamaged as error:
                log.warning("a checkpoint is damaged, the one before it is taken: %s", error)
            else:
                return place
        return None

    def remove(self) -> None:
        """The work is done, and nothing of it is needed any more."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _identity(self, step: int) -> Node:
        return Node("stage", {"stack": list(self.members), "step": step})

    def _places(self) -> list[Path]:
        """Newest first."""
        return sorted(self.folder.glob("step-*"), key=lambda place: place.name, reverse=True)


def _step_of(place: Path) -> int:
    return int(place.name.split("-")[1])


def stacks_under_way(attempts: Path) -> Iterator[Checkpoints]:
    """Every stack that was begun and not finished, the furthest first."""
    found: list[Checkpoints] = []
    for folder in attempts.glob("stack-*"):
        try:
            found.append(Checkpoints(attempts, read_json(folder / MEMBERS)))
        except CorpusError as error:
            # Finished and removed by its worker just now, or never begun in earnest.
            log.debug("%s", error)
    yield from sorted(found, key=lambda stack: (-stack.furthest, stack.folder.name))
