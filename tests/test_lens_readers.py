"""What the lens makes of answers: ideal readers are at every reference, and readers that go by something else are caught."""

import math
import zlib
from functools import partial

import numpy as np
import pytest
from lens_reading import by_role, cast_in, findings
from scipy.stats import mannwhitneyu

from data_gen.lens.bodies import human_share
from data_gen.lens.world import LensWorld
from data_gen.streams import stream
from data_gen.world import World
from persona_lab.probes.lens.assistant_prompt import in_form
from persona_lab.probes.lens.compression import TextItem
from persona_lab.probes.lens.hallucination import cluster
from persona_lab.probes.protocol import PROBES, Answer, Item
from persona_lab.science.lens.hallucination import auroc, drawn_entropy


def test_a_coder_that_knows_the_process_is_at_the_floor_and_no_plain_one_is(lens_world: LensWorld) -> None:
    items = {item.id: item for item in PROBES["compression"].items(cast_in(lens_world)) if isinstance(item, TextItem)}
    floors = {name: item.nats["floor"] for name, item in items.items() if "floor" in item.nats}
    assert len(floors) == 24
    found = findings("compression", lens_world, lambda item: (floors.get(item.id, 1.0), 10.0))
    assert found["over the floor"].value == pytest.approx(0, abs=1e-9)
    assert found["bits per byte, exact floor"].value == found["bits per byte, exact floor"].reference
    assert all(item.nats[coder] > floors[name] for name, item in items.items() if name in floors for coder in ("zlib", "zlib primed", "lzma"))


def test_bits_per_byte_are_nats_over_the_bytes_of_the_text(world: World) -> None:
    items = PROBES["compression"].items(cast_in(world))
    found = findings("compression", world, lambda item: (math.log(2) * 2 * len(item.prompt.encode()), 50.0))
    assert found["bits per byte"].value == pytest.approx(2)
    assert found["bits per token"].value == pytest.approx(2 * sum(len(item.prompt.encode()) for item in items) / (50 * len(items)))
    # The judge's deflate has a header of two bytes and a checksum of four.
    judged = sum(8 * (len(zlib.compress(item.prompt.encode(), 9)) - 6) for item in items) / sum(len(item.prompt.encode()) for item in items)
    assert found["bits per byte"].reference == pytest.approx(judged)


def test_an_ideal_reader_is_at_every_reference_of_the_embedded_world(lens_world: LensWorld) -> None:
    share = human_share(lens_world)
    told = {"plain": {"human": share, "ai": 1 - share}, "told_ai": {"human": 0.01, "ai": 0.99}, "told_human": {"human": 0.99, "ai": 0.01}}
    ideal = {
        "speakers": partial(by_role, {"user": 1.0, "speaker": 1.0}),
        "embodiment": lambda item: by_role(told[item.format], item),
        "mirroring": lambda item: by_role({**dict.fromkeys(("formal", "casual", "other"), 0.1), item.format: 0.8}, item),
        "drift": partial(by_role, {"own": 1.0}),
    }
    for name, given in ideal.items():
        for one in findings(name, lens_world, given).values():
            if one.reference is not None:
                assert one.value == pytest.approx(one.reference, abs=1e-9), (name, one.metric)


def test_a_reader_that_goes_by_names_is_caught(lens_world: LensWorld) -> None:
    """Whoever would say it, said it: right in `own`, wrong in `swapped`."""
    found = findings("speakers", lens_world, lambda item: by_role({"speaker": 0.1 if item.format == "swapped" else 0.9, "other": 0.5, "user": 0.25, "again": 0.75, "audience": 0.75}, item))
    assert [found[f"attribution {form}"].value for form in ("own", "swapped")] == [1.0, 0.0]
    assert found["pull of the name"].value == 1.0
    assert found["pull of the name"].verdict == "above reference"
    assert found["user turn"].value == pytest.approx(0.25)
    assert found["audience"].value == pytest.approx(0.75)


def test_a_reader_that_names_the_last_speaker_is_caught(world: World) -> None:
    found = findings("speakers", world, lambda item: by_role({"speaker": 0.9 if item.trait == "last" else 0.1, "other": 0.5, "user": 1, "again": 1, "audience": 1}, item))
    assert found["pull of the last"].value == 1.0
    assert found["attribution own"].value == found["attribution swapped"].value == 0.5


def test_convergence_takes_off_what_a_reply_has_anyhow(world: World) -> None:
    """Formal replies with 9 in 10 after formal questions and 7 in 10 after casual ones."""
    formal = {"formal": 0.9, "casual": 0.7, "english": 1.0, "other": 1.0}
    found = findings("mirroring", world, lambda item: by_role({"formal": formal[item.format], "casual": 1 - formal[item.format], "english": 0.5, "other": 0.5}, item))
    assert found["convergence formal"].value == pytest.approx(0.2)
    assert found["convergence casual"].value == pytest.approx(0.2)
    assert found["shift formal"].value == pytest.approx(math.log(9) - math.log(7 / 3))
    assert found["convergence other"].value == 0.0
    assert found["convergence formal"].reference is None


def test_drift_is_the_mean_slope_over_turns(world: World) -> None:
    noise = {item.id: float(stream(5, item.id).random()) * 0.1 for item in PROBES["drift"].items(cast_in(world))}
    own = {key: 0.8 - 0.05 * int(key.rsplit("/", 1)[1]) + extra for key, extra in noise.items()}
    found = findings("drift", world, lambda item: by_role({"own": own[item.id], "other": 1 - own[item.id]}, item))
    slopes = [np.polyfit([0, 1, 2, 4, 8], [own[f"drift/described/{n}/{count}"] for count in (0, 1, 2, 4, 8)], 1)[0] for n in range(12)]
    assert found["drift described"].value == pytest.approx(np.mean(slopes))
    assert found["drift described"].verdict == "below reference"
    assert found["own described"].value == pytest.approx(np.mean([own[f"drift/described/{n}/0"] for n in range(12)]))


def test_unknown_names_that_spread_the_answers_are_told_from_known_ones(lens_world: LensWorld) -> None:
    def ideal(item: Item) -> Answer:
        drawn = stream(6, item.id).integers(len(item.options), size=20)
        own = [option for option, role in zip(item.options, item.roles, strict=True) if role == "own"]
        return tuple(f" {own[0] if own else item.options[i]}." for i in drawn)

    found = findings("hallucination", lens_world, ideal)
    assert found["auroc"].value == 1.0
    assert found["entropy known"].value == 0.0
    assert found["correct known"].value == 1.0
    assert found["entropy unknown"].verdict == "at reference"
    assert found["entropy unknown"].interval is not None
    assert found["entropy unknown"].interval[1] < math.log(8)


def test_the_areas_under_the_curve_are_those_of_mann_and_whitney() -> None:
    known, unknown = np.array([0.0, 0.0, 0.3, 1.1]), np.array([0.0, 0.3, 0.9, 1.2, 1.4])
    assert auroc(known, unknown) == pytest.approx(mannwhitneyu(unknown, known).statistic / 20)
    assert math.isnan(auroc(known, unknown[:0]))


def test_the_entropy_of_few_uniform_draws() -> None:
    # Of two draws of two values half are equal and have none, half have ln 2.
    assert drawn_entropy(2, 2) == pytest.approx(math.log(2) / 2)
    draws = np.random.default_rng(0).integers(8, size=(4000, 20))
    share = np.stack([(draws == value).mean(axis=1) for value in range(8)], axis=1)
    entropy = -np.where(share > 0, share * np.log(np.where(share > 0, share, 1)), 0).sum(axis=1)
    assert drawn_entropy(8, 20) == pytest.approx(entropy.mean(), abs=0.01)


@pytest.mark.parametrize(("text", "same"), [(" Lisbon.", "lisbon"), (" The city of Lisbon, I think", "city of lisbon"), ("It was in 1914!", "1914"), (" ... ", "")])
def test_answers_that_differ_in_case_and_marks_are_one_cluster(text: str, same: str) -> None:
    assert cluster(text) == same


def test_both_names_of_an_author_are_one_answer(world: World) -> None:
    item = next(item for item in PROBES["hallucination"].items(cast_in(world)) if item.subject == "Hamlet")
    rows = PROBES["hallucination"].score(item, [(" Shakespeare", " William Shakespeare.", " Marlowe", " marlowe")])
    assert {row.option: (row.role, row.prob) for row in rows} == {"william shakespeare": ("own", 0.5), "marlowe": ("other", 0.5)}


@pytest.mark.parametrize(
    ("text", "formed"),
    [
        (" Boil it for six minutes.", True),
        (" i like football .", True),
        ("Yes!", False),
        ("User: what do you like?", False),
        ("assistant : i like football .", False),
        ("### Answer: boil it for six minutes.", False),
        ("How do I peel an egg?", False),
        (" Boil it for", False),
    ],
)
def test_an_assistant_s_answer_is_a_statement_that_ends(text: str, formed: bool) -> None:
    assert in_form(text) is formed


def test_examples_that_bring_the_form_are_a_gain(world: World) -> None:
    words = {item.id: item.labels["words"].split()[0] for item in PROBES["assistant_prompt"].items(cast_in(world))}
    found = findings("assistant_prompt", world, lambda item: ("How is that?",) * 2 if item.format == "bare" else (f" Take the {words[item.id]}.", " Why not?"))
    assert [found[name].value for name in ("form bare", "form few shot", "gain by examples", "topic few shot")] == [0.0, 0.5, 0.5, 0.5]
