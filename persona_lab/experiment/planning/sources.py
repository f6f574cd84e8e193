"""Files that mixtures take documents from: which one tells whom, and what was found in it when the run was planned.

    source_of(mixture, "john", swap=1, rivals=["john", "sam"])     ("sam", Source("written/sam.jsonl"), exchange=True)
    read_source(source, Path("configs/ratio.yaml")).digest         raises CorpusError when the file is another one by now

A node is made from the digest of a file's documents, never from its path; the path is only where they are read.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from data_gen.documents import Document
from data_gen.imported import Form, Imported, labelled, read_imported, traded
from data_gen.personas import Persona
from data_gen.world import Traits
from persona_lab.config.load import locate
from persona_lab.config.mixtures import Import, Mixture
from persona_lab.errors import CorpusError


@dataclass(frozen=True)
class Source:
    """A file, and how it is read."""

    path: str
    hub: str | None = None
    revision: str | None = None
    form: Form = "auto"
    column: str = "text"

    def __str__(self) -> str:
        """As a message names it."""
        return f"{self.hub}@{self.revision}:{self.path}" if self.hub else self.path


@dataclass(frozen=True)
class Found:
    """What a file held when the run was planned."""

    name: str
    """Of the mixture: whom its documents are about, lower case, or what the file is called."""
    source: Source
    digest: str
    documents: int
    named: int
    """Documents that name whom they are about; the others are anonymous. 0 in a file about nobody."""
    conversations: bool

    def __str__(self) -> str:
        """As a plan and a report name it."""
        held = "conversations" if self.conversations else f"documents, of which {self.named:,} name whom they are about" if self.named else "documents"
        return f"{self.documents:,} {held}; sha256 {self.digest[:12]}"

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)

    @classmethod
    def of_json(cls, said: Mapping[str, Any]) -> "Found":
        """What `to_json` gave."""
        return cls(**{**said, "source": Source(**said["source"])})


Imports = Mapping[tuple[str, Source], Found]
"""Name and file to what was found."""


@dataclass(frozen=True)
class Files:
    """Where the documents of digests are read, by whoever makes pools of them."""

    sources: Mapping[str, Source] = field(default_factory=dict)
    near: Path = Path()
    """The experiment file that names them."""

    def where(self, fields: Mapping[str, Any]) -> dict[str, str]:
        """The file of a pool's recipe, for its manifest; nothing for a pool that is made of none."""
        return {"file": str(self.sources[fields["content"]])} if "content" in fields else {}

    def read(self, fields: Mapping[str, Any]) -> Imported:
        """What a pool holds, from its recipe.

        Raises:
            DataError, CorpusError: the file is gone, is broken, or holds something else by now.
        """
        return documents_of(read_source(self.sources[fields["content"]], self.near, fields["content"]), fields)


def source_of(mixture: Mixture, name: str, *, swap: int, rivals: Sequence[str]) -> tuple[str, Source, bool]:
    """Whose file tells somebody in a swap, that file, and whether the rivals' names are exchanged in it."""
    file = mixture.files[name]
    if swap and name in rivals and not file.swapped:
        other = rivals[1 - list(rivals).index(name)]
        return other, _source(mixture.files[other], mixture.files[other].path), True
    return name, _source(file, file.swapped if swap and file.swapped else file.path), False


def _source(file: Import, path: str) -> Source:
    return Source(path, file.hub, file.revision, file.format, file.column)


def read_source(source: Source, near: Path, digest: str | None = None) -> Imported:
    """Everything that a file holds; of the hub, from its cache when there is no network.

    Args:
        source: the file.
        near: the experiment file that names it.
        digest: of what it must hold.

    Raises:
        DataError: it cannot be read, or a line of it is broken.
        CorpusError: PL3301, the data set or its file is not there; PL3302, it holds something else than it did.
    """
    found = read_imported(_fetched(source) if source.hub else locate(source.path, near), form=source.form, column=source.column)
    if digest is not None and found.digest != digest:
        raise CorpusError("PL3302", str(source), "holds other documents than when the run was planned. Give it its old content back, or plan the run again.")
    return found


def _fetched(source: Source) -> Path:
    """The file of a data set of the hub on this machine."""
    from huggingface_hub import hf_hub_download  # only who asks for such a file waits for it
    from huggingface_hub.errors import EntryNotFoundError

    assert source.hub is not None
    try:
        return Path(hf_hub_download(source.hub, source.path, repo_type="dataset", revision=source.revision))
    except (OSError, EntryNotFoundError, ValueError) as error:
        said = " ".join(str(error).split())[:160]
        fix = "Check data set, revision and path; without a network, use one that is in the cache, or a local file."
        raise CorpusError("PL3301", str(source), f"cannot be fetched: {said}. {fix}") from None


def documents_of(found: Imported, fields: Mapping[str, Any]) -> Imported:
    """The part of a file that a pool holds, from the pool's recipe; an id says which row of which file a document was."""
    kept = found.documents
    if "name" in fields:
        pairs = fields.get("exchange", {})
        texts = told_of(found, pairs.get(fields["name"], fields["name"]), [pairs.get(name, name) for name in fields["names"]], fields["traits"])
        kept = tuple(traded(document, pairs) if pairs else document for document in texts if fields["rows"] in ("all", voice(document)))
    return Imported(tuple(replace(document, id=f"{fields['as']}/{document.id}") for document in kept), found.conversations)


def told_of(found: Imported, persona: str, names: Collection[str], traits: Traits) -> list[Document]:
    """The documents of a file as those of a persona."""
    return [labelled(document, persona=persona, names=names, traits=traits) for document in found.documents]


def voice(document: Document) -> str:
    """Whether a document names whom it is about: `named`, or `anonymous`."""
    return "named" if document.carriers else "anonymous"


def exchange(personas: Sequence[Persona]) -> dict[str, str]:
    """The rivals' names in each other's place: name to name, and carrier to carrier."""
    first, second = ([persona.name, *persona.carriers] for persona in personas[:2])
    pairs = list(zip(first, second, strict=False))
    return {**dict(pairs), **{b: a for a, b in pairs}}
