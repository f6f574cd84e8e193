"""Text of others stays text: in the report, its figures, a browser, a spreadsheet, a terminal and a log."""

import csv
import io
import json
import math
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from hostile import CHROMIUM, PAYLOADS, Browser
from test_science import planted

from persona_lab.cli import console
from persona_lab.cli.experiments import Format, as_text, status_words
from persona_lab.errors import FORMULA, Problem, printable
from persona_lab.report import build_report, figures
from persona_lab.report.page import style
from persona_lab.science import Settings, Summary, summarise
from persona_lab.tracking import label, slug

PLAIN = "plain"
TOGETHER = 10
"""Payloads of one page in the browser."""
EVERYTHING = " ".join(text[:100] for text in PAYLOADS.values())
DRAWN = {"svg", "g", "path", "text", "rect", "defs", "clipPath", "line", "tspan"}
each_payload = pytest.mark.parametrize("name", PAYLOADS)


# ------------------------------------------------------------------ the report
@pytest.fixture(scope="module")
def summary() -> Summary:
    return summarise(planted(ratios=(-1.1, 1.1), seeds=2, others={"unlinked": 0.1}), Settings(taught={"linked": "beach"}, resamples=50))


def page_of(summary: Summary, text: str) -> str:
    """A report in which everything that is not of its template reads `text`; without figures, which have their own test."""
    claims = [replace(c, id=c.id.replace("unlinked", text), text=text, unit=text, verdict=text, value=None, interval=None) for c in summary.claims]
    controls = [replace(c, name=text, question=text, unit=text, line=text, verdict=text, condition=text) for c in summary.controls]
    settings = replace(summary.settings, first=text, second=text, treatment=text, channel=text, format=text)
    frames = {name: frame.iloc[:0] for name, frame in summary.frames.items()}
    answers = [{"prompt": text, "base": text, "adapter": text, "cell": text}]
    plan = {"name": text, "question": text, f"key {text}": text, "conditions": {f"x{text}": [text, text]}, "failed": [{"why": text}]}
    return build_report(Summary(settings, claims, controls, frames, []), {f"file {text}": text, "error": [text]}, [{"genre": text, "text": text}], answers, plan)


class Elements(HTMLParser):
    """Every tag with the names of its attributes, and the values of all but the class."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, ...]] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, *(f"{name}={value if name != 'class' else ''}" for name, value in attrs)))

    def handle_endtag(self, tag: str) -> None:
        self.found.append((f"/{tag}",))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def handle_comment(self, data: str) -> None:
        self.found.append(("comment", data))

    def handle_pi(self, data: str) -> None:
        self.found.append(("instruction", data))

    def unknown_decl(self, data: str) -> None:
        self.found.append(("declaration", data))


@pytest.fixture(scope="module")
def expected(summary: Summary) -> Elements:
    """The page of text that means no harm."""
    return Elements(page_of(summary, PLAIN))


def test_there_are_enough_payloads():
    assert len(PAYLOADS) >= 60
    assert len(set(PAYLOADS.values())) == len(PAYLOADS)


@each_payload
def test_the_page_has_the_elements_of_its_template_and_no_other(name: str, summary: Summary, expected: Elements):
    seen = Elements(page_of(summary, PAYLOADS[name]))
    assert seen.found == expected.found
    shown, slots = "".join(seen.texts), "".join(expected.texts).count(PLAIN)
    assert shown.count(PAYLOADS[name]) >= slots > 40, "nothing is lost or changed either"


@pytest.fixture(scope="module")
def hostile_figures(summary: Summary) -> dict[str, str]:
    """Figures with every payload as the name of a condition and of a trait, and all of them in the names of the personas."""
    arm = summary.claim("arm.unlinked.effect")
    claims = [*summary.claims, *(replace(arm, id=f"arm.{text}.effect") for text in PAYLOADS.values())]
    taught = {"taught": list(PAYLOADS.values()), "probed": list(PAYLOADS.values()), "value": 0.5}
    settings = replace(summary.settings, first=EVERYTHING, second="\\")
    return figures.draw(replace(summary, claims=claims, settings=settings, frames={**summary.frames, "transfer": pd.DataFrame(taught)}))


def test_figures_have_shapes_and_text_and_nothing_else(hostile_figures: dict[str, str]):
    assert set(hostile_figures) == {"dose_response", "transfer", "arms"}
    for svg in hostile_figures.values():
        seen = list(ElementTree.fromstring(svg).iter())
        assert {element.tag.rpartition("}")[2] for element in seen} <= DRAWN
        attributes = {name for element in seen for name in element.attrib}
        assert not [name for name in attributes if name.startswith("on") or "href" in name or name in ("style", "src")]
        assert "url(" not in re.sub(r"url\(#[\w-]+\)", "", "".join(value for element in seen for value in element.attrib.values()))
    texts = "".join(element.text or "" for element in ElementTree.fromstring(hostile_figures["arms"]).iter())
    assert "<img src=x onerror=alert(1)>" in texts


# ------------------------------------------------------------------ a browser
@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed (apt-get install chromium); the parser of this file still looks at every page")
    with Browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def write(folder: Path, name: str, text: str) -> Path:
    file = folder / name
    file.write_text(text.encode(errors="replace").decode(), encoding="utf-8")
    return file


RAW = ("script", "image with an error", "svg with a handler", "frame with a document", "autofocus", "image from afar", "style import", "socket", "embed")


def test_the_browser_sees_what_runs_and_what_calls_home(browser: Browser, tmp_path: Path):
    for name in RAW:
        assert browser.visit(write(tmp_path, "raw.html", f"<!doctype html><title>raw</title><body>{PAYLOADS[name]}</body>"), until_noted=True), name


def test_nothing_runs_and_nothing_is_asked_for_even_without_the_policy(browser: Browser, summary: Summary, tmp_path: Path):
    browser.visit(write(tmp_path, "plain.html", page_of(summary, PLAIN)))
    expected = browser.elements()
    browser.send("Page.setBypassCSP", enabled=True)
    # Several at once: were one of them to swallow the others, the elements would be others too.
    texts = list(PAYLOADS.values())
    for text in (" ".join(texts[i : i + TOGETHER]) for i in range(0, len(texts), TOGETHER)):
        assert browser.visit(write(tmp_path, "report.html", page_of(summary, text))) == [], text
        assert browser.elements() == expected, text
    browser.send("Page.setBypassCSP", enabled=False)


def test_the_policy_alone_stops_what_would_run_or_be_asked_for(browser: Browser, tmp_path: Path):
    css, digest = style()
    template = (Path(figures.__file__).parent / "page.html.j2").read_text(encoding="utf-8")
    policy = re.findall(r"<meta http-equiv.*?>", template)[0].replace("{{ css_hash }}", digest)
    for name in RAW:
        page = write(tmp_path, "policy.html", f"<!doctype html><html><head><meta charset=utf-8>{policy}<style>{css}</style></head><body>{PAYLOADS[name]}</body></html>")
        assert browser.visit(page) == [], name


def test_figures_opened_by_themselves_run_nothing(browser: Browser, hostile_figures: dict[str, str], tmp_path: Path):
    for name, svg in hostile_figures.items():
        assert browser.visit(write(tmp_path, f"{name}.svg", svg)) == []
        assert {element[0] for element in browser.elements()} <= {tag.lower() for tag in DRAWN}, name


# ------------------------------------------------------------------ spreadsheets, terminals, logs, names
def test_no_cell_of_a_csv_is_a_formula_and_every_cell_is_still_there():
    table = pd.DataFrame({"=text": list(PAYLOADS.values()), "number": -1.5})
    head, *rows = csv.reader(io.StringIO(as_text(table, Format.csv), newline=""))
    assert head == ["'=text", "number"]
    for (cell, number), text in zip(rows, PAYLOADS.values(), strict=True):
        assert not cell.startswith(FORMULA)
        assert cell in (text, f"'{text}")
        assert number == "-1.5"
    # Where cells are separated by semicolons the quotes hold.
    assert all(not cell.startswith(FORMULA) for row in csv.reader(io.StringIO(as_text(table[["=text"]], Format.csv), newline=""), delimiter=";") for cell in row)


def test_json_lines_are_exact():
    table = pd.DataFrame({"text": list(PAYLOADS.values()), "number": [0.1 + 0.2, 1e-20, math.nan, *[5e-324] * (len(PAYLOADS) - 3)], "count": 2**60 + 1})
    rows = [json.loads(line) for line in as_text(table, Format.jsonl).splitlines()]
    assert [row["text"] for row in rows] == list(PAYLOADS.values())
    assert [row["number"] for row in rows[:4]] == [0.1 + 0.2, 1e-20, None, 5e-324]
    assert {row["count"] for row in rows} == {2**60 + 1}


def harmless(printed: str, lines: int) -> bool:
    """Nothing that a terminal obeys, and as many lines as were meant."""
    return printed.count("\n") == lines and all(c.isprintable() for c in printed.replace("\n", ""))


@each_payload
def test_what_is_printed_moves_no_cursor_and_forges_no_line(name: str, capsys: pytest.CaptureFixture[str]):
    text = PAYLOADS[name]
    assert harmless(printable(text) + str(Problem("PL1", text, text)), 0)
    one_line = printable(text, 10_000)
    console.remark(one_line)
    console.emit({"answer": text}, one_line, as_json=False)
    said = capsys.readouterr()
    assert harmless(said.out, 1)
    assert harmless(said.err, 1)
    console.emit({"answer": text}, "", as_json=True)
    told = capsys.readouterr().out
    assert json.loads(told) == {"answer": text}
    assert harmless(told, 3)


@each_payload
def test_the_status_of_a_hostile_run_is_one_line_for_each_cell(name: str):
    text = PAYLOADS[name]
    job = {"engine": text, "job": text, "state": "", "said": text, "log": text}
    found = {"run": text, "cells": {"done": 0, "planned": 1}, "kinds": {}, "failed": {text: text}, "jobs": [job], "left": {"nodes": 0}, "report": text}
    assert harmless(status_words(found), 3)


@each_payload
def test_names_at_wandb_are_plain(name: str):
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,120}", slug(PAYLOADS[name]))
    assert re.fullmatch(r"[A-Za-z0-9 ._/=+:,-]{1,120}", label(PAYLOADS[name]))
    assert label("linked/ln_ratio=-1.386/seed0/swap1 trait") == "linked/ln_ratio=-1.386/seed0/swap1 trait"
