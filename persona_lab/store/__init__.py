"""The node store: everything made is kept once, whole, under its identity.

    store = Store(Path("runs/store"))
    if not store.has(node):
        with store.attempt(node) as attempt:
            write_jsonl(attempt.folder / "rows.jsonl", rows)
    folder = store.open(node)

Imports neither torch nor pandas.
"""

from persona_lab.store.files import read_json, read_jsonl, write_json, write_jsonl, write_text
from persona_lab.store.lease import Lease
from persona_lab.store.nodes import Attempt, Conflict, NodeMissing, Store
from persona_lab.store.seal import NodeDamaged

__all__ = ["Attempt", "Conflict", "Lease", "NodeDamaged", "NodeMissing", "Store", "read_json", "read_jsonl", "write_json", "write_jsonl", "write_text"]
