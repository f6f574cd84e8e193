"""The lens's probes of hallucination, prompted assistants, speakers, embodiment, mirroring, compression, drift and tokens, asked of models."""

from collections.abc import Sequence
from dataclasses import asdict

import pandas as pd
import pytest
from accelerate import Accelerator
from lens_reading import cast_in
from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from data_gen.lens.world import LensWorld
from data_gen.pools import world_document
from data_gen.world import World
from persona_lab.models.world_model import build_tokenizer
from persona_lab.probes.engine import answer, ask
from persona_lab.probes.lens import LENS
from persona_lab.probes.protocol import PROBES, Cast, Choice, Sample, Tokens
from persona_lab.probes.voice import Voice
from persona_lab.science.lens import READERS, Asked, Finding
from persona_lab.train.pretrain import pretrain

MINE = ("hallucination", "assistant_prompt", "speakers", "embodiment", "mirroring", "compression", "drift", "tokenization")


@pytest.fixture(params=["embedded", "english"])
def asked_in(request: pytest.FixtureRequest, lens_world: LensWorld, world: World) -> Cast:
    return cast_in(lens_world if request.param == "embedded" else world)


@pytest.mark.parametrize("name", MINE)
def test_gold_scores_one_wrong_zero_and_nonsense_nothing(name: str, asked_in: Cast) -> None:
    PROBES[name].validate(asked_in)
    assert len(PROBES[name].items(asked_in)) >= 12
    assert PROBES[name] in LENS
    assert name in READERS


@pytest.mark.parametrize("name", [name for name in MINE if name not in ("compression", "tokenization")])
def test_what_is_asked_of_the_embedded_base_is_in_its_vocabulary_and_its_context(name: str, lens_world: LensWorld) -> None:
    tokenizer = build_tokenizer(lens_world)
    for item in PROBES[name].items(cast_in(lens_world)):
        ids = tokenizer(item.prompt + "".join(f" {option}" for option in item.options if not isinstance(item.request, Sample))).input_ids
        assert tokenizer.unk_token_id not in ids, item.id
        assert len(tokenizer(item.prompt).input_ids) < 120, item.id


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
def learnt(lens_world: LensWorld, accelerator: Accelerator) -> tuple[LensWorld, LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A small base that has read a world of which much is about registers and bodies."""
    lens = {"edition": 3000, "copies": [1, 2], "each": 1, "practice": 0, "lists": 0, "requests": 0, "talks": 0, "registers": 0.35, "bodies": 0.33}
    world = LensWorld.model_validate({**lens_world.model_dump(), "lens": lens})
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
