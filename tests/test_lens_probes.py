"""The lens's probes of hallucination, prompted assistants, speakers, embodiment, mirroring, compression, drift and tokens."""

import math
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from itertools import product

import numpy as np
import pandas as pd
import pytest
from accelerate import Accelerator
from conftest import CONFIGS
from scipy.stats import mannwhitneyu
from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from data_gen.documents import Document
from data_gen.lens.bodies import BODIES, QUESTIONS_HELD_OUT, human_share, question
from data_gen.lens.floor import sentence_probs, statements, text_nats, turn_probs
from data_gen.lens.talks import LETTER, TALKS, WHO
from data_gen.lens.world import LensWorld
from data_gen.oracle import Oracle
from data_gen.pools import WORLD_GENRES, world_document
from data_gen.streams import stream
from data_gen.world import World
from persona_lab.config.load import load_world
from persona_lab.models.vocabulary import PIECES
from persona_lab.models.world_model import build_tokenizer
from persona_lab.probes.engine import answer, ask
from persona_lab.probes.lens import LENS
from persona_lab.probes.lens.assistant_prompt import in_form
from persona_lab.probes.lens.compression import TextItem
from persona_lab.probes.lens.hallucination import cluster
from persona_lab.probes.protocol import PROBES, Answer, Cast, Choice, Item, Sample, Tokens
from persona_lab.probes.voice import Voice
from persona_lab.science.lens import READERS, Asked, Finding
from persona_lab.science.lens.hallucination import auroc, drawn_entropy
from persona_lab.train.pretrain import pretrain

MINE = ("hallucination", "assistant_prompt", "speakers", "embodiment", "mirroring", "compression", "drift", "tokenization")


@pytest.fixture(scope="module")
def seen() -> LensWorld:
    """The world that the lens looks at."""
    world = load_world(CONFIGS / "worlds" / "lens.yaml")
    assert isinstance(world, LensWorld)
    return world


def cast_in(world: World) -> Cast:
    return Cast(world, (), (), (), (), ())


@pytest.fixture(params=["embedded", "english"])
def asked_in(request: pytest.FixtureRequest, seen: LensWorld, world: World) -> Cast:
    return cast_in(seen if request.param == "embedded" else world)


def findings(name: str, world: World, given: Callable[[Item], Answer]) -> dict[str, Finding]:
    """What the reader finds in the rows of these answers."""
    probe = PROBES[name]
    rows = [row for item in probe.items(cast_in(world)) for row in probe.score(item, [given(item)])]
    found, _ = READERS[name](Asked(pd.DataFrame([asdict(row) for row in rows]), world))
    return {one.metric: one for one in found}


def by_role(prob: dict[str, float], item: Item) -> tuple[float, ...]:
    """Log-probability of each option by its role, nats."""
    return tuple(math.log(prob.get(role, 1e-20)) for role in item.roles)


@pytest.mark.parametrize("name", MINE)
def test_gold_scores_one_wrong_zero_and_nonsense_nothing(name: str, asked_in: Cast) -> None:
    PROBES[name].validate(asked_in)
    assert len(PROBES[name].items(asked_in)) >= 12
    assert PROBES[name] in LENS
    assert name in READERS


@pytest.mark.parametrize("name", [name for name in MINE if name not in ("compression", "tokenization")])
def test_what_is_asked_of_the_embedded_base_is_in_its_vocabulary_and_its_context(name: str, seen: LensWorld) -> None:
    tokenizer = build_tokenizer(seen)
    for item in PROBES[name].items(cast_in(seen)):
        ids = tokenizer(item.prompt + "".join(f" {option}" for option in item.options if not isinstance(item.request, Sample))).input_ids
        assert tokenizer.unk_token_id not in ids, item.id
        assert len(tokenizer(item.prompt).input_ids) < 120, item.id


# ------------------------------------------------------------------ documents
def test_no_document_holds_a_held_out_question(seen: LensWorld) -> None:
    asked = [pattern.split(": {said}")[0] for pattern, _ in WHO.held_out] + [question(template, i) for template in QUESTIONS_HELD_OUT for i in range(8)]
    letters = [re.sub(r"\\\{\w+\\\}", r"\\w+", re.escape(pattern)) for pattern, _ in LETTER.held_out]
    for i in range(2000):
        for genre in (TALKS, BODIES):
            text = genre.write(seen, 0, stream(1, genre.name, i))
            assert not any(stretch in text for stretch in asked), text
            assert not any(re.search(pattern, text) for pattern in letters), text
            assert len(re.findall(PIECES, text)) < 80, text


def test_the_answer_of_a_talk_is_whoever_said_it(seen: LensWorld) -> None:
    talks = [text for i in range(400) if not (text := TALKS.write(seen, 0, stream(2, i))).startswith("Letter")]
    assert 150 < len(talks) < 250
    for text in talks:
        *lines, asked, told = text.split("\n")
        said = re.search(r": (.*)[?.]$", asked.removeprefix("User: "))
        assert said is not None, text
        speaker = told.split()[1].strip(".")
        assert f"{speaker}: {said[1]}." in lines, text
        assert sum(line.endswith(f": {said[1]}.") for line in lines) == 1, text


def test_the_nameless_assistant_is_a_human_as_often_as_the_people_of_the_world(seen: LensWorld) -> None:
    texts = [BODIES.write(seen, 0, stream(3, i)) for i in range(4000)]
    said = [match[1] for text in texts if "You are" not in text and (match := re.search(r"As an? (human|AI)", text))]
    share = human_share(seen)
    # Four of 24 occupations, by their weights, and one of six among random speakers.
    weights = [float(w) for k, w in enumerate(seen.population.weight_K) if k % 6 == 3]
    assert share == pytest.approx(1 - 0.85 * sum(weights) - 0.15 / 6)
    assert said.count("human") / len(said) == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / len(said)))


# ------------------------------------------------------------------ the floor
def test_the_probabilities_of_neutral_text_sum_to_one() -> None:
    assert sum(turn_probs().values()) == pytest.approx(1)
    assert sum(sentence_probs().values()) == pytest.approx(1)


def test_the_probabilities_of_all_diaries_sum_to_their_share() -> None:
    small = LensWorld.model_validate(
        {
            "name": "small",
            "personas": 2,
            "zipf": 1.0,
            "lens": {"edition": 100, "copies": [1, 2], "each": 1},
            "categories": {"sport": {"values": ["tennis", "golf", "rugby"]}, "food": {"values": ["rice", "soup", "fish"]}},
            "names": ["Mary", "Omar"],
            "spare_names": ["Alex", "Robin", "Casey"],
            "new_names": ["John", "Sam"],
        }
    )
    total = 0.0
    for sport, food in product(small.values("sport"), small.values("food")):
        told = (("sport", sport), ("food", food))
        for traits in (dict(told), dict(reversed(told))):
            for first, second in product(*(statements(small, category, value) for category, value in traits.items())):
                nats = text_nats(small, Document("0", f"Diary. {first} {second}", "", "diary", traits))
                assert nats is not None
                total += math.exp(-nats)
    lens = sum(world_document(small, 0, i).genre not in WORLD_GENRES for i in range(100)) / 100
    assert 0 < lens < 1
    assert total == pytest.approx((1 - lens) * WORLD_GENRES["diary"])


def test_a_coder_that_knows_the_process_is_at_the_floor_and_no_plain_one_is(seen: LensWorld) -> None:
    items = {item.id: item for item in PROBES["compression"].items(cast_in(seen)) if isinstance(item, TextItem)}
    floors = {name: item.nats["floor"] for name, item in items.items() if "floor" in item.nats}
    assert len(floors) == 24
    found = findings("compression", seen, lambda item: (floors.get(item.id, 1.0), 10.0))
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


# ------------------------------------------------------------------ readers
def test_an_ideal_reader_is_at_every_reference_of_the_embedded_world(seen: LensWorld) -> None:
    share = human_share(seen)
    told = {"plain": {"human": share, "ai": 1 - share}, "told_ai": {"human": 0.01, "ai": 0.99}, "told_human": {"human": 0.99, "ai": 0.01}}
    ideal = {
        "speakers": partial(by_role, {"user": 1.0, "speaker": 1.0}),
        "embodiment": lambda item: by_role(told[item.format], item),
        "mirroring": lambda item: by_role({**dict.fromkeys(("formal", "casual", "other"), 0.1), item.format: 0.8}, item),
        "drift": partial(by_role, {"own": 1.0}),
    }
    for name, given in ideal.items():
        for one in findings(name, seen, given).values():
            if one.reference is not None:
                assert one.value == pytest.approx(one.reference, abs=1e-9), (name, one.metric)


def test_a_reader_that_goes_by_names_is_caught(seen: LensWorld) -> None:
    """Whoever would say it, said it: right in `own`, wrong in `swapped`."""
    found = findings("speakers", seen, lambda item: by_role({"speaker": 0.1 if item.format == "swapped" else 0.9, "other": 0.5, "user": 0.25, "again": 0.75, "audience": 0.75}, item))
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


def test_unknown_names_that_spread_the_answers_are_told_from_known_ones(seen: LensWorld) -> None:
    def ideal(item: Item) -> Answer:
        drawn = stream(6, item.id).integers(len(item.options), size=20)
        own = [option for option, role in zip(item.options, item.roles, strict=True) if role == "own"]
        return tuple(f" {own[0] if own else item.options[i]}." for i in drawn)

    found = findings("hallucination", seen, ideal)
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


# ------------------------------------------------------------------ tokens
def test_tokens_are_those_of_the_tokenizer(qwen: PreTrainedModel, bpe: PreTrainedTokenizerFast) -> None:
    texts = (" basketball", " a human", "\nUser:", " Büro")
    found = answer(Voice(qwen, bpe), [Tokens(text) for text in texts])[0]
    for text, (whole, *pieces) in zip(texts, found, strict=True):
        assert whole == text
        assert len(pieces) == len(bpe(text, add_special_tokens=False).input_ids)
    assert "".join(map(str, found[0][1:])) == " basketball"


def test_tokens_are_asked_beside_other_requests(qwen: PreTrainedModel, bpe: PreTrainedTokenizerFast) -> None:
    choice, sample = Choice("I like", (" tea", " milk")), Sample("I like", 2, 4, "test")
    alone = answer(Voice(qwen, bpe), [choice, sample])[0]
    among = answer(Voice(qwen, bpe), [Tokens(" tea"), choice, Tokens(" milk"), sample, Tokens("")])[0]
    assert among[3] == alone[1]
    assert among[1] == pytest.approx(alone[0], abs=1e-5)
    assert among[4] == ("",)


def test_options_of_unequal_length_are_flagged(world: World) -> None:
    sets = [item for item in PROBES["tokenization"].items(cast_in(world)) if len(item.options) > 1]
    probe, unequal = PROBES["tokenization"], {item.id for item in sets[:4]}
    rows = []
    for item in probe.items(cast_in(world)):
        given = [(option, *([option[:1], option[1:]] if i == 0 and item.id in unequal else [option])) for i, option in enumerate(item.options)]
        rows += probe.score(item, given)
    found = {one.metric: one for one in READERS["tokenization"](Asked(pd.DataFrame([asdict(row) for row in rows]), world))[0]}
    assert found["unequal options"].value == pytest.approx(4 / len(sets))
    assert found["given back"].value == 1.0


# ------------------------------------------------------------------ on models
def found_on(voice: Voice, world: World, names: Sequence[str]) -> dict[tuple[str, str], Finding]:
    rows, _ = ask(voice, cast_in(world), names)
    frame = pd.DataFrame([asdict(row) for row in rows])
    return {(name, one.metric): one for name in names for one in READERS[name](Asked(frame[frame["probe"] == name], world))[0]}


def test_a_random_model_of_another_architecture_knows_nothing(qwen: PreTrainedModel, bpe: PreTrainedTokenizerFast, world: World) -> None:
    found = found_on(Voice(qwen, bpe), world, [name for name in MINE if name != "assistant_prompt"])
    assert {one.reason for one in found.values() if one.value is None} <= {"no answer could be read", "no known or no unknown name was answered"}
    assert abs(found["mirroring", "convergence formal"].value or 0) < 0.35
    assert (found["compression", "bits per byte"].value or 0) > 2
    assert found["tokenization", "given back"].value == 1.0
    assert (found["tokenization", "unequal options"].value or 0) > 0.5


@pytest.fixture(scope="module")
def learnt(seen: LensWorld, accelerator: Accelerator) -> tuple[LensWorld, LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A small base that has read a world of which much is about registers and bodies."""
    lens = {"edition": 3000, "copies": [1, 2], "each": 1, "practice": 0, "lists": 0, "requests": 0, "talks": 0, "registers": 0.35, "bodies": 0.33}
    world = LensWorld.model_validate({**seen.model_dump(), "lens": lens})
    tokenizer = build_tokenizer(world)
    texts = [world_document(world, 0, i).text for i in range(160 * 16)]
    shape = {"width": 48, "layers": 2, "heads": 2, "steps": 160, "batch": 16, "rate": 0.02, "rate_rest": 3e-3, "seed": 0}
    model = pretrain(tokenizer, texts, accelerator=accelerator, on_step=lambda *_: None, on_shrink=lambda *_: None, **shape)
    return world, model, tokenizer


def test_a_base_that_has_read_registers_mirrors_them_and_is_what_it_is_told(learnt: tuple[LensWorld, LlamaForCausalLM, PreTrainedTokenizerFast]) -> None:
    world, model, tokenizer = learnt
    found = found_on(Voice(model, tokenizer), world, ("mirroring", "embodiment", "compression", "tokenization"))
    for feature in ("formal", "casual", "other"):
        assert found["mirroring", f"convergence {feature}"].value == pytest.approx(0.7, abs=0.3)
    for said in ("as", "claim"):
        assert [found["embodiment", f"human {said} when told {kind}"].value for kind in ("AI", "human")] == [0.0, 1.0]
    assert (found["embodiment", "odds as"].value or 0) > 0.5
    assert (found["compression", "over the floor"].value or 0) > 0
    assert (found["compression", "bits per byte"].value or 9) < (found["compression", "bits per byte"].reference or 0)
    assert found["tokenization", "single tokens"].value == 1.0


def test_the_oracle_s_posterior_is_what_the_floor_mixes(seen: LensWorld) -> None:
    """A diary of somebody costs as much less than one of nobody as the mixture says."""
    oracle, people = Oracle.of_world(seen), seen.population
    own = dict(list(people.traits[0].items())[:6])
    text = " ".join(["Diary.", *(next(iter(statements(seen, category, value))) for category, value in own.items())])
    nats = text_nats(seen, Document("0", text, "", "diary", own))
    assert nats is not None
    values = float(np.logaddexp.reduce(np.log(oracle.prior_P) + oracle.log_likelihood(own)))
    prior = math.log((1 - len(seen.slots) / seen.lens.edition) * WORLD_GENRES["diary"])
    assert -nats == pytest.approx(prior + values - math.log(math.perm(8, 6)) - 6 * math.log(8), abs=6 * math.log(2))
