"""Refuses every connection but those to this machine, and writes down who tried: a line in the file that $TRIED names.

Python imports this by itself where the folder is on its path, in the processes that a command starts too.
"""

import os
import socket
import sys
from pathlib import Path
from typing import Any

HERE = (None, "", "localhost", "::", "::1", "0.0.0.0", socket.gethostname())


def is_here(asked: Any) -> bool:
    """Whether an address or a name is this machine's own: a file, loopback, or its host name."""
    if isinstance(asked, tuple):  # of a socket: host and port
        return is_here(asked[0])
    host = asked.decode() if isinstance(asked, bytes) else asked
    return host in HERE or host.startswith(("127.", "/", "\0"))


def refuse_elsewhere(owner: Any, name: str, place: int) -> None:
    """In front of a function whose argument at `place` is an address or a name; a host that has none goes on."""
    plain = getattr(owner, name)

    def guarded(*args: Any, **options: Any) -> Any:
        asked = args[place] if len(args) > place else options.get("host", args[-1] if args else None)
        if is_here(asked):
            return plain(*args, **options)
        with Path(os.environ["TRIED"]).open("a") as file:
            file.write(f"{name} {asked} by {' '.join(sys.argv[:4])}\n")
        raise OSError(101, "Network is unreachable")

    setattr(owner, name, guarded)


for name in ("connect", "connect_ex", "sendto"):
    refuse_elsewhere(socket.socket, name, -1 if name == "sendto" else 1)
for name in ("getaddrinfo", "gethostbyname", "gethostbyname_ex", "gethostbyaddr"):
    refuse_elsewhere(socket, name, 0)
