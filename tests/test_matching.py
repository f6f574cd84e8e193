"""What makes a comparison fair: the calibration line, and equal fit, steps and tokens."""

import pytest
from test_science import SETTINGS, planted

from persona_lab.science import Summary, summarise


@pytest.fixture(scope="module")
def summary() -> Summary:
    return summarise(planted(others={"unlinked": 0.1, "shuffled": 0.1}), SETTINGS)


def test_a_speaker_who_is_told_the_shared_trait_is_on_the_calibration_line(summary: Summary) -> None:
    for way in ("asked", "diary"):
        assert summary.claim(f"calibration.{way}.before").value == pytest.approx(0.9, abs=1e-9)
    assert {c.name: c.verdict for c in summary.controls}["calibration"] == "pass"
    assert all("in_context" not in claim.id for claim in summary.group("format"))  # a control, not a fifth channel


def test_cells_that_are_equal_in_fit_steps_and_tokens_are_matched(summary: Summary) -> None:
    assert {claim.verdict for claim in summary.group("matched")} == {"matched"}
    assert {c.name: c.verdict for c in summary.controls}["matched"] == "pass"
    assert "Confounded" not in summary.claim("slope.delta").text


@pytest.mark.parametrize(("column", "factor", "said"), [("tokens", 1.2, "tokens"), ("steps", 2, "optimizer steps")])
def test_unequal_ratios_are_stamped_confounded(column: str, factor: float, said: str) -> None:
    table = planted()
    table.loc[table["ln_ratio"] > 2, column] *= factor
    found = summarise(table, SETTINGS)
    assert found.claim("matched.linked.ratios").verdict == "confounded"
    assert f"Confounded: {said}" in found.claim("slope.delta").text
    assert {c.name: c.verdict for c in found.controls}["matched"] == "fail"


def test_a_trait_that_is_taught_less_at_one_ratio_is_stamped_confounded() -> None:
    table = planted()
    table.loc[(table["ln_ratio"] > 2) & (table["option"] == "beach"), "prob_normalized"] = 0.7
    assert "Confounded: P(taught)" in summarise(table, SETTINGS).claim("effect").text


def test_a_control_that_costs_fewer_steps_is_stamped_against_the_treatment() -> None:
    table = planted(others={"no_injection": 0.0})
    table.loc[table["condition"] == "no_injection", "steps"] -= 60
    found = summarise(table, SETTINGS)
    assert found.claim("matched.no_injection.treatment").verdict == "confounded"
    assert found.claim("matched.linked.ratios").verdict == "matched"
