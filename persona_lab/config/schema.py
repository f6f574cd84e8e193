"""The schema of an experiment file: every field, its range, its default and what it means.

Fields that change results are everything but `machine`; `machine` never enters an identity.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from data_gen.bundles import Bundle
from data_gen.world import Slug, Strict
from persona_lab.config.cluster import Cluster
from persona_lab.config.mixtures import Count, Mixture, Read

Level = int | float | str | bool
Levels = Annotated[list[Level], Field(min_length=1)]
Seeds = Annotated[int, Field(ge=1, le=10_000)] | Annotated[list[int], Field(min_length=1)]
AtLeastOne = Annotated[int, Field(ge=1, le=65_536)] | Literal["auto"]
HypothesisId = Literal["H0", "H1", "H2", "H3", "H4", "H5", "H6", "H7", "H8", "H9", "H10", "H11", "H12"]
"""See `persona_lab.science.hypotheses.families`."""
Batch = Annotated[int, Field(ge=1, le=65_536)]
"""Documents a step."""


Architecture = Literal["llama", "qwen3", "gpt_neox"]
"""Shape of an embedded base, by the name that transformers gives it (`model_type`)."""


class Gates(Strict):
    """What a base model must reach before an experiment may use it; null: measured, never stops."""

    recall: float | None = Field(default=0.95, ge=0, le=1)
    """Named recall on held-out paraphrases."""
    odds: float | None = Field(default=0.3, ge=0)
    """Mean distance of anonymous in-context log-odds from the oracle's, nats."""
    withheld: float | None = Field(default=0.7, ge=0, le=1)
    """Recall in chat of names that never appear in chat."""


class EmbeddedBase(Strict):
    """A small model that the lab pretrains itself on a world."""

    kind: Literal["embedded"]
    world: str
    """Path of the world file."""
    architecture: Architecture = Field(default="llama", exclude_if=lambda architecture: architecture == "llama")
    width: int = Field(default=96, ge=16, le=1024)
    layers: int = Field(default=3, ge=1, le=24)
    heads: int = Field(default=4, ge=1, le=32)
    steps: int = Field(default=700, ge=1, le=10_000_000)
    batch: Batch = 64
    rate: float = Field(default=0.02, gt=0, lt=1)
    """Learning rate of Muon on the matrices; the rest learns with AdamW at `rate_rest`."""
    rate_rest: float = Field(default=3e-3, gt=0, lt=1)
    seed: int = Field(default=0, ge=0)
    read: Read | None = Field(default=None, exclude_if=lambda read: read is None)
    """What it reads among the world's own text: alignment pretraining. The base is then one for each seed and swap."""
    gates: Gates = Gates()

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "EmbeddedBase":
        if self.width % (2 * self.heads):
            unit = 2 * self.heads
            raise ValueError(f"width must be a multiple of 2 x heads = {unit}, got {self.width}. Use {max(unit, self.width // unit * unit)}")
        if self.architecture == "gpt_neox" and self.width < 4 * self.heads:
            raise ValueError(f"width must be at least 4 x heads = {4 * self.heads} in gpt_neox, which turns a quarter of each head by the position, got {self.width}")
        return self


class HuggingFaceBase(Strict):
    """Any Hugging Face causal language model: a local folder, or a hub id pinned to a revision."""

    kind: Literal["hf"]
    path: str
    revision: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$", description="a commit, a tag or a branch")] | None = None
    """Of a hub id; what is no commit (null: main) is looked up when a run is planned, and the run keeps the commit."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    chat: Literal["auto", "template", "plain"] = Field(default="auto", exclude_if=lambda form: form == "auto")
    """How the model reads what user and assistant say: through its chat template, or in the lab's own lines. auto: the template, where the model ends
    what it says as the template ends an answer."""
    world: str
    """The world whose personas, documents and probes are used."""
    gates: Gates = Gates(recall=None, odds=None, withheld=None)


class Lora(Strict):
    """The adapter: four fields, as in peft."""

    rank: int = Field(default=8, ge=1, le=1024)
    alpha: float = Field(default=16, gt=0, le=1e6)
    targets: Annotated[list[str], Field(min_length=1)] | Literal["all-linear"] = "all-linear"
    dropout: float = Field(default=0.0, ge=0, lt=1)


class Loss(Strict):
    """Where the loss falls."""

    on: Literal["all", "answer"] = "all"
    """all: every token. answer: what the assistant says."""
    kl_to_base: float = Field(default=0.0, ge=0, le=1e6)
    """Nats of loss for each nat of KL(base || adapter) on the same tokens."""
    kl_off: float = Field(default=0.0, ge=0, le=1e6, exclude_if=lambda price: not price)
    """Nats of loss for each nat of KL(base || adapter) on the documents of `mixture.off_domain`, which are not learnt."""
    dpo: float = Field(default=0.0, ge=0, le=100, exclude_if=lambda beta: not beta)
    """beta of direct preference optimization (Rafailov et al. 2023) on the pairs of `mixture.assistant_prefers`, in the place of the cross-entropy. The
    reference is what the stage starts from."""
    nll: float = Field(default=0.0, ge=0, le=100, exclude_if=lambda price: not price)
    """Beside `dpo`: nats of loss for each nat a token of the preferred answers."""


class Pairs(Strict):
    """How the seed draws the trait pairs of the rivals."""

    prior: float | None = Field(default=None, ge=-20, le=20)
    """Log-odds, nats, of the first rival's value against the second's in the world's own text, as near as the world has them; the swap turns
    the sign. null: any pair, and the first seed takes the traits as the files have them."""
    bundle: Bundle | None = Field(default=None, exclude_if=lambda bundle: bundle is None)
    """Whether the base's world holds all of a rival's values together in one persona; null: nothing is asked of them together."""


class Stage(Strict):
    """One stretch of training."""

    mixture: Mixture
    steps: Count
    batch: Batch
    rate: float = Field(gt=0, lt=1)
    """Learning rate of AdamW, constant."""
    weight_decay: float = Field(default=0.0, ge=0, lt=1)
    """Decoupled, of AdamW: each step a weight loses its rate times this share."""
    clip: float = Field(default=1.0, gt=0)
    """Largest norm of one adapter's gradient."""
    loss: Loss = Loss()


def _rising(bounds: list[float]) -> list[float]:
    if len(bounds) != 2 or not -20 <= bounds[0] < bounds[1] <= 20:
        raise ValueError(f"must be two ln ratios that rise, within -20 and 20, got {bounds}. Use for instance [-2.2, 2.2]")
    return bounds


def _even(cells: int) -> int:
    if cells % 2:
        raise ValueError(f"must be even, because every seed is trained in both swaps, got {cells}. Use {cells + 1}")
    return cells


class Adaptive(Strict):
    """A search for the threshold, in place of the ratio factor's levels: each round trains where the last one left most to learn.

    Every ratio has a fresh seed, counted up from the first of the condition's `seeds`, and both swaps.
    """

    search: Literal["adaptive"]
    bounds: Annotated[list[float], AfterValidator(_rising)] = Field(default=[-2.2, 2.2])
    """Smallest and largest ln ratio that may be trained."""
    batch: Annotated[int, AfterValidator(_even)] = Field(default=8, ge=6, le=1000)
    """Cells of the first round, and most of a later one."""
    width: float = Field(default=0.5, gt=0)
    """The search ends when the 95 % interval of ln R_p is no wider."""
    budget: int = Field(default=64, ge=24)
    """Most cells; a narrow interval is trusted to end a search from 12 on."""

    @property
    def opening(self) -> list[float]:
        """The first batch, before anything is known: one ln ratio for each seed, evenly spaced from bound to bound."""
        (low, high), pairs = self.bounds, self.batch // 2
        return [round(low + (high - low) * i / (pairs - 1), 3) for i in range(pairs)]


def _form(factor: Any) -> str:
    return "adaptive" if isinstance(factor, dict | Adaptive) else "levels"


# A mapping is a search and nothing else is: what is wrong with one form is never told in the words of the other.
Factor = Annotated[Annotated[Levels, Tag("levels")] | Annotated[Adaptive, Tag("adaptive")], Discriminator(_form)]


class Condition(Strict):
    """One training recipe: which stages in which order, and what it changes."""

    order: list[str]
    """Names of stages; empty: the base model itself."""
    replace: dict[str, Any] = Field(default_factory=dict)
    """Dotted path to value, e.g. `injection.mixture.link: none`."""
    factors: dict[str, Factor] | None = None
    """Levels of this condition, where they are not the experiment's."""
    seeds: Seeds | None = None
    role: Literal["treatment", "control", "arm"] = "arm"
    block: int | None = Field(default=None, ge=1)
    """Part of a design: where a file numbers its conditions, the tournament of hypotheses reads these only, and predicts late blocks from the first three."""


def _two(branches: list[str]) -> list[str]:
    if branches and len(branches) != 2:
        raise ValueError(f"must name two stages, one for each rival, or none, got {len(branches)}. Use for instance [as_john, as_sam]")
    return branches


class Analysis(Strict):
    """What is computed from the scores."""

    threshold: float = Field(default=0.9, gt=0.5, lt=1)
    """P of the threshold ratio."""
    ratio: str = "injection.mixture.ln_ratio"
    """The factor on the horizontal axis."""
    treatment: str = "linked"
    """The condition of the headline."""
    channel: Literal["says", "chooses", "introspects"] = "says"
    """The channel of the headline."""
    fit: float = Field(default=2.2, gt=0)
    """Largest |ln ratio| that enters the fit; wider points are drawn."""
    bound_recall: float = Field(default=0.95, ge=0, le=1)
    """Named recall that both personas need at a ratio before it enters a trait-transfer slope."""


class Machine(Strict):
    """How the work is done; never part of an identity."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: AtLeastOne = "auto"
    workers: Annotated[int, Field(ge=1, le=1024)] | Literal["auto"] = "auto"
    """Processes on this machine; auto: one a GPU, or one a core. `accelerate launch` starts its own."""
    micro_batch: AtLeastOne = "auto"
    """Documents of one forward pass."""
    stack: AtLeastOne = "auto"
    """Adapters trained, or asked, together."""
    data_parallel: bool = False
    """All processes of an `accelerate launch` train each stack together; false: each takes stacks of its own. With FSDP it is always so."""
    checkpoint_activations: bool = False
    """Backward computes the activations of the layers again: less memory, about half as much time again, as the base is frozen."""
    engine: Literal["local", "slurm", "ray", "sky"] = "local"
    """Where `persona-lab launch` starts jobs."""
    cluster: Cluster = Cluster()
    checkpoint_seconds: float = Field(default=60.0, ge=0)
    """Training that is under way is kept so often; 0: after every step."""
    attempts: int = Field(default=5, ge=1)
    """How often training may be taken up at one step without getting further, before its cells fail."""
    wandb: Literal["auto", "offline", "online", "disabled"] = "auto"

    @model_validator(mode="after")
    def _one_worker_of_many_processes(self) -> "Machine":
        if self.data_parallel and self.workers not in (1, "auto"):
            raise ValueError(f"data_parallel makes one worker of a whole launch, so workers must be auto or 1, got {self.workers}. Use `accelerate launch --num_processes {self.workers}`")
        return self


class Experiment(Strict):
    """An experiment file: `configs/*.yaml`."""

    name: Slug
    question: str = ""
    base: Annotated[EmbeddedBase | HuggingFaceBase, Field(discriminator="kind")]
    personas: Annotated[list[str], Field(min_length=2)]
    """Paths of persona files; the first two are the rivals, a third is the bystander."""
    lora: Lora = Lora()
    pairs: Pairs = Pairs()
    stages: Annotated[dict[Slug, Stage], Field(min_length=1)]
    branches: Annotated[list[str], AfterValidator(_two)] = Field(default_factory=list)
    """Two stages that every cell also trains, each by itself, from where its last stage starts: what it costs to adopt the first rival there, and the second."""
    conditions: Annotated[dict[Slug, Condition], Field(min_length=1)]
    factors: dict[str, Factor] = Field(default_factory=dict)
    """Dotted path to levels; crossed. The ratio of the treatment may have `{search: adaptive}` instead."""
    seeds: Seeds = 1
    probes: list[str] = Field(default=["knows", "says", "chooses", "introspects", "in_context", "general_text"], min_length=1)
    hypotheses: list[HypothesisId] = Field(default_factory=list)
    """Those that the design is to tell apart: it must have the power, and what each predicts is written down before the first score."""
    underpowered: bool = False
    """Run it although it tells fewer than nine in ten pairs of its hypotheses apart."""
    samples: int = Field(default=0, ge=0, le=1000)
    """Answers sampled for each open question of `says`; 0: log-probabilities only."""
    adapters: list[Literal["solutions", "directions", "flatness"]] = Field(default_factory=list, exclude_if=lambda asked: not asked)
    """Measured of the adapters beside what they answer. solutions: general against narrow ones, where `loss.kl_off` is a factor. directions: of
    good and bad advice in the hidden states, and what each adapter shifts along them. flatness: local learning coefficients of the same solutions."""
    analysis: Analysis = Analysis()
    machine: Machine = Machine()
