"""Leases: who tries to make a node now, so that two workers seldom do the same work.

    leases/<node id>    {"beat":3,"token":"5f0c1d2e9a7b4433"}

A lease never decides what is right: a node is whole and first-wins whoever makes it (see `nodes`). So a lease that
fails, is stolen too early or lives on a disk without working locks costs time and nothing else.

The holder counts `beat` up. A lease is dead when its content has not changed for `ttl_seconds` of the observer's own
monotonic clock: the clocks of two machines are never compared, and a token, unlike a process id, is never used again.
"""

import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from persona_lab.design import canonical_json
from persona_lab.store.files import content_of, create, faults, make_folder, write_text


@dataclass
class Lease:
    """Held by whoever tries; renew it more often than every `ttl_seconds` of the others."""

    path: Path
    token: str = field(default_factory=lambda: secrets.token_hex(8))
    beat: int = 0

    @property
    def content(self) -> str:
        """What stands in the file while this lease is held."""
        return canonical_json({"token": self.token, "beat": self.beat})

    def held(self) -> bool:
        """False when somebody took it after too long a silence. EnvironmentFault."""
        with faults(self.path, doing="read"):
            return content_of(self.path) == self.content.encode()

    def renew(self) -> bool:
        """Shows that the holder lives; False when the lease is lost, and then nothing is written. EnvironmentFault."""
        if not self.held():
            return False
        self.beat += 1
        write_text(self.path, self.content)
        return True

    def release(self) -> None:
        """Lets others try at once; a lease that was lost is left to its new holder. EnvironmentFault."""
        if self.held():
            with faults(self.path):
                self.path.unlink(missing_ok=True)

    def __enter__(self) -> "Lease":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()


@dataclass
class Leases:
    """The folder of leases as one process has watched it."""

    folder: Path
    clock: Callable[[], float]
    """Monotonic seconds."""
    seen: dict[str, tuple[bytes | None, float]] = field(default_factory=dict)
    """Name to the content last seen and when it was first seen."""

    def take(self, name: str, ttl_seconds: float) -> Lease | None:
        """The lease, or None while somebody else holds it; never waits. EnvironmentFault."""
        make_folder(self.folder)
        lease = Lease(self.folder / name)
        if create(lease.path, lease.content.encode()):
            return lease
        with faults(lease.path, doing="read"):
            now, content = self.clock(), content_of(lease.path)
        before, since = self.seen.get(name, (None, now))
        if content != before:
            self.seen[name] = (content, now)
            return None
        if now - since < ttl_seconds:
            return None
        self.seen.pop(name, None)
        _evict(lease.path, content)
        return lease if create(lease.path, lease.content.encode()) else None


def _evict(path: Path, dead: bytes | None) -> None:
    """Moves a dead lease away. Of many that try, one rename finds the file."""
    aside = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    with faults(path):
        try:
            os.rename(path, aside)
        except FileNotFoundError:
            return
        moved = content_of(aside)
        if moved is not None and moved != dead:
            # Another observer was quicker, and this is its living lease: give it back.
            create(path, moved)
        aside.unlink(missing_ok=True)
