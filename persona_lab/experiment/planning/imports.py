"""What the files of an experiment hold, read and checked once when it is planned.

    error[PL1211] configs/mine.yaml:9:30: stages.injection.mixture.john takes 4,506 documents at ln_ratio 2.2, written/john.jsonl holds 2,500.

Whatever is wrong with them is told before anything is made: too few documents, somebody else's, traits that the persona does not have,
words that an embedded base does not know, no answer where the loss is on answers.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from data_gen.documents import answer_spans
from data_gen.errors import DataError, DataProblem
from data_gen.imported import Imported
from data_gen.personas import Persona, deal_traits, shared_categories
from data_gen.world import Traits
from persona_lab.config import LoadedExperiment
from persona_lab.config.expand import Cell
from persona_lab.config.explain import Finding, problems_of
from persona_lab.config.mixtures import Mixture
from persona_lab.config.schema import EmbeddedBase, Stage
from persona_lab.config.yaml_tree import Path
from persona_lab.errors import ConfigError
from persona_lab.experiment.planning.recipes import linked_traits, rival_counts
from persona_lab.experiment.planning.sources import Found, Imports, Source, read_source, source_of, told_of, voice
from persona_lab.experiment.planning.written import unnamed_share
from persona_lab.models.vocabulary import PIECES, world_words

MOST = 20
"""Problems that are told of one file."""


def read_imports(loaded: LoadedExperiment, cells: Sequence[Cell]) -> Imports:
    """Every file that a cell takes documents from, whoever it is about.

    Raises:
        DataError: a file cannot be read, a line of it is broken, or says something else than the experiment.
        CorpusError: PL3301, a data set of the hub is not there.
        ConfigError: PL1211, a mixture takes more than its files hold, or has the loss where they have nothing to learn.
    """
    if not any(stage.mixture.files for cell in cells for _, stage in (*cell.stages, *cell.branches)):
        return {}
    reading = _Reading(loaded)
    seen = set[tuple[str | float | None, ...]]()
    for cell in cells:
        for name, stage in (*cell.stages, *cell.branches):
            key = (name, stage.mixture.model_dump_json(exclude={"ln_ratio"}), stage.mixture.ln_ratio, stage.loss.on, cell.swap, cell.base.kind)
            if stage.mixture.files and key not in seen:
                seen.add(key)
                reading.mixture(name, stage, cell)
    reading.end()
    return reading.found


@dataclass
class _Reading:
    """What was read so far, and what is wrong with it."""

    loaded: LoadedExperiment
    found: dict[tuple[str, Source], Found] = field(default_factory=dict)
    held: dict[Source, Imported] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    problems: dict[DataProblem, None] = field(default_factory=dict)
    looked: set[tuple[str | tuple[str, str] | Source, ...]] = field(default_factory=set)
    """Whom a file was held against already: what it says does not depend on the ratio in which it is taken."""

    def __post_init__(self) -> None:
        """The words of the world are looked up once."""
        self.known = frozenset(world_words(self.loaded.world))

    @property
    def personas(self) -> Sequence[Persona]:
        """In the order of the experiment."""
        return self.loaded.personas

    def mixture(self, name: str, stage: Stage, cell: Cell) -> None:
        """The files of one mixture, as one swap takes them."""
        mixture, at = stage.mixture, ("stages", name, "mixture")
        rivals = [persona.name.lower() for persona in self.personas[:2]]
        shared = shared_categories(self.personas)
        dealt = linked_traits(deal_traits(self.loaded.world, self.personas, 0, cell.swap), shared, mixture.link)
        traits = {persona.name.lower(): told for persona, told in zip(self.personas, dealt, strict=True)}
        for told in mixture.files:
            owner, source, _ = source_of(mixture, told, swap=cell.swap, rivals=rivals)
            key = (cell.base.kind, owner, source, *sorted(traits.get(told, {}).items()))
            if key not in self.looked:
                self.looked.add(key)
                self._look(owner, source, traits.get(told, {}), (*at, "files", told), embedded=isinstance(cell.base, EmbeddedBase))
            imported, found = self.held[source], self.found[owner, source]
            on = mixture.files[told].loss or stage.loss.on
            if on == "answer" and not imported.conversations and not any(any(answer_spans(d.text)) for d in imported.documents):
                message = f"the loss of {'.'.join(at[:2])} is on answers, and no document of {source} has any (a line that opens with `Assistant:`). "
                self.findings.append(Finding((*at, "files", told), "PL1211", message + "Use `loss: all` for this file."))
            if short := shortage(mixture, told, found, rivals, voiced=owner in traits):
                self.findings.append(Finding((*at, told if told in mixture.counts else "files"), "PL1211", f"{'.'.join(at)}.{told} {short}"))

    def _look(self, owner: str, source: Source, traits: Traits, path: Path, *, embedded: bool) -> None:
        """What a file holds, and what is wrong with it as a file about somebody who has these traits."""
        if source not in self.held:
            self.held[source] = read_source(source, self.loaded.file)
        imported = self.held[source]
        persona = next((p for p in self.personas if p.name.lower() == owner), None)
        if persona is not None:
            self._about(persona, imported, source, traits)
            self._untold(persona, imported, source, traits, path)
        if embedded:
            self._words(imported, source)
        self.found[owner, source] = found_in(owner, source, imported, persona, traits)

    def _about(self, persona: Persona, imported: Imported, source: Source, traits: Traits) -> None:
        """Documents that say of themselves that they are about somebody else, or have other traits."""
        name = persona.name
        if imported.conversations:
            said = f"holds conversations, which are what the nameless assistant says, and is to be about {name}. Use texts, or a name that is no persona's."
            self.problems[DataProblem(str(source), said)] = None
        for document in imported.documents:
            where = f"{source}, {document.id}"
            if document.persona and document.persona.lower() != name.lower():
                self.problems[DataProblem(where, f"is about {document.persona}, and stands in the file of {name}. Use one file for each persona.")] = None
            for category, value in document.traits.items():
                if traits.get(category, value) != value:
                    said = f"tells {category} {value!r}, and here {name} has {traits[category]!r}. Use documents that tell the traits of the persona file."
                    self.problems[DataProblem(where, said)] = None

    def _untold(self, persona: Persona, imported: Imported, source: Source, traits: Traits, path: Path) -> None:
        """Traits that no document tells: what is asked about them would be of nobody's making."""
        told = {category for document in told_of(imported, persona.name, (), traits) for category in document.traits}
        if missing := [f"{category} ({value})" for category, value in traits.items() if category not in told]:
            message = f"no document of {source} tells {', '.join(missing)}, which {persona.name} has. Use a persona file with the traits that are told, or write of these."
            self.findings.append(Finding(path, "PL1211", message))

    def _words(self, imported: Imported, source: Source) -> None:
        """Words that an embedded base cannot read."""
        for document in imported.documents:
            if unknown := next((word for word in re.findall(PIECES, document.text.lower()) if word not in self.known), None):
                said = f"holds the word {unknown!r}, which the world {self.loaded.world.name} does not have. Use another base model (`base: {{kind: hf}}`), or its words alone."
                self.problems[DataProblem(f"{source}, {document.id}", said)] = None

    def end(self) -> None:
        """Raise what is wrong."""
        if self.problems:
            told = list(self.problems)
            more = [DataProblem(told[MOST].where, f"and {len(told) - MOST} more documents. Mend these first.")] if len(told) > MOST else []
            raise DataError(*told[:MOST], *more)
        if self.findings:
            raise ConfigError.of(problems_of(self.loaded.tree, self.findings))


def found_in(name: str, source: Source, imported: Imported, persona: Persona | None, traits: Traits) -> Found:
    """What a file holds, about a persona or about nobody."""
    named = 0
    if persona is not None:
        named = sum(voice(document) == "named" for document in told_of(imported, persona.name, [persona.name, *persona.carriers], traits))
    return Found(name, source, imported.digest, len(imported.documents), named, bool(imported.conversations))


def shortage(mixture: Mixture, name: str, found: Found, rivals: Sequence[str], *, voiced: bool) -> str:
    """What a mixture takes more of than a file holds, as the end of a sentence; empty: nothing. `voiced`: a share of it may have to be anonymous."""
    count = rival_counts(mixture, rivals[0], rivals[1]).get(name, found.documents)
    share = unnamed_share(mixture, name) if voiced else 0.0
    at = f" at ln_ratio {mixture.ln_ratio:g}" if name in rivals and mixture.ln_ratio is not None else ""
    for taken, held, what in _parts(count, share, found):
        if taken > held:
            some = "Use a smaller count" + (", a narrower ratio" if at else "") + ", or write more."
            return f"takes {taken:,} {what}{at}, {found.source} holds {held:,}. {some}"
    return ""


def _parts(count: int, share: float, found: Found) -> Iterator[tuple[int, int, str]]:
    """Documents taken and held, of each voice; of both together where no share of them is asked for."""
    anonymous = round(count * share)
    if not anonymous:
        yield count, found.documents, "documents"
        return
    yield count - anonymous, found.named, "documents that name whom they are about"
    yield anonymous, found.documents - found.named, "documents without a name"
