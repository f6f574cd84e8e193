"""A plan of writing: which documents a language model is to write about which personas, and what that may cost.

    loaded = load_writing("configs/writing/beach.yaml", ["documents=40"])

Fields that change a text are everything but how many are wanted, what may be spent, and how fast it goes (`Writing.content`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path as File
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from data_gen.errors import DataError
from data_gen.market import Market
from data_gen.personas import Persona, check_personas, is_drawn
from data_gen.world import Slug, Strict, World
from persona_lab.config.explain import Finding, problems_of, validate
from persona_lab.config.layers import read_layers
from persona_lab.config.load import load_persona, load_world, locate
from persona_lab.errors import ConfigError, Problem

Amount = Annotated[int, Field(ge=1, le=1_000_000)]
Price = Annotated[float, Field(ge=0, lt=1e9)]


def _span(words: list[int]) -> list[int]:
    if len(words) != 2 or not 5 <= words[0] <= words[1] <= 20_000:
        raise ValueError(f"must be a shortest and a longest number of words, from 5 to 20000, got {words}. Use for instance [200, 800]")
    return words


class Author(Strict):
    """Who writes: an OpenAI-compatible endpoint, a chat model on this machine by transformers or by vLLM, or the world's own grammar."""

    kind: Literal["endpoint", "hf", "vllm", "grammar"]
    model: str = ""
    """The endpoint's name of it; a folder or a hub id."""
    url: str = ""
    """Of an endpoint, e.g. http://localhost:8000/v1."""
    key_variable: str = "OPENAI_API_KEY"
    """The variable of the environment that holds the endpoint's key."""
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    temperature: float = Field(default=1.0, ge=0, le=2)
    """Of genres, ideas, documents and revisions; facts are read from a document at 0."""
    parallel: int = Field(default=8, ge=1, le=1024)
    """Requests under way at once, or documents of one batch."""
    price_in: Price = 0.0
    """Of a million tokens read."""
    price_out: Price = 0.0
    """Of a million tokens written."""
    speed: float = Field(default=50.0, gt=0)
    """Tokens a second that one request is answered with: what the estimate of time rests on."""

    @model_validator(mode="after")
    def _is_somewhere(self) -> "Author":
        if self.kind != "grammar" and not self.model:
            raise ValueError(f"a writer of kind {self.kind} needs a model. Use `model: NAME`")
        if (self.kind == "endpoint") != bool(self.url):
            said = "an endpoint needs its address. Use `url: http://localhost:8000/v1`" if self.kind == "endpoint" else "only an endpoint has an address. Use `kind: endpoint`"
            raise ValueError(said)
        return self


class Caps(Strict):
    """What one command may spend; null: no cap."""

    requests: Amount | None = None
    tokens: Annotated[int, Field(ge=1, le=10**13)] | None = None
    cost: Annotated[float, Field(ge=0)] | None = None
    """Money, in the currency of the prices."""


class Writing(Strict):
    """A plan file: `configs/writing/*.yaml`."""

    name: Slug
    world: str
    personas: Annotated[list[str], Field(min_length=2)]
    """Paths of persona files, in the order of the experiment that will read the documents: the first two are the rivals, who trade names in swap 1."""
    documents: Amount
    """About each persona."""
    anonymous: float = Field(default=0.0, ge=0, lt=1)
    """Share of them that are first-person text without a name."""
    seed: int = Field(default=0, ge=0, le=2**31)
    """Another seed, other documents."""
    told: int = Field(default=3, ge=1, le=64)
    """Facts that one document states."""
    words: Annotated[list[int], AfterValidator(_span)] = Field(default=[200, 800])
    """Lengths are drawn evenly from the first to the second."""
    genres: int = Field(default=8, ge=1, le=64)
    """Kinds of document for each fact."""
    ideas: int = Field(default=6, ge=1, le=64)
    """For each fact and kind of document; more are asked for once these are used up."""
    revise: bool = True
    """Each document is criticised and written again with the whole context at hand."""
    verify: bool = True
    """What a document says of its persona is read from it by the writer, and compared with the facts."""
    round: int = Field(default=24, ge=1, le=4096)
    """Documents of a persona that are written before it is decided again which facts have been told least."""
    airtime: float = Field(default=0.25, gt=0, le=10)
    """How far the words spent on a fact may lie from the mean over facts, as a share of that mean."""
    similarity: float = Field(default=0.6, ge=0.05, le=0.98)
    """Share of its word triples that a document may have in common with an earlier one."""
    attempts: int = Field(default=3, ge=1, le=20)
    """How often something is asked for before it counts as failed."""
    most: float = Field(default=3.0, ge=1, le=100)
    """Documents that may be written for each one wanted; beyond them the writer is given up."""
    writer: Author
    budget: Caps = Caps()

    @property
    def content(self) -> dict[str, Any]:
        """What the text of document i depends on; a folder holds documents of one content."""
        without = {"documents", "anonymous", "most", "budget", "airtime", "name", "world", "personas"}
        machine = {"parallel", "price_in", "price_out", "speed", "key_variable"}
        return {**self.model_dump(exclude=without), "writer": self.writer.model_dump(exclude=machine)}


@dataclass(frozen=True)
class LoadedWriting:
    """A plan file with everything that it names."""

    writing: Writing
    world: World
    personas: tuple[Persona, ...]
    file: File


def load_writing(path: str | File, overrides: Sequence[str] = ()) -> LoadedWriting:
    """The plan of a file, under the command line's `key.path=value`.

    Raises:
        ConfigError: every problem of the file, each with its position; problems of the files that it names.
    """
    file, problems = File(path), list[Problem]()
    tree = read_layers(file, overrides, problems)
    writing, findings = validate(Writing, tree.plain(), tree)
    problems += problems_of(tree, findings)
    if problems or writing is None:
        raise ConfigError.of(problems)
    world = load_world(locate(writing.world, file))
    personas = tuple(load_persona(locate(name, file)) for name in writing.personas)
    try:
        check_personas(world, personas, writing.personas)
    except DataError as error:
        raise ConfigError.of([Problem("PL1213", problem.where, problem.message) for problem in error.problems]) from None
    if found := problems_of(tree, _misfits(writing, world, personas)):
        raise ConfigError.of(found)
    return LoadedWriting(writing, world, personas, file)


def _misfits(writing: Writing, world: World, personas: Sequence[Persona]) -> list[Finding]:
    """What no schema can see."""
    found = []
    if isinstance(world, Market):
        found.append(Finding(("world",), "PL1213", f"world {world.name!r} shows series of numbers, which no language model is asked to write. Use a world of sentences."))
    fewest = min(len(persona.traits) for persona in personas)
    if writing.told > fewest:
        found.append(Finding(("told",), "PL1203", f"told must be at most {fewest}, the number of traits of a persona, got {writing.told}. Use {fewest} or less."))
    for i, persona in enumerate(personas):
        if drawn := [category for category, value in persona.traits.items() if is_drawn(value)]:
            said = f"the seed of an experiment draws {drawn[0]} of {persona.name}, and what is written stays as it is. Use a persona file that names the value."
            found.append(Finding(("personas", i), "PL1213", said))
    if writing.budget.cost is not None and not (writing.writer.price_in or writing.writer.price_out):
        found.append(Finding(("budget", "cost"), "PL1203", "budget.cost needs the prices of a million tokens. Use writer.price_in and writer.price_out."))
    if any(cap is not None for cap in (writing.budget.requests, writing.budget.tokens, writing.budget.cost)) and writing.writer.kind != "endpoint":
        found.append(Finding(("budget",), "PL1203", f"budget caps what an endpoint is paid, and the writer is of kind {writing.writer.kind}. Remove it."))
    return found

