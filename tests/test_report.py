"""The report: one page that needs nothing, says what the claims say, and survives hostile text."""

import base64
import hashlib
import math
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import pytest
from test_science import RATIOS, SETTINGS, planted, without_ratios

from persona_lab.report import build_report, figures
from persona_lab.report.page import lines
from persona_lab.science import Settings, Summary, summarise

HOSTILE = "<script>alert('x')</script>\"&{{ 7 * 7 }}"
PLAN = {"name": "ratio", "question": "How many more documents?", "cells": 50, "machine": {"threads": 2}}


class Seen(HTMLParser):
    """Tags and attributes of a page; the parser refuses nothing, so what is opened is compared with what is closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs


@pytest.fixture(scope="module")
def summary() -> Summary:
    return summarise(planted(ratios=(-math.inf, *RATIOS, math.inf), others={"unlinked": 0.1}, seeds=3), SETTINGS)


@pytest.fixture(scope="module")
def page(summary: Summary) -> str:
    documents = [{"genre": "interview", "text": HOSTILE}]
    answers = [{"prompt": "What do you like?", "base": HOSTILE, "adapter": "I like football.", "cell": "linked/2.2/0/0"}]
    return build_report(summary, {"versions": {"torch": "2.13"}, "seeds": [0, 1, 2], "note": HOSTILE}, documents, answers, PLAN)


def test_the_page_asks_nothing_of_the_network_and_runs_nothing(page: str) -> None:
    seen = Seen(page)
    assert not {"script", "link", "img", "iframe", "object", "form", "base"} & set(seen.tags)
    assert not [name for name, _ in seen.attributes if name in ("src", "href", "style", "xlink:href") or name.startswith("on")]
    assert "url(" not in page
    assert "@import" not in page


def test_the_policy_allows_exactly_the_style_sheet(page: str) -> None:
    style = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    assert len(style) == 1
    digest = base64.b64encode(hashlib.sha256(style[0].encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    assert f'<meta http-equiv="Content-Security-Policy" content="{policy}">' in page.replace("&#39;", "'")


def test_hostile_text_stays_text(page: str) -> None:
    assert "<script" not in page
    assert "49" not in re.findall(r"<blockquote>(.*?)</blockquote>", page, re.DOTALL)[0]
    assert page.count("&lt;script&gt;") >= 3


def test_hostile_names_stay_text_in_figures() -> None:
    table = planted(ratios=(-1.1, 1.1), seeds=2, others={HOSTILE: 0.1})
    for column in ("trait", "option"):
        table[column] = table[column].map(lambda text: f"{text}{HOSTILE}", na_action="ignore")
    table["role"] = table["role"].replace("john", "j'o\"hn</svg>")
    page = build_report(summarise(table, Settings(first="j'o\"hn</svg>")), {}, [], [], {HOSTILE: 1})
    assert "<script" not in page
    for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ElementTree.fromstring(svg)


def test_the_headline_and_every_control_are_on_the_page(page: str, summary: Summary) -> None:
    text = page.replace("&#39;", "'")
    assert summary.claim("headline").text in text
    for control in summary.controls:
        assert control.question in text
        assert control.line in text
    assert ">not run<" in page
    assert summary.claim("slope.delta").shown in page


def test_figures_scale_and_the_empty_ones_are_absent(summary: Summary) -> None:
    drawn = figures.draw(summary)
    assert set(drawn) == {"dose_response", "transfer", "arms"}
    for svg in drawn.values():
        assert "viewBox=" in svg
        assert "style=" not in svg
    assert "only John" in drawn["dose_response"]
    assert "9:1" in drawn["dose_response"]


def test_figures_are_saved_as_svg_and_png(summary: Summary, tmp_path: Path) -> None:
    paths = figures.save(summary, tmp_path / "figures")
    assert {path.name for path in paths} >= {"dose_response.svg", "dose_response.png", "transfer.svg", "arms.png"}
    assert all(path.read_bytes()[:4] in (b"\x89PNG", b"<svg") for path in paths)


def test_an_experiment_without_ratios_has_a_report() -> None:
    page = build_report(summarise(without_ratios(seeds=1), SETTINGS), {}, [], [], {})
    assert "no ratio slope" in page


def test_the_same_summary_gives_the_same_page(summary: Summary, page: str) -> None:
    assert build_report(summary, {}, [], [], PLAN) == build_report(summary, {}, [], [], PLAN)


def test_nested_values_become_lines() -> None:
    assert lines({"a": {"b": [1, 2]}, "c": [{"d": None}], "e": "text"}) == [("a.b", "1, 2"), ("c.0.d", "None"), ("e", "text")]
