"""What it costs to put the questions of a sweep to one more adapter: ours, and four other ways on the same questions.

    python -m benchmarks.scoring --workload tiny        python -m benchmarks.scoring --workload cpu --questions 50

    tiny   the base of configs/ratio.yaml and 200 of each cell's own questions (about 1,400 options)
    cpu    4 layers, d = 256, 8k words; questions of 120 tokens with 4 options each, half of one token, half of three

    ours            all adapters of a bank together (K = 8), and one after the other (K = 1)
    ours, again     the next stack of a sweep: its questions were asked before, and their token ids are remembered
    plain loop      transformers + peft, an adapter at a time; options padded on the right, sorted by length, 32 together
    peft mixed      peft's `adapter_names`: every batch holds rows of all the adapters
    lm-eval warm    lm-evaluation-harness in this process, model loaded before the clock starts, its logits cache on
    lm-eval cold    one process an adapter: imports, loads, scores (without the command line's own start); once

lm-eval is left out where it is not installed: pip install -c constraints.txt -e '.[bench]'. All are measured in one
run, interleaved; one adapter of the eight a repeat for the ways that take one at a time. Seconds are CPU seconds of
one thread, so that a busy machine does not count. Counted of every way is what leads from strings to a list of
log-probabilities: tokens, layout, forward passes; of no way the loading of models and adapters (but of the cold one) or
tables of what was found. Batches of 32 suit lm-eval: on `tiny` it is 1 to 3 % faster with 64, slower with 16, 128 and 200.
No speed without its verdict: beside each figure stands the largest difference of its log-probabilities from the plain loop's.
"""

import argparse
import copy
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module, metadata
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from peft import PeftModel
from torch import nn
from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from benchmarks.questions import choices_of, word_base, word_questions, word_tokenizer
from persona_lab.config.schema import EmbeddedBase
from persona_lab.experiment.planning.plan import make_plan
from persona_lab.models.bank import AdapterBank
from persona_lab.models.folders import write_adapter
from persona_lab.models.lora import LoraShape
from persona_lab.models.world_model import build_model, build_tokenizer
from persona_lab.probes.engine import Voice, answer_each
from persona_lab.probes.protocol import Choice
from persona_lab.probes.spans import Span, choice_spans, encode, forget

MEMBERS = 8
BATCH = 32
FIRST = f"ours, K = {MEMBERS}"
CONFIG = Path("configs/ratio.yaml")
COLD = """
import json, sys
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
base, adapter, file, batch = sys.argv[1:]
lm = HFLM(pretrained=base, peft=adapter, device="cpu", dtype="float32", batch_size=int(batch))
pairs = json.load(open(file))
found = lm.loglikelihood([Instance("loglikelihood", {}, tuple(p), i) for i, p in enumerate(pairs)], disable_tqdm=True)
print(json.dumps([f[0] for f in found]))
"""


@dataclass(frozen=True)
class Workload:
    """A base, eight random adapters of it in a bank, in peft folders and in peft, and the questions of each."""

    base: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    bank: AdapterBank
    peft: PeftModel
    folder: Path
    questions_K: list[list[Choice]]

    @property
    def pad(self) -> int:
        """What stands behind a sequence that is shorter than its batch."""
        return self.base.config.get_text_config().pad_token_id or 0

    def pairs(self, member: int) -> list[tuple[str, str]]:
        """Prompt and option of every option a member is asked about."""
        return [(q.prompt, option) for q in self.questions_K[member] for option in q.options]

    def spans(self, member: int) -> list[Span]:
        """The same as token ids."""
        ids = encode(self.tokenizer, self.questions_K[member])
        return [span for q in self.questions_K[member] for span in choice_spans(self.tokenizer, q, ids)]


def tiny_questions(questions: int) -> tuple[PreTrainedModel, PreTrainedTokenizerFast, list[list[Choice]]]:
    """Of the first cells of the ratio experiment, so many questions each, evenly spread over the probes."""
    plan = make_plan(CONFIG)
    base = plan.loaded.experiment.base
    assert isinstance(base, EmbeddedBase)
    tokenizer = build_tokenizer(plan.loaded.world)
    nodes = [n for n in plan.nodes if n.kind == "scores" and "stage" in n.inputs][:MEMBERS]
    questions_K = [choices_of(node, questions) for node in nodes]
    return build_model(tokenizer, width=base.width, layers=base.layers, heads=base.heads, seed=0), tokenizer, questions_K


def cpu_questions(questions: int) -> tuple[PreTrainedModel, PreTrainedTokenizerFast, list[list[Choice]]]:
    """The same questions for every adapter."""
    return word_base(width=256, heads=4), word_tokenizer(), [word_questions(questions)] * MEMBERS


def build(name: str, questions: int, folder: Path) -> Workload:
    """The workload, its base and adapters also as folders."""
    base, tokenizer, questions_K = (tiny_questions if name == "tiny" else cpu_questions)(questions)
    base = base.requires_grad_(False).eval()
    base.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    plain, shape = copy.deepcopy(base), LoraShape(8, 16)
    bank = AdapterBank(base, shape, MEMBERS)
    bank.weight_KP.normal_(0, 0.1, generator=torch.Generator().manual_seed(0))
    for k in range(MEMBERS):
        write_adapter(folder / f"adapter{k}", bank.row_tensors(k), model=base, shape=shape, base_id="base")
    peft = PeftModel.from_pretrained(plain, str(folder / "adapter0"), adapter_name="0")
    for k in range(1, MEMBERS):
        peft.load_adapter(str(folder / f"adapter{k}"), adapter_name=str(k))
    return Workload(base, tokenizer, bank, peft.eval(), folder, questions_K)


# ------------------------------------------------------------------ ways to score: each gives the nats of every option of some members
Nats = dict[int, list[float]]


def nats_of(answers: Sequence[Sequence[float | str]]) -> list[float]:
    """Of choices, in order: only generations answer in words, and none is asked for."""
    return cast("list[float]", list(chain.from_iterable(answers)))


def ours_together(work: Workload, _: int, *, first: bool) -> Nats:
    """The bank as it is; `first`: no text was ever encoded."""
    if first:
        forget()
    found_K = answer_each(Voice(work.base, work.tokenizer, MEMBERS), work.questions_K)
    return {k: nats_of(found) for k, found in enumerate(found_K)}


def ours_alone(work: Workload, member: int, bank: AdapterBank) -> Nats:
    """A bank of one."""
    forget()
    bank.weight_KP[0] = work.bank.weight_KP[member]
    (found,) = answer_each(Voice(bank.model, work.tokenizer), [work.questions_K[member]])
    return {member: nats_of(found)}


@torch.inference_mode()
def padded_nats(model: nn.Module, spans: Sequence[Span], pad: int, names: Sequence[str] | None = None) -> list[float]:
    """Log-probabilities of spans, a batch of similar lengths at a time."""
    nats = [0.0] * len(spans)
    order = sorted(range(len(spans)), key=lambda i: len(spans[i].ids))
    for chosen in (order[start : start + BATCH] for start in range(0, len(order), BATCH)):
        longest = max(len(spans[i].ids) for i in chosen)
        ids_BT = torch.tensor([[*spans[i].ids, *[pad] * (longest - len(spans[i].ids))] for i in chosen])
        real_BT = torch.arange(longest) < torch.tensor([len(spans[i].ids) for i in chosen])[:, None]
        mixed = {} if names is None else {"adapter_names": [names[i] for i in chosen]}
        logits_BTV = model(input_ids=ids_BT, attention_mask=real_BT.long(), use_cache=False, **mixed).logits
        for b, i in enumerate(chosen):
            scored = slice(spans[i].start, len(spans[i].ids))
            logprob_NV = logits_BTV[b, scored.start - 1 : scored.stop - 1].log_softmax(-1)
            nats[i] = float(logprob_NV.gather(1, ids_BT[b, scored, None]).sum())
    return nats


def plain_loop(work: Workload, member: int) -> Nats:
    """One adapter of peft."""
    work.peft.set_adapter(str(member))
    return {member: padded_nats(work.peft, work.spans(member), work.pad)}


def peft_mixed(work: Workload, _: int) -> Nats:
    """All adapters of peft in the same batches."""
    spans_K = [work.spans(k) for k in range(MEMBERS)]
    names = [str(k) for k, spans in enumerate(spans_K) for _ in spans]
    found = iter(padded_nats(work.peft, [s for spans in spans_K for s in spans], work.pad, names))
    return {k: [next(found) for _ in spans] for k, spans in enumerate(spans_K)}


def lm_eval_warm(work: Workload) -> Callable[[Workload, int], Nats]:
    """The harness in this process; its model is made here, before any clock starts."""
    # Typed as Any: the harness is an extra, and may not be installed where types are checked.
    instance: Any = import_module("lm_eval.api.instance").Instance
    harness: Any = import_module("lm_eval.models.huggingface").HFLM
    lm = harness(pretrained=work.peft, tokenizer=work.tokenizer, batch_size=BATCH, device="cpu")

    def score(work: Workload, member: int) -> Nats:
        work.peft.set_adapter(str(member))
        asked = [instance("loglikelihood", {}, pair, i) for i, pair in enumerate(work.pairs(member))]
        return {member: [nats for nats, _ in lm.loglikelihood(asked, disable_tqdm=True)]}

    return score


def lm_eval_cold(work: Workload, member: int) -> Nats:
    """The harness in a process of its own."""
    file = work.folder / "pairs.json"
    file.write_text(json.dumps(work.pairs(member)))
    command = [sys.executable, "-c", COLD, str(work.folder / "base"), str(work.folder / f"adapter{member}"), str(file), str(BATCH)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return {member: json.loads(done.stdout.splitlines()[-1])}


def cpu_seconds() -> float:
    """Of this process and of those it waited for."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


@dataclass
class Measured:
    """CPU seconds an adapter of one way, and its worst disagreement."""

    seconds: list[float]
    difference: float = 0.0

    def line(self, name: str, ours: float) -> str:
        """One line of the table."""
        low, middle, high = statistics.quantiles(self.seconds, n=4) if len(self.seconds) > 1 else self.seconds * 3
        verdict = "equal" if self.difference <= 1e-4 else "NOT EQUAL"
        return f"{name:18}{middle:9.4f} [{low:.4f}, {high:.4f}] s/adapter  x{middle / ours:<7.1f} max |difference| {self.difference:.1e} nats, {verdict}"


def measure(work: Workload, ways: dict[str, Callable[[Workload, int], Nats]], repeats: int, once: Sequence[str]) -> dict[str, Measured]:
    """Every way in turn, `repeats` times; adapter r of the eight in repeat r."""
    wanted = {k: np.array(plain_loop(work, k)[k]) for k in range(MEMBERS)}
    found = {name: Measured([]) for name in ways}
    for repeat in range(-1, repeats):
        for name, way in ways.items():
            # The first round warms up and does not count; what starts a process needs none.
            if name in once and repeat != 0:
                continue
            start = cpu_seconds()
            nats = way(work, repeat % MEMBERS)
            if repeat >= 0:
                found[name].seconds.append((cpu_seconds() - start) / len(nats))
            found[name].difference = max(found[name].difference, *(float(np.abs(np.array(n) - wanted[k]).max()) for k, n in nats.items()))
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", choices=["tiny", "cpu"], default="tiny")
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        work = build(options.workload, options.questions, Path(folder))
        single = AdapterBank(LlamaForCausalLM.from_pretrained(Path(folder) / "base").eval(), LoraShape(8, 16))
        ways = {FIRST: partial(ours_together, first=True), f"ours, K = {MEMBERS}, again": partial(ours_together, first=False), "ours, K = 1": partial(ours_alone, bank=single), "plain loop": plain_loop, "peft mixed": peft_mixed}
        if find_spec("lm_eval"):
            ways |= {"lm-eval warm": lm_eval_warm(work), "lm-eval cold": lm_eval_cold}
        else:
            print("lm-eval is not installed: pip install -c constraints.txt -e '.[bench]'")
        found = measure(work, ways, options.repeats, once=["lm-eval cold"])
        options_asked = len(work.pairs(0))
    packages = [p for p in ("torch", "transformers", "peft", "lm_eval") if p != "lm_eval" or find_spec("lm_eval")]
    print(f"{options.workload}: {options.questions} questions, {options_asked} options an adapter, {options.repeats} repeats, 1 thread, batches of {BATCH} for the others")
    print(", ".join(f"{p} {metadata.version(p)}" for p in packages))
    best = statistics.median(found[FIRST].seconds)
    for name, measured in found.items():
        print(measured.line(name, best))


if __name__ == "__main__":
    main()
