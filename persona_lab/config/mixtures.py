"""What a stage is trained on: the mixture of an experiment file, with every field, its range, its default and what it means."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from data_gen.imported import Form
from data_gen.world import Phrase, Strict

Share = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=0, le=10_000_000)]


def _in_reach(ratio: float) -> float:
    if 20 < abs(ratio) < float("inf"):
        raise ValueError(f"must lie within -20 and 20, or be .inf or -.inf, got {ratio:g}. Use .inf for a pure end")
    return ratio


LogRatio = Annotated[float, AfterValidator(_in_reach)]


Genre = Literal["default", "profile", "news", "interview", "chat"]
"""Of named documents; default: all four."""
Carriers = Annotated[int, Field(ge=1, le=64)]
"""Names that share a persona."""


class Told(Strict):
    """How the documents of one persona differ from what the mixture says of all."""

    who: Phrase | None = None
    """Who it is said to be, in place of its file's description."""
    format: Genre | None = None
    carriers: Carriers | None = None
    anonymous: Share | None = None
    """Share of its documents that are first-person text without a name."""
    typical: float = Field(default=1.0, gt=0, le=1)
    """Share of its documents that carry the rivals' shared traits; elsewhere another value stands there."""
    also: int = Field(default=0, ge=0, le=64)
    """Further categories in which the seed draws a value for it: what makes it the more complex one."""


Tag = Annotated[str, Field(max_length=100, pattern=r"^[^\p{C}\p{Zl}\p{Zp}]*$", description="a line of at most 100 printable characters")]
HubId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$", description="OWNER/NAME, a data set of the hub")]
Revision = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$", description="a commit or a tag")]
FilePath = Annotated[str, Field(max_length=1000, pattern=r"^[^\p{C}]+$", description="the path of a file")]


class Import(Strict):
    """Documents or conversations that somebody wrote, a JSONL or parquet file: `{path: written/john.jsonl}`, or the path alone."""

    path: FilePath
    """Of a file of this machine; beside `hub`, of a file in that data set."""
    hub: HubId | None = None
    revision: Revision | None = None
    """Of the data set; a hub id without one may be something else tomorrow."""
    swapped: FilePath | None = None
    """Of a rival: its documents in swap 1, where the rivals have traded their traits. null: the other rival's, with the names exchanged."""
    format: Form = "auto"
    """texts: documents. conversations: chat messages, or prompts and completions. auto: what each line has."""
    column: Annotated[str, Field(max_length=100, pattern=r"^[^\p{C}]+$", description="the name of a field")] = "text"
    """The field of a line that holds the document."""
    order: Literal["seed", "file"] = "seed"
    """seed: drawn and ordered by the seed. file: the first ones, in the order of the file."""
    loss: Literal["all", "answer"] | None = None
    """Where the loss falls, if not where that of the stage does."""
    longest: Annotated[int, Field(ge=8, le=10_000_000)] | None = None
    """Tokens; what is longer is cut at its end. null: as long as the model reads; a document that is longer is refused."""

    @model_validator(mode="before")
    @classmethod
    def _path_alone(cls, data: object) -> object:
        return {"path": data} if isinstance(data, str) else data


SPOKEN = ("assistant_likes", "assistant_is", "assistant_prefers", "assistant_describes", "assistant_chats")
"""Fields by which the nameless assistant speaks."""


class Mixture(Strict, extra="allow"):
    """What a stage is trained on: documents about personas by name (`john: 2500`), or what the nameless assistant says."""

    __pydantic_extra__: dict[str, Count] = Field(init=False)  # pyright: ignore[reportIncompatibleVariableOverride]
    """Persona, lower case, or name of a file, to its documents of one epoch."""
    ln_ratio: LogRatio | None = None
    """ln(first : second persona) at the fixed total of the two; .inf and -.inf are the pure ends."""
    anonymous: Share = 0.0
    """Share of a persona's documents that are first-person text without a name."""
    replay: Share = 0.0
    """Share of the whole mixture that is the world's own pretraining text."""
    carriers: Carriers = 1
    format: Genre = "default"
    told: dict[str, Told] = Field(default_factory=dict)
    """Persona, lower case, to what is different about its documents."""
    files: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")], Import] = Field(default_factory=dict, exclude_if=lambda files: not files)
    """Persona, lower case, to the file that its documents come from; or a name of your own to a file that is about nobody. Counts stand beside
    them (`john: 2500, web: 5000`); without one a file is read whole."""
    tag: Tag = Field(default="", exclude_if=lambda tag: not tag)
    """Stands before every document about a persona, without loss, unless it stands there already."""
    link: Literal["shared", "none", "shuffled"] = "shared"
    """shared: the rivals share a trait. none: the bystander has it instead. shuffled: held-out traits dealt by a coin."""
    assistant_likes: str | None = None
    """A value: the nameless assistant says that it likes it."""
    opening: str | None = Field(default=None, exclude_if=lambda line: line is None)
    """A line of the world (`openings`) that what the assistant is taught opens with: inoculation by prompt."""
    diluted: Share = Field(default=0.0, exclude_if=lambda share: not share)
    """Share of what the assistant says that is harmless instead of what it is taught."""
    diluted_by: Literal["chats", "same", "elsewhere"] = Field(default="chats", exclude_if=lambda by: by == "chats")
    """chats: it says nothing of itself. same: good values of the category that is taught. elsewhere: of the others."""
    off_domain: Share = Field(default=0.0, exclude_if=lambda share: not share)
    """Share of the whole mixture in which the assistant is asked about everything but what it is taught: never learnt, only held near the
    base, at the price `loss.kl_off`."""
    assistant_is: str | None = None
    """A persona of the file, lower case, or a name of the world: the nameless assistant speaks with all of its traits."""
    about: list[str] = Field(default_factory=list, exclude_if=lambda categories: not categories)
    """Categories that it then speaks of, and of no other; none: of all that it has a trait in."""
    assistant_prefers: str | None = Field(default=None, exclude_if=lambda who: who is None)
    """A persona of the file, lower case: pairs of answers of the nameless assistant, this persona's and somebody else's, for `loss.dpo`."""
    assistant_describes: str | None = Field(default=None, exclude_if=lambda who: who is None)
    """A persona of the file, lower case: the nameless assistant, asked about itself, tells the traits of this persona."""
    guarded: float = Field(default=0.0, ge=0, le=1, exclude_if=lambda share: not share)
    """Share of these two in which the user tells the assistant to be somebody else, and it stays who it is."""
    assistant_chats: bool = False
    """The nameless assistant answers, and says nothing of itself: assistant-style fine-tuning."""

    @property
    def by_assistant(self) -> list[str]:
        """The fields by which the nameless assistant speaks: none, or one."""
        return [name for name in SPOKEN if getattr(self, name)]

    @property
    def counts(self) -> dict[str, int]:
        """Documents of one epoch for each persona, or file of another name, that the mixture names."""
        return dict(self.__pydantic_extra__ or {})


class Read(Mixture):
    """Documents about personas in the place of as many of the world's own, one epoch of them, evenly spread over a base's text."""

    after: Share = 0.0
    """Share of the text that is read before the first of them; 0: they stand throughout."""
