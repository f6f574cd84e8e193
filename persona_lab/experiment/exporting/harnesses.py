"""The questions of a cell as tasks of lm-eval and inspect-ai: folders that these harnesses run as they are.

    OUT/questions.jsonl   expected.jsonl   README.md
    OUT/lab_questions.py  says_asked.yaml  ...         lm-eval: a task for each probe and format
    OUT/tokenizer/                                     lm-eval: where the model has more rows than the tokenizer has tokens
    OUT/forced_choice.py                               inspect-ai

Before lm-eval loads an adapter it cuts the model's embeddings to the length of the tokenizer (`HFLM._create_model`, 0.4.13).
Many models are padded, Qwen's among them; without their last rows every probability is a larger one. So such a model is
given a tokenizer that has a token for every row.
"""

import copy
import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml
from transformers import PreTrainedTokenizerBase

from persona_lab.errors import printable
from persona_lab.experiment.exporting.questions import EXPECTED, QUESTIONS, Questions, questions_of
from persona_lab.experiment.exporting.subject import Subject
from persona_lab.models.folders import load_tokenizer
from persona_lab.models.inspection import is_folder
from persona_lab.store.files import write_jsonl, write_text

FORMS = Path(__file__).with_name("forms")
LM_EVAL, INSPECT, TOKENIZER = "lab_questions.py", "forced_choice.py", "tokenizer"


class LabDumper(yaml.SafeDumper):
    """Writes `!function module.name`, lm-eval's way to name a function of the folder."""


class Function(str):
    """A function of a file in the folder, `module.name`."""


LabDumper.add_representer(Function, lambda dumper, name: dumper.represent_scalar("!function", str(name), style=""))


@dataclass(frozen=True)
class Model:
    """What is asked, as the commands of a harness name it."""

    base: str
    revision: str | None
    dtype: str
    adapter: str | None
    padded: bool
    """Whether it has rows that are no token's."""

    @classmethod
    def of(cls, subject: Subject, *, padded: bool) -> "Model":
        """Where the subject lies on this machine."""
        adapter = str(subject.adapter) if subject.adapter else None
        base = str(Path(subject.base_path).resolve()) if is_folder(subject.base_path) else subject.base_path
        return cls(base, subject.revision, subject.dtype, adapter, padded)

    def elsewhere(self) -> "Model":
        """The same with placeholders for folders."""
        return replace(self, base="BASE" if is_folder(self.base) else self.base, adapter="ADAPTER" if self.adapter else None)


def lm_eval_commands(subject: Subject, model: Model, out: str) -> list[str]:
    """How lm-eval asks a model; `out` is the folder of the tasks."""
    revision, peft = f",revision={model.revision}" if model.revision else "", f",peft={model.adapter}" if model.adapter else ""
    tokenizer = f",tokenizer={out}/{TOKENIZER}" if model.padded else ""
    arguments = shlex.quote(f"pretrained={model.base}{revision},dtype={model.dtype}{peft}{tokenizer}")
    return [f"lm_eval --model hf --model_args {arguments} --include_path {shlex.quote(out)} --tasks {subject.slug} --log_samples --output_path RESULTS"]


def inspect_commands(subject: Subject, model: Model, out: str) -> list[str]:
    """How inspect-ai asks a model, from this machine or from a server; it takes files of the current folder only."""
    start = f"cd {shlex.quote(out)} && inspect eval {INSPECT}"
    revision, adapter = f" -M revision={model.revision}" if model.revision else "", f" -T adapter={shlex.quote(model.adapter)}" if model.adapter else ""
    return [
        f"{start} --model hf/local -M model_path={shlex.quote(model.base)}{revision} -M dtype={model.dtype}{adapter}",
        f"{start} --model vllm-completions/NAME",
    ]


def write_lm_eval(subject: Subject, asked: Questions, folder: Path, tokenizer: PreTrainedTokenizerBase, rows: int) -> None:
    """A task for each probe and format, all under one tag."""
    shutil.copyfile(FORMS / LM_EVAL, folder / LM_EVAL)
    if rows > len(tokenizer):
        # A copy: the caller's tokenizer stays as it is.
        padded = copy.deepcopy(tokenizer)
        padded.add_tokens([f"<|row {row}|>" for row in range(len(tokenizer), rows)])
        padded.save_pretrained(folder / TOKENIZER)
    module = Path(LM_EVAL).stem
    for task in asked.tasks:
        said = {
            "task": f"{subject.slug}_{task}",
            "tag": subject.slug,
            "custom_dataset": Function(f"{module}.read"),
            "dataset_kwargs": {"task": task},
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "prompt",
            "doc_to_choice": "options",
            "doc_to_target": "target",
            "target_delimiter": "",
            "process_results": Function(f"{module}.outcomes"),
            "metric_list": [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("log_odds", "acc")],
            "metadata": {"version": 1},
        }
        write_text(folder / f"{task}.yaml", yaml.dump(said, Dumper=LabDumper, sort_keys=False, allow_unicode=True))


def write_inspect(_subject: Subject, _asked: Questions, folder: Path, _tokenizer: PreTrainedTokenizerBase, _rows: int) -> None:
    """The task file, which reads the questions beside it."""
    shutil.copyfile(FORMS / INSPECT, folder / INSPECT)


@dataclass(frozen=True)
class Harness:
    """How a harness is written for, and how it is run."""

    write: Callable[[Subject, Questions, Path, PreTrainedTokenizerBase, int], None]
    commands: Callable[[Subject, Model, str], list[str]]


HARNESSES: Mapping[str, Harness] = {"lm-eval": Harness(write_lm_eval, lm_eval_commands), "inspect": Harness(write_inspect, inspect_commands)}


def write_harness(name: str, subject: Subject, probes: Sequence[str], folder: Path, out: Path) -> tuple[Questions, list[str]]:
    """Everything of one harness into `folder`: what is asked, and the commands that run it once it lies at `out`.

    Raises:
        ConfigError: a probe is named that cannot be exported.
        NodeMissing: the subject was not asked yet.
    """
    tokenizer, config = load_tokenizer(subject.base_path, revision=subject.revision, chat=subject.hf.chat if subject.hf else None)
    asked, rows = questions_of(subject, tokenizer, probes), config.get_text_config().vocab_size
    harness, model = HARNESSES[name], Model.of(subject, padded=rows > len(tokenizer))
    write_jsonl(folder / QUESTIONS, asked.rows)
    write_jsonl(folder / EXPECTED, asked.expected)
    harness.write(subject, asked, folder, tokenizer, rows)
    write_text(folder / "README.md", _card(subject, asked, harness.commands(subject, model.elsewhere(), ".")))
    return asked, harness.commands(subject, model, str(out))


def _card(subject: Subject, asked: Questions, commands: list[str]) -> str:
    """What stands in the folder, for people."""
    first, second = subject.scores.fields["names"][:2]
    left = [f"- {printable(why)}: {count} items" for why, count in asked.left_out.items()] or ["- nothing"]
    told = (
        f"`log_odds` is log P of {first}'s value minus log P of {second}'s, nats; `acc` is the share of questions whose likeliest option is {first}'s value, "
        f"or that of whom is asked about. Log-probabilities are summed over the option's tokens and not normalised by length. `{EXPECTED}` holds what the run "
        "itself has measured of every option: in float32 the harness agrees with it to 1e-4 nats."
    )
    parts = [
        f"# {printable(subject.plan.loaded.experiment.name)}: {printable(subject.name)}",
        f"{len(asked.rows)} forced choices of {len(asked.tasks)} tasks: {', '.join(asked.tasks)}.",
        told,
        "\n".join(["```text", *commands, "```"]),
        "\n".join(["Left out:", "", *left]),
    ]
    return "\n\n".join(parts) + "\n"
