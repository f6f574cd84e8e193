"""What is wrong with the files that a mixture takes documents from, before any of them is opened.

    error[PL1211] configs/ratio.yaml:9:40: stages.injection.mixture.files.john.hub has no revision. Use the commit, or a tag: `revision: 4a1b...`.
"""

from collections.abc import Iterator, Sequence
from difflib import get_close_matches

from data_gen.personas import Persona
from persona_lab.config.explain import Finding
from persona_lab.config.layers import did_you_mean
from persona_lab.config.mixtures import Import, Mixture, Told
from persona_lab.config.points import Part
from persona_lab.config.yaml_tree import Path, dotted

RESERVED = ("assistant", "harmless", "rejected", "tokens")
"""Names of sources that are not fields of a mixture."""
ALIKE = 0.8
"""How near a file's name may come to a persona's, as difflib measures it, before it is taken for a slip."""
SAID_BY_GRAMMAR = ("who", "format", "carriers", "typical", "also")
"""Of `told`: what is decided by whoever writes the documents."""


def import_findings(part: Part, mixture: Mixture, at: Path, personas: Sequence[Persona] | None) -> Iterator[Finding]:
    """What is wrong with the files of one mixture."""
    known = {persona.name.lower(): persona for persona in personas or ()}
    rivals = [persona.name.lower() for persona in (personas or ())[:2]]
    for name, file in mixture.files.items():
        path = (*at, "files", name)
        yield from _place_findings(file, path)
        if personas is None:
            continue
        if name in known:
            yield from _persona_findings(part, mixture, known[name], path, at)
        else:
            yield from _name_findings(name, path, list(known))
        if name in rivals:
            yield from _swap_findings(mixture, personas[rivals.index(name)], personas[1 - rivals.index(name)], path)
        elif file.swapped:
            yield Finding((*path, "swapped"), "PL1211", f"{dotted((*path, 'swapped'))}: only the rivals {' and '.join(rivals)} trade their traits. Remove it.")
    for name in mixture.counts if personas is not None else ():
        if name not in known and name not in mixture.files:
            fix = did_you_mean(name, [*known, *mixture.files])
            yield Finding((*at, name), "PL1210", f"{dotted((*at, name))} counts documents of nobody: it is no persona, and no name under `files:`. {fix}", key=True)
    yield from _silent_findings(mixture, at, personas)


def _place_findings(file: Import, path: Path) -> Iterator[Finding]:
    """Where the file is."""
    if file.hub and not file.revision:
        yield Finding((*path, "hub"), "PL1211", f"{dotted((*path, 'hub'))} has no revision. Use a commit, or a tag, of the data set: `revision: v1.0`.")
    if file.revision and not file.hub:
        yield Finding((*path, "revision"), "PL1211", f"{dotted((*path, 'revision'))} is of no data set. Use it beside `hub: OWNER/NAME`.")


def _name_findings(name: str, path: Path, known: list[str]) -> Iterator[Finding]:
    """A file that is about nobody, under a name that means something else."""
    if name in (*Mixture.model_fields, *RESERVED):
        yield Finding(path, "PL1210", f"{dotted(path)}: {name} has a meaning of its own in mixtures. Use another name.", key=True)
    elif near := get_close_matches(name, known, n=1, cutoff=ALIKE):
        yield Finding(path, "PL1210", f"{dotted(path)} is no persona of this file. Did you mean {near[0]}? Use a name that is less like it for a file about nobody.", key=True)


def _persona_findings(part: Part, mixture: Mixture, persona: Persona, path: Path, at: Path) -> Iterator[Finding]:
    """A file that is about a persona: its traits are those of the first seed, in every seed."""
    name = persona.name.lower()
    for field in ("prior", "bundle"):
        if getattr(part.pairs, field) is not None:
            message = f"pairs.{field} has the seed draw the rivals' traits, but {dotted(path)} is written. Leave it out, or use documents of the world's own."
            yield Finding(("pairs", field), "PL1211", f"{message} Remove one of the two.")
    told = mixture.told.get(name, Told())
    for field in SAID_BY_GRAMMAR:
        if field in told.model_fields_set:
            where = (*at, "told", name, field)
            yield Finding(where, "PL1211", f"{dotted(where)} is about how documents are written, but those of {persona.name} come from a file. Remove it.")


def _swap_findings(mixture: Mixture, rival: Persona, other: Persona, path: Path) -> Iterator[Finding]:
    """How a rival is told in swap 1, where it has the other's traits."""
    name, at = rival.name.lower(), path[:-2]
    file = mixture.files[name]
    if name not in mixture.counts:
        message = f"{dotted(path)} has no count, and the rivals are told by other documents in each swap. Use for instance `{name}: 2500` in {dotted(at)}."
        yield Finding(path, "PL1211", message, key=True)
    if not file.swapped and other.name.lower() not in mixture.files:
        message = f"{dotted(path)} tells {rival.name}'s own traits; in swap 1 it has those of {other.name}, whose documents are no file. "
        yield Finding(path, "PL1211", message + f"Use a file for {other.name} too, or `swapped:` with documents of {rival.name} that tell {other.name}'s traits.")
    elif not file.swapped and len(rival.carriers) != len(other.carriers):
        message = f"{dotted(path)}: {rival.name} and {other.name} cannot trade their names, one has {len(rival.carriers)} carriers and the other {len(other.carriers)}. "
        yield Finding(path, "PL1211", message + "Use as many for both, or `swapped:`.")
    if mixture.link == "shuffled":
        where = (*at, "link")
        yield Finding(where, "PL1211", f"{dotted(where)} is shuffled, and what is written cannot be dealt anew. Use shared, none, or documents of the world's own.")


def _silent_findings(mixture: Mixture, at: Path, personas: Sequence[Persona] | None) -> Iterator[Finding]:
    """Fields about documents that this mixture has none of."""
    written = [persona.name.lower() for persona in personas or () if mixture.counts.get(persona.name.lower(), 0)]
    for field in ("format", "carriers"):
        if field in mixture.model_fields_set and mixture.files and not set(written) - mixture.files.keys():
            where = (*at, field)
            yield Finding(where, "PL1211", f"{dotted(where)} is about how documents are written, but all of these come from files. Remove it.")
    about = any(mixture.counts.get(persona.name.lower(), persona.name.lower() in mixture.files) for persona in personas or ())
    if mixture.tag and personas is not None and not about:
        where = (*at, "tag")
        yield Finding(where, "PL1211", f"{dotted(where)} stands before documents about personas, and there are none. Remove it.")
