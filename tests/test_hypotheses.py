"""Evidence, left-out densities and posteriors of the hypotheses are exact: each is computed again by dense integration over multivariate normals."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import halfnorm, kstest, lognorm, multivariate_normal, norm

from persona_lab.errors import ConfigError
from persona_lab.science.hypotheses.families import BY_ID, FAMILIES, NESTED, Family, groups, read_runs
from persona_lab.science.hypotheses.gaussian import held_out, log_evidence, model_of
from persona_lab.science.hypotheses.planned import standard_frame
from persona_lab.science.hypotheses.posterior import Forward, forward, parameter_samples, predictive
from persona_lab.science.hypotheses.power import misfits
from persona_lab.science.hypotheses.priors import LogNormal, Normal
from persona_lab.science.hypotheses.recovery import coverage

SIGMAS = np.geomspace(0.02, 4, 45)
"""Dense rule of the outside judge: sigma by its log, tau by its quantiles."""


def taus(count: int) -> np.ndarray:
    return halfnorm.ppf((np.arange(count) + 0.5) / count, scale=0.5)


def small_frame(seed: int = 0) -> pd.DataFrame:
    """Twelve runs of six unlike conditions, two seeds."""
    rng = np.random.default_rng(seed)
    rows = []
    for condition in range(6):
        point = {name: float(value) for name, value in zip("xpoeckd", rng.normal(size=7), strict=True)}
        for replicate in range(2):
            rows.append({"condition": f"c{condition}", "seed": replicate, "base_seed": 0, "swap": 0, "block": condition, "D": 1.0 + condition % 3, **point})
    frame = pd.DataFrame(rows)
    return frame.assign(m=frame["p"] + rng.normal(0, 0.5, len(frame)), eta=0.7 * frame["x"] + 0.5 * frame["p"] + rng.normal(0, 0.5, len(frame)))


class Dense:
    """The joint density of a family on a grid of everything that is not a coefficient of either sign."""

    def __init__(self, family: Family, frame: pd.DataFrame, points: int = 160, thin: int = 1) -> None:
        self.family, self.frame, self.y = family, frame, frame["eta"].to_numpy()
        self.w, self.log_w = self.rule(family.positive, points)
        self.shapes, self.log_shapes = self.rule(family.shape, 30)
        self.means = np.array([p.prior.mean for p in family.linear if isinstance(p.prior, Normal)])
        self.sds = np.array([p.prior.sd for p in family.linear if isinstance(p.prior, Normal)])
        same = groups(frame)[:, None] == groups(frame)
        self.noise = [(s, t, s**2 * np.eye(len(frame)) + t**2 * same) for s in SIGMAS[::thin] for t in taus(24 // thin)]
        # d sigma = sigma d log sigma
        log_prior = [halfnorm.logpdf(s, scale=0.5) + math.log(s) for s, _, _ in self.noise]
        self.log_noise = np.array(log_prior) - np.logaddexp.reduce(log_prior)

    def rule(self, parameter, points: int) -> tuple[np.ndarray, np.ndarray]:
        """Values and normalised log weights of a prior, by its density."""
        if parameter is None:
            return np.array([1.0]), np.zeros(1)
        prior = parameter.prior.at(self.frame)
        if isinstance(prior, LogNormal):
            values = np.geomspace(prior.median * math.exp(-5 * prior.sd), prior.median * math.exp(5 * prior.sd), points)
            log = lognorm.logpdf(values, prior.sd, scale=prior.median) + np.log(values)
        else:
            values = 6 * prior.sd * (np.arange(points) + 0.5) / points
            log = halfnorm.logpdf(values, scale=prior.sd)
        return values, log - np.logaddexp.reduce(log)

    def log_joint(self, keep: np.ndarray) -> np.ndarray:
        """Log weight times likelihood of the runs kept: (shape, noise, w)."""
        designs = [self.family.design(self.frame, float(shape)) for shape in self.shapes]
        x = designs[0][0][:, : len(self.means)]
        found = np.empty((len(self.shapes), len(self.noise), len(self.w)))
        for n, (_, _, noise) in enumerate(self.noise):
            judge = multivariate_normal(np.zeros(int(keep.sum())), (x @ np.diag(self.sds**2) @ x.T + noise)[np.ix_(keep, keep)])
            for v, (columns, offset) in enumerate(designs):
                residual = self.y - offset - x @ self.means - np.outer(self.w, columns[:, -1] if self.family.positive else 0 * self.y)
                found[v, n] = self.log_shapes[v] + self.log_noise[n] + self.log_w + judge.logpdf(residual[:, keep])
        return found

    def log_evidence(self, keep: np.ndarray) -> float:
        return float(np.logaddexp.reduce(self.log_joint(keep), axis=None))


def everything(frame: pd.DataFrame) -> np.ndarray:
    return np.ones(len(frame), bool)


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return small_frame()


# ------------------------------------------------------------------ exactness
@pytest.mark.parametrize("id", ["H1", "H2", "H4", "H6", "H7"])
def test_evidence_is_the_dense_integral(frame: pd.DataFrame, id: str) -> None:
    ours = log_evidence(model_of(BY_ID[id], frame), frame["eta"].to_numpy()[None], everything(frame)[None])[0, 0]
    assert ours == pytest.approx(Dense(BY_ID[id], frame).log_evidence(everything(frame)), abs=0.02)


@pytest.mark.parametrize("id", ["H10", "H11"])
def test_evidence_with_a_shape_is_the_dense_integral(frame: pd.DataFrame, id: str) -> None:
    ours = log_evidence(model_of(BY_ID[id], frame), frame["eta"].to_numpy()[None], everything(frame)[None])[0, 0]
    assert ours == pytest.approx(Dense(BY_ID[id], frame, points=40, thin=2).log_evidence(everything(frame)), abs=0.05)


def test_a_left_out_condition_is_predicted_as_by_conditioning_a_multivariate_normal(frame: pd.DataFrame) -> None:
    family, out = BY_ID["H8"], (frame["condition"] == "c2").to_numpy()
    dense, y = Dense(family, frame), frame["eta"].to_numpy()
    weight = np.exp(dense.log_joint(~out) - dense.log_evidence(~out))[0]
    columns, offset = family.design(frame)
    density = 0.0
    for (_, _, noise), weight_w in zip(dense.noise, weight, strict=True):
        cov = columns[:, :1] @ columns[:, :1].T * dense.sds[0] ** 2 + noise
        gain = cov[np.ix_(out, ~out)] @ np.linalg.inv(cov[np.ix_(~out, ~out)])
        judge = multivariate_normal(np.zeros(int(out.sum())), cov[np.ix_(out, out)] - gain @ cov[np.ix_(~out, out)])
        residual = (y - offset - columns[:, 0] * dense.means[0])[:, None] - np.outer(columns[:, 1], dense.w)
        density += weight_w @ judge.pdf((residual[out] - gain @ residual[~out]).T)
    _, lpd = held_out(model_of(family, frame), y[None], frame["condition"].to_numpy())
    assert lpd[0, 2] == pytest.approx(math.log(density), abs=0.02)


@pytest.mark.parametrize("id", ["H2", "H4", "H11"])
def test_leaving_out_is_refitting_without(frame: pd.DataFrame, id: str) -> None:
    family, y = BY_ID[id], frame["eta"].to_numpy()
    whole, lpd = held_out(model_of(family, frame), y[None], frame["condition"].to_numpy())
    for c, name in enumerate(sorted(frame["condition"].unique())):
        rest = frame[frame["condition"] != name].reset_index(drop=True)
        refit = log_evidence(model_of(family, rest), rest["eta"].to_numpy()[None], everything(rest)[None])[0, 0]
        # The rule for sigma depends on the number of runs: equal to its error, not to the last bit.
        assert whole[0] - refit == pytest.approx(lpd[0, c], abs=0.02)


def test_many_data_sets_at_once_are_each_alone(frame: pd.DataFrame) -> None:
    y = np.stack([small_frame(seed)["eta"].to_numpy() for seed in (0, 1, 2)])
    model = model_of(BY_ID["H7"], frame)
    together = held_out(model, y, frame["condition"].to_numpy())[1]
    alone = np.stack([held_out(model, one[None], frame["condition"].to_numpy())[1][0] for one in y])
    assert together == pytest.approx(alone, abs=0.01)


def test_posterior_means_and_quantiles_are_those_of_the_dense_posterior(frame: pd.DataFrame) -> None:
    dense = Dense(BY_ID["H4"], frame)
    weight = np.exp(dense.log_joint(everything(frame)) - dense.log_evidence(everything(frame)))[0]
    found = parameter_samples(BY_ID["H4"], frame, np.random.default_rng(0), 20_000)
    of_w, of_sigma = weight.sum(0), weight.sum(1).reshape(len(SIGMAS), -1).sum(1)
    assert found["w"].mean() == pytest.approx(float(of_w @ dense.w), rel=0.03)
    assert found["sigma"].mean() == pytest.approx(float(of_sigma @ SIGMAS), rel=0.02)
    for level in (0.025, 0.5, 0.975):
        assert np.quantile(found["w"], level) == pytest.approx(float(np.interp(level, of_w.cumsum(), dense.w)), rel=0.06, abs=0.01)
    columns, _ = BY_ID["H4"].design(frame)
    means = []
    for _, _, noise in dense.noise:
        precision = np.linalg.inv(noise)
        spread = 1 / (columns[:, 0] @ precision @ columns[:, 0] + dense.sds[0] ** -2)
        rest = dense.y[:, None] - np.outer(columns[:, 1], dense.w)
        means.append(spread * (columns[:, 0] @ precision @ rest + dense.means[0] / dense.sds[0] ** 2))
    assert found["rho"].mean() == pytest.approx(float((weight * np.array(means)).sum()), abs=0.01)


def test_a_prediction_of_an_untouched_run_is_the_dense_predictive_distribution(frame: pd.DataFrame) -> None:
    family, out = BY_ID["H1"], np.arange(len(frame)) == 3
    dense, y = Dense(family, frame), frame["eta"].to_numpy()
    weight = np.exp(dense.log_joint(~out) - dense.log_evidence(~out))[0, :, 0]
    residual, below = y - frame["x"].to_numpy(), 0.0
    for (_, _, noise), share in zip(dense.noise, weight, strict=True):
        gain = noise[np.ix_(out, ~out)] @ np.linalg.inv(noise[np.ix_(~out, ~out)])
        sd = math.sqrt((noise[np.ix_(out, out)] - gain @ noise[np.ix_(~out, out)]).item())
        below += share * norm.cdf((residual[3] - (gain @ residual[~out]).item()) / sd)
    assert predictive(model_of(family, frame), y, ~out, np.random.default_rng(0), 20_000)[0] == pytest.approx(below, abs=0.01)


def test_intervals_hold_the_truth_as_often_as_they_say_and_ranks_are_even() -> None:
    planned = standard_frame(seeds=2, own=0.3)
    some = planned[planned["condition"].isin(planned["condition"].unique()[::5])].reset_index(drop=True)
    found = [c for id in ("H2", "H4", "H7") for c in coverage(BY_ID[id], some, 50, draws=400)]
    assert sum(c.covered for c in found) / sum(c.sets for c in found) == pytest.approx(0.95, abs=0.03)
    assert min(kstest(c.rank_N, "uniform").pvalue for c in found) > 0.001


# ------------------------------------------------------------------ the families
def test_every_family_says_what_it_reads_and_predicts(frame: pd.DataFrame) -> None:
    for family in FAMILIES:
        theta = family.planted(frame)
        assert family.untestable(frame) is None
        assert theta.keys() == {p.name for p in family.parameters} | {"sigma", "tau"} == family.draw(frame, np.random.default_rng(0)).keys()
        used = {name for name in "xpmDeodck" if not np.array_equal(family.mean(frame, theta), family.mean(frame.assign(**{name: frame[name] + 1.0}), theta))}
        assert used == set(family.reads)
    assert [family.id for family in FAMILIES] == [f"H{i}" for i in range(13)]


def test_means_by_hand(frame: pd.DataFrame) -> None:
    by_hand = {
        "H3": frame["p"] + frame["x"] + frame["D"] * frame["e"],
        "H4": 0.6 * (frame["p"] + frame["x"]) + 0.5 * frame["D"] * frame["e"],
        "H7": 0.8 * frame["m"] - frame["d"] / frame["d"].abs().max(),
        "H10": (frame["p"] + frame["x"]) * (1 + 1 - np.exp(-frame["D"] / frame["D"].median())),
        "H11": 1.5 * np.tanh((frame["p"] + frame["x"]) / 0.5),
        "H12": 0.5 * frame["x"] + 0.6 * frame["k"] + 0.3,
    }
    for id, eta in by_hand.items():
        assert BY_ID[id].mean(frame, BY_ID[id].planted(frame)) == pytest.approx(eta.to_numpy())


def test_a_simulated_run_has_the_noise_that_is_asked_for() -> None:
    many = pd.concat([small_frame().assign(seed=lambda f, s=s: f["seed"] + 2 * s) for s in range(200)], ignore_index=True)
    theta = {**BY_ID["H1"].planted(many), "sigma": 0.3, "tau": 0.8}
    rest = BY_ID["H1"].simulate(many, theta, np.random.default_rng(0)) - many["x"]
    by_seed = rest.groupby(many["seed"])
    assert by_seed.mean().std() == pytest.approx(math.hypot(0.8, 0.3 / 6**0.5), rel=0.1)
    assert math.sqrt(by_seed.var().mean()) == pytest.approx(0.3, rel=0.05)


@pytest.mark.parametrize(
    ("change", "id", "reason"),
    [
        ({"d": 1.5}, "H6", "not testable here: column d does not vary"),
        ({"d": 1.5}, "H7", "not testable here: column d does not vary"),
        ({"e": 0.0}, "H4", "not testable here: column D e does not vary"),
        ({"k": np.nan}, "H12", "not testable here: column k is not measured in 12 of 12 runs"),
        ({"x": 0.0}, "H1", "not testable here: column x does not vary"),
    ],
)
def test_a_family_without_its_column_says_so(frame: pd.DataFrame, change: dict[str, float], id: str, reason: str) -> None:
    assert BY_ID[id].untestable(frame.assign(**change)) == reason


def test_a_missing_column_is_not_measured(frame: pd.DataFrame) -> None:
    assert BY_ID["H5"].untestable(frame.drop(columns="m")) == "not testable here: column m is not measured in 12 of 12 runs"
    with pytest.raises(ConfigError, match="has no column swap, eta"):
        read_runs(frame.drop(columns=["swap", "eta"]))
    with pytest.raises(ConfigError, match=r"PL1220.*2 with a finite eta are too few"):
        read_runs(frame[frame["condition"].isin(["c0", "c1"])])


def test_pure_ends_and_unscored_runs_are_not_fitted(frame: pd.DataFrame) -> None:
    rows = frame.copy()
    rows.loc[0, "x"], rows.loc[5, "eta"] = math.inf, math.nan
    assert read_runs(rows)["eta"].tolist() == frame["eta"].drop([0, 5]).tolist()


def nested_here(frame: pd.DataFrame) -> set[tuple[str, str]]:
    """(simple, rich): wherever the first's parameters lie, the second predicts the same at some value of its own."""
    rng, found = np.random.default_rng(0), set()
    for simple in FAMILIES:
        means = np.stack([simple.mean(frame, simple.draw(frame, rng)) for _ in range(3)], axis=1)
        found |= {(simple.id, rich.id) for rich in FAMILIES if rich is not simple and (misfits(rich, frame, means) < 1e-6 * (1 + (means**2).sum(0))).all()}
    return found


def test_what_is_said_to_be_nested_is_and_nothing_else_in_the_standard_design() -> None:
    assert nested_here(standard_frame()) == set(NESTED)


def test_without_prior_and_evidence_bayes_is_frequency_matching(frame: pd.DataFrame) -> None:
    found = nested_here(frame.assign(p=0.0, e=0.0))
    assert {("H1", "H3"), ("H3", "H1"), ("H1", "H8"), ("H1", "H10")} <= found


# ------------------------------------------------------------------ forward prediction
def test_untouched_blocks_are_predicted_from_the_others() -> None:
    runs = standard_frame(seeds=2, own=0.3)
    runs["eta"] = BY_ID["H5"].simulate(runs, BY_ID["H5"].planted(runs), np.random.default_rng(3))
    right, wrong = forward(BY_ID["H5"], runs, np.random.default_rng(0)), forward(BY_ID["H1"], runs, np.random.default_rng(0))
    assert isinstance(right, Forward)
    assert isinstance(wrong, Forward)
    assert (right.trained, right.untouched, right.runs) == ("1, 2, 3", "4, 5, 6, 7", 72)
    assert right.log_score > wrong.log_score + 4
    assert right.inside > 0.85
    assert right.pit_p > 0.001
    assert forward(BY_ID["H12"], runs, np.random.default_rng(0)) == "no forward prediction from blocks 1, 2, 3: column k does not vary"
    assert "it needs some of 1, 2, 3 and one more" in str(forward(BY_ID["H1"], runs.assign(block=1), np.random.default_rng(0)))
