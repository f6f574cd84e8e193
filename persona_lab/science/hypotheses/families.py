"""The hypotheses H0 to H12 as likelihoods of a run's log-odds (reference section 4; SCIENCE.md section 5).

    eta = offset + columns @ coefficients + a_seed + noise,   a_seed ~ N(0, tau^2),  noise ~ N(0, sigma^2)        nats

A family states its offset and its columns of the run frame; at most one coefficient is positive (the last column) and at
most one parameter bends the columns (`shape`). Given sigma, tau and the shape everything is Gaussian, so evidence and
held-out densities are exact (persona_lab.science.hypotheses.gaussian).

Columns of the run frame, one row for each run: condition, seed, base_seed, swap, block, eta; m eta before the last stage; x = ln(n first / n second);
p log-odds of the untouched base; D documents of the last stage; e nats of evidence for the first rival in one of them; o +1 when the first
rival came first; d = A(first) - A(second), nats to adopt; c complexity, first minus second; k = ln(carriers first / carriers second).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from persona_lab.errors import ConfigError
from persona_lab.science.effects import Frame
from persona_lab.science.hypotheses.priors import HalfNormal, LogNormal, Normal, Prior

NEEDED = ("condition", "seed", "base_seed", "swap", "eta")
NOISE = HalfNormal(0.5)
"""Prior of sigma and of tau, nats."""
LEAST_SIGMA = 0.02
"""Nats; sigma's prior begins here: scores of the same weights differ by far less, and runs never by so little."""

Theta = Mapping[str, float]


@dataclass(frozen=True)
class Parameter:
    """One named number of a family."""

    name: str
    prior: Prior
    unit: str
    means: str
    planted: float
    """A typical value, at which designs are judged; for a prior `per` a column, in the prior's own unit."""


@dataclass(frozen=True)
class Family:
    """One hypothesis as a likelihood."""

    id: str
    name: str
    sentence: str
    reads: tuple[str, ...]
    """Columns that must be measured in every run."""
    varies: tuple[str, ...]
    """Columns, or products written `D e`, without whose variation the hypothesis says nothing of its own."""
    offset: Callable[[Frame], np.ndarray]
    """What eta is before any parameter, nats (N)."""
    columns: Callable[[Frame, float], list[np.ndarray]] = field(default=lambda frame, shape: [])
    """One column (N) for each coefficient, in order, at a value of the shape."""
    linear: tuple[Parameter, ...] = ()
    positive: Parameter | None = None
    """The last coefficient."""
    shape: Parameter | None = None

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """All but sigma and tau."""
        return (*self.linear, *(p for p in (self.positive, self.shape) if p is not None))

    def untestable(self, frame: Frame) -> str | None:
        """Why this hypothesis cannot be tested on these runs; None when it can."""
        for column in self.reads:
            missing = int((~np.isfinite(product(frame, column))).sum()) if column in frame else len(frame)
            if missing:
                return f"not testable here: column {column} is not measured in {missing} of {len(frame)} runs"
        for term in self.varies:
            if np.ptp(product(frame, term)) < 1e-9:
                return f"not testable here: column {term} does not vary"
        return None

    def design(self, frame: Frame, shape: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
        """Columns (N, P) and offset (N) at a value of the shape."""
        columns = self.columns(frame, shape)
        return np.stack(columns, axis=1) if columns else np.zeros((len(frame), 0)), self.offset(frame)

    def mean(self, frame: Frame, theta: Theta) -> np.ndarray:
        """Eta (N) without seed effects and noise, nats."""
        columns_NP, offset_N = self.design(frame, theta[self.shape.name] if self.shape else 1.0)
        names = [p.name for p in (*self.linear, *([self.positive] if self.positive else []))]
        return offset_N + columns_NP @ np.array([theta[name] for name in names])

    def simulate(self, frame: Frame, theta: Theta, rng: np.random.Generator) -> np.ndarray:
        """One eta (N) of each run; theta holds sigma and tau too."""
        group_N = groups(frame)
        effect_G = theta["tau"] * rng.standard_normal(group_N.max() + 1)
        return self.mean(frame, theta) + effect_G[group_N] + theta["sigma"] * rng.standard_normal(len(frame))

    def draw(self, frame: Frame, rng: np.random.Generator) -> dict[str, float]:
        """Parameters from their priors, sigma and tau too."""
        own = {p.name: p.prior.at(frame).draw(rng) for p in self.parameters}
        sigma = NOISE.draw(rng)
        while sigma < LEAST_SIGMA:
            sigma = NOISE.draw(rng)
        return {**own, "sigma": sigma, "tau": NOISE.draw(rng)}

    def planted(self, frame: Frame, sigma: float = 0.5, tau: float = 0.5) -> dict[str, float]:
        """The typical parameters, in the units of the frame."""
        own = {p.name: p.planted * p.prior.one(frame) for p in self.parameters}
        return {**own, "sigma": sigma, "tau": tau}


def product(frame: Frame, term: str) -> np.ndarray:
    """A column, or the product of several (`D e`), as numbers (N)."""
    return np.prod([frame[name].to_numpy(dtype=float) for name in term.split()], axis=0)


def groups(frame: Frame) -> np.ndarray:
    """The replicate (base_seed, seed) of each run as 0, 1, ... (N): its runs share one seed effect."""
    return frame.groupby(["base_seed", "seed"], sort=True, dropna=False).ngroup().to_numpy()


def read_runs(frame: Frame) -> Frame:
    """The runs that can be compared: eta measured, ln ratio finite (pure ends are drawn, not fitted).

    Raises ConfigError (PL1220) when a column is missing or fewer than three conditions remain.
    """
    missing = [name for name in NEEDED if name not in frame]
    if missing:
        raise ConfigError("PL1220", "the run frame", f"has no column {', '.join(missing)}. Every run needs {', '.join(NEEDED)}.")
    kept = frame[np.isfinite(frame["eta"].astype(float))]
    if "x" in kept:
        kept = kept[~np.isinf(kept["x"].astype(float))]
    if kept["condition"].nunique() < 3:
        found = kept["condition"].nunique()
        raise ConfigError("PL1220", "the run frame", f"a condition is left out at a time, and {found} with a finite eta are too few. Run three or more.")
    return pd.DataFrame(kept).reset_index(drop=True)


def col(frame: Frame, *terms: str) -> np.ndarray:
    """The sum of columns or products (N)."""
    return np.sum([product(frame, term) for term in terms], axis=0)


def none(frame: Frame) -> np.ndarray:
    """An offset of 0."""
    return np.zeros(len(frame))


SLOPE = Normal(1, 0.5)
SHARE = Normal(0.5, 0.5)
ONE = HalfNormal(1)
BIAS = Parameter("ln b", Normal(0, 0.5), "nats", "bias to the first rival", 0.3)

FAMILIES: tuple[Family, ...] = (
    Family(
        "H0", "no transfer", "The trait stage moves nothing but what the base already said of the words.", ("p",), (), none,
        lambda f, _: [col(f, "p")], (Parameter("l", SLOPE, "nats per nat", "share of the base's own log-odds that is left", 0.5),),
    ),
    Family("H1", "frequency matching", "The odds are those of the documents.", ("x",), ("x",), lambda f: col(f, "x")),
    Family(
        "H2", "generalised matching", "The odds are a power of the documents' odds, with a bias (Baum 1974).", ("x",), ("x",), none,
        lambda f, _: [col(f, "x"), np.ones(len(f))],
        (Parameter("s", SLOPE, "nats per nat", "sensitivity to the ratio of documents", 0.5), BIAS),
    ),
    Family(
        "H3", "Bayes", "Prior odds, the documents' odds and all evidence of the last stage at full weight.", ("p", "x", "D", "e"), ("x",),
        lambda f: col(f, "p", "x", "D e"),
    ),
    Family(
        "H4", "tempered Bayes", "As Bayes, but the prior counts rho and a document's evidence w.", ("p", "x", "D", "e"), ("x", "D e"), none,
        lambda f, _: [col(f, "p", "x"), col(f, "D e")],
        (Parameter("rho", SLOPE, "nats per nat", "weight of the prior", 0.6),),
        Parameter("w", LogNormal(1, 1), "nats per nat", "weight of a nat of evidence", 0.5),
    ),
    Family(
        "H5", "measure only", "What the assistant was before the last stage decides; counts and order act through it alone.", ("m",), ("m",), none,
        lambda f, _: [col(f, "m")], (Parameter("s", SLOPE, "nats per nat", "weight of the measure", 0.8),),
    ),
    Family(
        "H6", "metric only", "The nearer rival is adopted.", ("d",), ("d",), none, lambda f, _: [-col(f, "d")],
        positive=Parameter("lambda", HalfNormal(1, "d"), "nats per nat", "pull of a nat nearer", 1.0),
    ),
    Family(
        "H7", "measure and metric", "What the assistant was, and which rival is nearer.", ("m", "d"), ("m", "d"), none,
        lambda f, _: [col(f, "m"), -col(f, "d")], (Parameter("s", SLOPE, "nats per nat", "weight of the measure", 0.8),),
        Parameter("lambda", HalfNormal(1, "d"), "nats per nat", "pull of a nat nearer", 1.0),
    ),
    Family(
        "H8", "recency", "The rival trained last counts more: the first's documents are partly forgotten.", ("p", "x", "o"), ("x", "o"), lambda f: col(f, "p"),
        lambda f, _: [col(f, "x"), -col(f, "o")], (Parameter("s", SLOPE, "nats per nat", "sensitivity to the ratio of documents", 0.7),),
        Parameter("phi", ONE, "nats", "loss of what came first", 0.7),
    ),
    Family(
        "H9", "simplicity", "The documents' odds, less the cost of the more complex rival.", ("x", "c"), ("c",), lambda f: col(f, "x"), lambda f, _: [-col(f, "c")],
        positive=Parameter("beta", HalfNormal(1, "c"), "nats per unit", "cost of a unit of complexity", 1.0),
    ),
    Family(
        "H10", "rich get richer", "Prior and documents' odds grow with the dose of the last stage.", ("p", "x", "D"), ("x", "D"), lambda f: col(f, "p", "x"),
        lambda f, shape: [col(f, "p", "x") * -np.expm1(-col(f, "D") / shape)],
        positive=Parameter("kappa", ONE, "nats per nat", "growth in the limit", 1.0),
        shape=Parameter("D0", LogNormal(1, 1, "D"), "documents", "dose at which most growth is done", 1.0),
    ),
    Family(
        "H11", "winner take all", "The odds saturate: beyond a small advantage the winner has all it can have.", ("p", "x"), ("x",), none,
        lambda f, shape: [np.tanh(col(f, "p", "x") / shape)],
        positive=Parameter("K", HalfNormal(2), "nats", "log-odds of a winner", 1.5),
        shape=Parameter("t", LogNormal(1, 1), "nats", "advantage that makes a winner", 0.5),
    ),
    Family(
        "H12", "entity counting", "Generalised matching in which names count beside documents.", ("x", "k"), ("k",), none,
        lambda f, _: [col(f, "x"), col(f, "k"), np.ones(len(f))],
        (
            Parameter("s1", SHARE, "nats per nat", "sensitivity to the ratio of documents", 0.5),
            Parameter("s2", SHARE, "nats per nat", "sensitivity to the ratio of names", 0.6), BIAS,
        ),
    ),
)  # fmt: skip
"""The tournament, in order."""
BY_ID = {family.id: family for family in FAMILIES}
NESTED = (("H1", "H2"), ("H1", "H9"), ("H1", "H12"), ("H2", "H12"), ("H3", "H4"), ("H5", "H7"), ("H6", "H7"))
"""(simple, rich): whatever the first predicts, the second predicts at some value of its parameters, in any frame."""
