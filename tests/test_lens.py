"""The base-model lens: its texts are counted exactly, its probes score right, its formulas agree with others, and the command runs whole."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import typer
from conftest import CONFIGS, tiny
from pydantic import ValidationError
from scipy.optimize import minimize
from scipy.stats import chisquare, entropy, linregress
from test_experiment import silent
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from typer.testing import CliRunner

from data_gen.lens.digits import BIAS, DIGITS
from data_gen.lens.facts import HELD_OUT
from data_gen.lens.genre import ladder
from data_gen.lens.riddles import Riddle
from data_gen.lens.world import LensWorld, copies_read
from data_gen.pools import world_document
from data_gen.telling import read_world
from data_gen.world import World
from persona_lab.cli.lens import lens
from persona_lab.config.load import load_experiment, load_world
from persona_lab.config.schema import Machine
from persona_lab.errors import ConfigError
from persona_lab.experiment.instruments.building import made, subject
from persona_lab.experiment.instruments.findings import lens_findings
from persona_lab.experiment.instruments.looking import lens_plan, looks
from persona_lab.experiment.instruments.verifying import verify_instrument
from persona_lab.experiment.planning.plan import open_plan
from persona_lab.models.vocabulary import world_words
from persona_lab.models.world_model import build_tokenizer
from persona_lab.probes import PROBES
from persona_lab.probes.engine import Voice, answer
from persona_lab.probes.lens.few_shot import exact
from persona_lab.probes.protocol import Answer, Cast, Item, Sample
from persona_lab.science.lens import READERS, Asked, Finding
from persona_lab.science.lens.few_shot import exponents
from persona_lab.science.lens.finding import logistic_of, share_of, slope_of

pytestmark = pytest.mark.usefixtures("from_the_root")
HERE = ("riddles", "random_numbers", "regurgitation", "fact_frequency", "few_shot")
SMALL = {"edition": 512, "copies": [1, 4, 32], "each": 2, "practice": 0.04, "lists": 0.02, "requests": 0.06, "registers": 0.02, "talks": 0.02, "bodies": 0.02}


@pytest.fixture(scope="module")
def seen(world: World) -> LensWorld:
    """The beach world with a small edition."""
    found = read_world({**world.model_dump(), "lens": SMALL})
    assert isinstance(found, LensWorld)
    return found


def cast_in(world: World) -> Cast:
    return Cast(world, (), (), (), (), ())


# ------------------------------------------------------------------ the text
def test_after_an_edition_every_text_was_read_as_often_as_its_copies_say(seen: LensWorld) -> None:
    for documents in (512, 1024, 700):
        texts = Counter(world_document(seen, 5, i).text for i in range(documents))
        counted = copies_read(seen, documents)
        for number, riddle in enumerate(seen.riddles):
            assert texts[f"{riddle.question()} {riddle.answer}."] == counted["riddle", number]
        if documents % 512 == 0:
            assert [counted["passage", number] for number in range(6)] == [copies * documents // 512 for copies in ladder(seen)]
    assert ladder(seen) == [1, 1, 4, 4, 32, 32]


def test_where_the_lens_has_no_slot_the_world_writes_what_it_always_wrote(seen: LensWorld, world: World) -> None:
    own = [i for i in range(512) if i not in seen.slots]
    assert len(own) == round(seen.own_share * 512)
    assert [world_document(seen, 3, i) for i in own] == [world_document(world, 3, i) for i in own]
    assert "lens" not in world.model_dump()
    assert set(world_words(world)) < set(world_words(seen))


def test_what_is_asked_stands_in_no_document_and_every_word_has_a_token(seen: LensWorld) -> None:
    texts = [world_document(seen, 0, i).text for i in range(512)]
    tokenizer = build_tokenizer(seen)
    assert not any(tokenizer.unk_token_id in ids for ids in tokenizer(texts)["input_ids"])
    items = [item for name in HERE for item in PROBES[name].items(cast_in(seen))]
    assert not any(tokenizer.unk_token_id in ids for ids in tokenizer([item.prompt for item in items])["input_ids"])
    altered = [item.prompt for item in PROBES["riddles"].items(cast_in(seen)) if item.format != "original"]
    held_out = [template.partition("{")[0] + fact.name for template in HELD_OUT[:1] for fact in seen.facts]
    assert not [text for text in texts if any(prompt in text for prompt in altered)]
    assert not [text for text in texts if any(text.startswith(f"{start} has a") and " and it is " in text for start in held_out)]
    scenes = {riddle[:3] for riddle in seen.riddles}
    assert scenes.isdisjoint(seen.practice_scenes)
    assert isinstance(seen.riddles[0], Riddle)


def test_a_riddle_may_name_somebody_who_is_not_its_answer_and_is_altered_to_a_third(seen: LensWorld) -> None:
    named = read_world({**seen.model_dump(), "lens": {**SMALL, "original": "another"}})
    assert isinstance(named, LensWorld)
    assert [riddle[:4] for riddle in named.riddles] == [riddle[:4] for riddle in seen.riddles]
    assert {riddle.said for riddle in seen.riddles} == {"somebody"}
    assert all(riddle.said in named.spare_names and riddle.said != riddle.answer for riddle in named.riddles)
    items = {item.id: item for item in PROBES["riddles"].items(cast_in(named))}
    for number, riddle in enumerate(named.riddles):
        assert items[f"riddles/original/{number}"].prompt == riddle.question()
        assert riddle.said not in items[f"riddles/altered/{number}"].prompt
    assert "original" not in seen.model_dump()["lens"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"each": 60}, "180 texts of each kind"),
        ({"edition": 100}, "are the world's own"),
        ({"copies": [4]}, "at least 2 items"),
    ],
)
def test_a_lens_that_does_not_fit_is_refused(world: World, changed: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        read_world({**world.model_dump(), "lens": SMALL | changed})


def test_a_name_that_stands_in_the_texts_of_the_lens_is_refused(world: World) -> None:
    with pytest.raises(ValidationError, match="stand in texts of the lens: Fact"):
        read_world({**world.model_dump(), "new_names": ["Fact"], "lens": SMALL})


# ------------------------------------------------------------------ the probes, without a model
@pytest.mark.parametrize("name", HERE)
@pytest.mark.parametrize("form", ["world", "english"])
def test_gold_scores_one_wrong_zero_and_nonsense_is_unscored(seen: LensWorld, world: World, name: str, form: str) -> None:
    cast = cast_in(seen if form == "world" else world)
    PROBES[name].validate(cast)
    items = PROBES[name].items(cast)
    assert len({item.subject for item in items}) >= (6 if form == "world" else 12)


def rows_of(name: str, world: World, give: object) -> pd.DataFrame:
    """The rows of a probe whose every item is answered by `give(item)`."""
    assert callable(give)
    probe = PROBES[name]
    return pd.DataFrame([vars(row) for item in probe.items(cast_in(world)) for row in probe.score(item, give(item))])


def findings(name: str, world: World, give: object, copies: object = None) -> dict[str, Finding]:
    asked = Asked(rows_of(name, world, give), world, copies if isinstance(copies, dict) else {})
    return {finding.metric: finding for finding in READERS[name](asked)[0]}


def favoured(item: Item, *roles: str) -> Sequence[Answer]:
    """An answer that is sure of the first of these roles that an option has."""
    chosen = next((item.roles.index(role) for role in roles if role in item.roles), 0)
    return [tuple(math.log(0.9) if i == chosen else math.log(0.1 / (len(item.roles) - 1)) for i in range(len(item.roles)))]


def test_overrides_count_only_riddles_whose_original_is_known(seen: LensWorld) -> None:
    copies = copies_read(seen, 512)

    def by_heart(item: Item) -> Sequence[Answer]:
        often = copies["riddle", int(item.subject)] > 4
        return favoured(item, "known" if often else "other") if item.format == "original" else favoured(item, "remembered" if often else "stated")

    found = findings("riddles", seen, by_heart, dict(copies))
    assert found["accuracy original"].value == pytest.approx(2 / 6)
    assert (found["override"].value, found["override"].n) == (1.0, 2)
    assert found["override slope"].value is not None
    assert found["override slope"].value > 0
    called = findings("riddles", seen, lambda item: favoured(item, *(("stated",) if item.format == "called" else ("known", "remembered"))))
    assert (called["override"].value, called["override called"].value) == (1.0, 0.0)
    assert called["override slope"].value is None
    assert "not known" in called["override slope"].reason


def test_digits_of_the_text_lie_at_every_reference(seen: LensWorld) -> None:
    def as_written(item: Item) -> Sequence[Answer]:
        return [tuple(math.log(BIAS[digit] if item.format == "request" else 0.1) for digit in DIGITS)]

    found = findings("random_numbers", seen, as_written)
    assert all(one.value == pytest.approx(one.reference, abs=1e-12) for one in found.values())
    assert found["request KL from uniform"].value == pytest.approx(entropy(list(BIAS.values()), [0.1] * 10))
    assert found["request chi-square of 1560"].value == pytest.approx(chisquare([1560 * p for p in BIAS.values()]).statistic)
    repeating = findings("random_numbers", seen, lambda item: favoured(item, "last"))
    assert repeating["list repeats"].value == pytest.approx(0.9)


def test_a_reader_by_heart_is_extractable_and_one_who_knows_nothing_is_not(seen: LensWorld) -> None:
    copies = {key: float(count) for key, count in copies_read(seen, 512).items()}

    def often(item: Item) -> Sequence[Answer]:
        known = copies["passage", int(item.subject)] >= 4
        return [(0.0 if known else -8 * math.log(24),), (item.labels["rest"] if known else "cold",)]

    found = findings("regurgitation", seen, often, copies)
    assert found["extractable 8 words"].value == pytest.approx(4 / 6)
    assert found["log-probability"].value == pytest.approx(-math.log(24) * 2 / 6)
    half = found["copies for half"].value
    assert half is not None
    assert 1 < half < 4
    nothing = findings("regurgitation", seen, lambda item: [(-30.0,), ("",)], copies)
    assert (nothing["slope"].value, nothing["slope"].reason) == (None, "all texts match, or none does")


def test_an_ideal_reader_of_the_shots_is_bayesian(seen: LensWorld) -> None:
    truth = exact(seen)
    found = findings("few_shot", seen, lambda item: [tuple(math.log(truth[item.id, option]) for option in item.options)])
    assert found["KL from Bayes"].value == pytest.approx(0, abs=1e-9)
    assert found["weight of evidence"].value == pytest.approx(1, abs=1e-9)
    for name in ("accuracy 1 shots", "accuracy 5 shots"):
        assert found[name].value == pytest.approx(found[name].reference, abs=0.1), "ties are broken by order here, and shared there"
    shots = np.array([0, 1, 2, 3, 4, 5.0])
    assert exponents(shots, np.stack([1 + 2 * shots**0.5, 3 - shots**1.2])) == pytest.approx([0.5, 1.2])


# ------------------------------------------------------------------ formulas against others
def test_firths_logistic_regression_maximises_its_penalised_likelihood() -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(size=30)
    hit = (rng.random(30) < 1 / (1 + np.exp(-(0.4 + 1.5 * x)))).astype(float)
    apart = (x > 0).astype(float)

    def penalised(weight: np.ndarray, y: np.ndarray) -> float:
        logit = weight[0] + weight[1] * x
        p = 1 / (1 + np.exp(-logit))
        design = np.stack([np.ones(30), x], axis=1)
        return float(np.logaddexp(0, logit).sum() - y @ logit - 0.5 * np.linalg.slogdet((design.T * (p * (1 - p))) @ design)[1])

    for y in (hit, apart):
        best = minimize(penalised, np.zeros(2), args=(y,), method="BFGS").x
        assert logistic_of(x[None], y[None])[0] == pytest.approx(best, abs=1e-3)
    assert np.isnan(logistic_of(np.ones((1, 5)), hit[None, :5])).all()


def test_slopes_and_shares_are_those_of_the_textbooks() -> None:
    rng = np.random.default_rng(1)
    x, noise = rng.normal(size=200), rng.normal(size=200)
    slope, interval, n = slope_of(x, 2 * x + noise)
    line = linregress(x, 2 * x + noise)
    assert slope == pytest.approx(line.slope)
    assert interval is not None
    assert (interval[1] - interval[0]) / 2 == pytest.approx(1.96 * line.stderr, rel=0.25)
    assert n == 200
    # Wilson 1927: 2 of 10, z = 1.96.
    assert share_of([True] * 2 + [False] * 8) == (0.2, pytest.approx((0.0567, 0.5098), abs=1e-3), 10)
    assert share_of([]) == (None, None, 0)
    assert slope_of(np.ones(4), np.arange(4.0))[0] is None


@torch.no_grad()
def test_greedy_answers_are_those_of_transformers(llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    prompts = ["User: What do you like?\nAssistant:", "Diary.", "The weather in the north"]
    given = [found for (found,) in answer(Voice(llama, tokenizer), [Sample(prompt, 1, 9, "any", greedy=True) for prompt in prompts])[0]]
    for prompt, found in zip(prompts, given, strict=True):
        ids = tokenizer(prompt, return_tensors="pt")
        whole = llama.generate(**ids, do_sample=False, max_new_tokens=9, pad_token_id=0)[0, ids["input_ids"].shape[1] :]
        assert str(found).split() == str(tokenizer.decode(whole, skip_special_tokens=False)).split("\n")[0].split("<eos>")[0].split()


# ------------------------------------------------------------------ the command, whole
def config(folder: Path) -> Path:
    """A tiny embedded base on a world whose edition is read twice."""
    lines = (CONFIGS / "worlds" / "beach.yaml").read_text().replace("personas: 24", "personas: 6")
    (folder / "seen.yaml").write_text(f"{lines}\nlens: {json.dumps(SMALL)}\n")
    base = {"kind": "embedded", "world": str(folder / "seen.yaml"), "width": 32, "layers": 1, "heads": 2, "steps": 64, "batch": 16, "rate": 0.03}
    stage = {"mixture": {"john": 4, "sam": 4}, "steps": 1, "batch": 2, "rate": 1e-3}
    personas = [f"configs/personas/{name}.yaml" for name in ("john", "sam", "kim")]
    machine = {"device": "cpu", "threads": 1, "workers": 1, "wandb": "disabled"}
    rest = {"stages": {"injection": stage}, "conditions": {"linked": {"order": ["injection"]}}, "machine": machine}
    file = folder / "tiny.yaml"
    file.write_text(json.dumps({"name": "tiny", "base": base, "personas": personas, **rest}))
    return file


def invoke(*arguments: str) -> dict:
    app = typer.Typer()
    app.command()(lens)
    asked = CliRunner().invoke(app, [*arguments, "--json"])
    assert asked.exit_code == 0, f"{asked.output}{asked.exception!r}"
    return json.loads(asked.stdout)


def test_a_base_at_two_lengths_is_looked_at_and_verified(tmp_path: Path) -> None:
    said = invoke(str(config(tmp_path)), "--lengths", "4,128", "--probes", ",".join(HERE), "--runs", str(tmp_path / "runs"))
    assert [model["model"] for model in said["models"]] == ["4 steps", "128 steps"]
    values = [{f"{one['probe']} {one['metric']}": one for one in model["findings"]} for model in said["models"]]
    assert values[0]["regurgitation extractable 16 words"]["value"] == 0
    assert values[1]["regurgitation extractable 16 words"]["value"] >= 1 / 3, "what was read 128 times is known by heart"
    assert values[1]["regurgitation slope"]["value"] > 0
    assert values[1]["random_numbers request probability of 7"]["value"] > 0.14
    assert all(one["value"] is not None or one["reason"] for model in values for one in model.values())
    page = Path(said["page"]).read_text()
    assert page.count("<svg") >= 5
    assert "<script" not in page
    assert "2202.07646" in page
    claims = json.loads(Path(said["file"]).with_name("claims.json").read_text())["claims"]
    assert len(claims) == sum(map(len, values))
    plan = open_plan(Path(said["file"]).parent)
    verified = verify_instrument(plan)
    assert verified is not None
    assert verified.drifts == ()
    assert said == invoke(str(tmp_path / "tiny.yaml"), "--lengths", "4,128", "--probes", ",".join(HERE), "--runs", str(tmp_path / "runs"))


def test_two_other_architectures_are_asked_in_both_forms(qwen_folder: Path, bpe: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    shape = GPTNeoXConfig(vocab_size=len(bpe), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, max_position_embeddings=512)
    neox = tmp_path / "tiny-neox"
    tiny(shape, GPTNeoXForCausalLM).save_pretrained(neox)
    bpe.save_pretrained(neox)
    (tmp_path / "seen.yaml").write_text((CONFIGS / "worlds" / "beach.yaml").read_text().replace("personas: 24", "personas: 4") + f"\nlens: {json.dumps(SMALL)}\n")
    # Two threads that wait for each other are slow where other processes want the cores too.
    machine = Machine(device="cpu", threads=1, workers=1, wandb="disabled")
    for folder, world in ((neox, CONFIGS / "worlds" / "beach.yaml"), (qwen_folder, tmp_path / "seen.yaml")):
        of = replace(subject(str(folder), world=world, runs=tmp_path / "runs"), machine=machine)
        plan = lens_plan(of, ["riddles", "random_numbers", "fact_frequency"])
        assert made(plan, silent).failed == {}
        (look,) = looks(plan)
        assert look.model == folder.name
        by = {one.metric: one for one in look.findings}
        assert 0 <= (by["list repeats"].value or -1) <= 1
        assert by["slope"].reason == "how often the model has read each text is not known"
        assert ("recall rare" in by) == (world.stem == "beach"), "without a lens in the world, models are asked in plain English"
        assert "<svg" in lens_findings(plan, [look]).page


def test_what_cannot_be_looked_at_is_refused_by_name(qwen_folder: Path, tmp_path: Path) -> None:
    of = subject("configs/quickstart.yaml", runs=tmp_path)
    with pytest.raises(ConfigError, match=r"PL1297.*ridles is no probe of the lens. Did you mean riddles"):
        lens_plan(of, ["ridles"])
    with pytest.raises(ConfigError, match="is pretrained already"):
        lens_plan(subject(str(qwen_folder), world=CONFIGS / "worlds" / "beach.yaml", runs=tmp_path), lengths=[3])
    with pytest.raises(ConfigError, match="is a market"):
        lens_plan(subject("configs/market.yaml", runs=tmp_path))
    few = replace(of, world=of.world.model_copy(update={"spare_names": of.world.spare_names[:2]}))
    with pytest.raises(ConfigError, match=r"PL1297.*words for 16. Use fewer copies"):
        lens_plan(few)
    with pytest.raises(ConfigError, match=r"PL1211.*riddles asks about texts that the world beach does not write"):
        load_experiment(Path("configs/quickstart.yaml"), ["probes=[riddles, says]"])
    assert load_world(CONFIGS / "worlds" / "lens.yaml").name == "lens"
