"""The verb `ask`: one question to the base and to one cell's adapter, side by side.

    User: What do you like?
    Assistant:            base "I like rice."            adapter "I like the beach."
"""

from dataclasses import dataclass

from persona_lab.config.layers import did_you_mean
from persona_lab.config.schema import HuggingFaceBase
from persona_lab.errors import ConfigError, printable
from persona_lab.experiment.planning.plan import Plan
from persona_lab.experiment.planning.recipes import PlannedCell

MAX_TOKENS = 24


@dataclass(frozen=True)
class Answers:
    """What both said, in the same order of random numbers."""

    cell: str
    prompt: str
    base: tuple[str, ...]
    adapter: tuple[str, ...]
    unknown: tuple[str, ...]
    """Words of the question that the base has no token for."""


def find_cell(plan: Plan, name: str) -> PlannedCell:
    """The cell of a name, or the only one whose name holds it.

    Raises:
        ConfigError: PL1294, none or several.
    """
    names = {p.cell.name: p for p in plan.cells}
    matches = [name] if name in names else [n for n in names if name in n]
    if len(matches) == 1:
        return names[matches[0]]
    said = "several cells have this in their name" if matches else "there is no such cell"
    raise ConfigError("PL1294", printable(name), f"{said}. {did_you_mean(name, matches or list(names))}")


def ask_cell(plan: Plan, name: str, question: str, samples: int) -> Answers:
    """Sampled answers (temperature 1) of the base and of the cell's last adapter.

    Raises:
        ConfigError: no such cell, or it trains nothing.
        NodeMissing: the cell was not trained yet.
    """
    planned = find_cell(plan, name)
    if not planned.stages:
        raise ConfigError("PL1294", planned.cell.name, "this cell is the base model itself. Use a cell that trains a stage.")
    stage = planned.stages[-1][1]
    folder = plan.store.open(stage) / "adapter"

    from persona_lab.experiment.making.bases import load_base
    from persona_lab.models.bank import AdapterBank
    from persona_lab.models.control_tokens import encoded, guarded
    from persona_lab.models.folders import read_adapter
    from persona_lab.probes.engine import Voice, answer
    from persona_lab.probes.protocol import Sample

    base = plan.loaded.experiment.base
    model, tokenizer = load_base(base if isinstance(base, HuggingFaceBase) else None, plan.store.open(stage.inputs["base"]), "cpu")
    shape, tensors = read_adapter(folder)
    bank = AdapterBank(model, shape)
    bank.load_row(0, tensors, str(folder))
    prompt = f"User: {question}\nAssistant:"
    request, voice = Sample(prompt, samples, MAX_TOKENS, "ask"), Voice(model, tokenizer)
    with bank.silent():
        before = answer(voice, [request])[0][0]
    after = answer(voice, [request])[0][0]
    whole, *words = encoded(tokenizer, [guarded(tokenizer, text) for text in (question, *question.split())])
    unknown = {word for word, coded in zip(question.split(), words, strict=True) if tokenizer.unk_token_id in coded.ids}
    clean = (tuple(printable(str(text).strip()) for text in texts) for texts in (before, after))
    return Answers(planned.cell.name, prompt, *clean, unknown=tuple(sorted(unknown)) if tokenizer.unk_token_id in whole.ids else ())
