"""Priors of the named parameters, and the forms in which the exact integration takes them.

Normal(1, .5)          a coefficient that is integrated out in closed form
HalfNormal(1)          a coefficient that is never negative: a normal cut off at 0, in closed form too
LogNormal(1, 1)        median 1; as a coefficient a sum of narrow normals (`pieces`), as a shape the nodes of a rule (`nodes`)

`per` names a column of the run frame whose unit is not nats: the prior then is about the largest absolute value of that
column, so that a coefficient of 1 moves eta by 1 nat over the range that was run. SCIENCE.md section 5 declares the scales.
"""

from dataclasses import dataclass, replace

import numpy as np
from scipy.special import ndtri

from persona_lab.science.effects import Frame

PIECE = 0.2
"""Widest piece of a log-normal prior, in log units: narrow enough for a normal of the same mean and variance to stand for it."""
NODES = 25
"""Values of a shape parameter, a quarter of its log standard deviation apart."""
REACH = 7.0
"""Standard deviations that the pieces of a log-normal span on either side."""


@dataclass(frozen=True)
class Normal:
    """A coefficient of either sign."""

    mean: float
    sd: float

    def scaled(self, factor: float) -> "Normal":
        """The same prior, `factor` times as wide."""
        return replace(self, sd=self.sd * factor)

    def one(self, frame: Frame) -> float:
        """What one unit of this prior is in the units of the frame."""
        return 1.0

    def at(self, frame: Frame) -> "Normal":
        """The prior in the units of the frame."""
        return self

    def draw(self, rng: np.random.Generator) -> float:
        """One value."""
        return float(rng.normal(self.mean, self.sd))


@dataclass(frozen=True)
class HalfNormal:
    """A coefficient of one sign, likeliest at none."""

    sd: float
    per: str = ""

    def scaled(self, factor: float) -> "HalfNormal":
        """The same prior, `factor` times as wide."""
        return replace(self, sd=self.sd * factor)

    def one(self, frame: Frame) -> float:
        """What one unit of this prior is in the units of the frame: 1 over the largest absolute value of the column."""
        largest = float(np.abs(frame[self.per].astype(float)).max()) if self.per else 1.0
        return 1 / largest if largest > 0 else 1.0

    def at(self, frame: Frame) -> "HalfNormal":
        """The prior in the units of the frame."""
        return HalfNormal(self.sd * self.one(frame))

    def draw(self, rng: np.random.Generator) -> float:
        """One value."""
        return float(abs(rng.normal(0, self.sd)))

    def pieces(self) -> "Pieces":
        """As normals cut off at 0."""
        return Pieces(np.zeros(1), np.zeros(1), np.array([self.sd]))


@dataclass(frozen=True)
class LogNormal:
    """A positive number known to a factor."""

    median: float
    sd: float
    """Of its logarithm."""
    per: str = ""

    def scaled(self, factor: float) -> "LogNormal":
        """The same prior, `factor` times as wide on the log scale."""
        return replace(self, sd=self.sd * factor)

    def one(self, frame: Frame) -> float:
        """What one unit of this prior is in the units of the frame: the median absolute value of the column."""
        middle = float(np.median(np.abs(frame[self.per].astype(float)))) if self.per else 1.0
        return middle if middle > 0 else 1.0

    def at(self, frame: Frame) -> "LogNormal":
        """The prior in the units of the frame."""
        return LogNormal(self.median * self.one(frame), self.sd)

    def draw(self, rng: np.random.Generator) -> float:
        """One value."""
        return float(self.median * np.exp(rng.normal(0, self.sd)))

    def pieces(self) -> "Pieces":
        """As narrow normals whose logarithms sum to the prior; each has the mean and variance of its narrow log-normal."""
        width = min(PIECE, 0.2 * self.sd)
        around = (self.sd**2 - width**2) ** 0.5
        log_J = np.arange(-REACH * around, REACH * around, width)
        weight_J = -0.5 * (log_J / around) ** 2
        mean_J = self.median * np.exp(log_J + width**2 / 2)
        return Pieces(weight_J - np.logaddexp.reduce(weight_J), mean_J, mean_J * np.expm1(width**2) ** 0.5)

    def nodes(self, count: int = NODES) -> tuple[np.ndarray, np.ndarray]:
        """Values and log weights of a trapezoid rule on the log scale."""
        z_V = np.linspace(-3, 3, count)
        weight_V = -0.5 * z_V**2
        return self.median * np.exp(self.sd * z_V), weight_V - np.logaddexp.reduce(weight_V)


Prior = Normal | HalfNormal | LogNormal


@dataclass(frozen=True)
class Pieces:
    """A density on the positive numbers as a weighted sum of normals, each cut off at 0."""

    log_weight_J: np.ndarray
    mean_J: np.ndarray
    sd_J: np.ndarray


def half_normal_nodes(sd: float, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Values and log weights of a Gauss-Legendre rule over the quantiles of a half-normal."""
    u, weight = np.polynomial.legendre.leggauss(count)
    return sd * ndtri(0.5 + (u + 1) / 4), np.log(weight / 2)
