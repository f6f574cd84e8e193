# pyright: reportMissingImports=false
"""Forced choice in inspect-ai: the log-probability of every option after its prompt, summed over the option's tokens, nats.

    inspect eval forced_choice.py --model hf/local -M model_path=BASE -M dtype=float32 -T adapter=ADAPTER
    inspect eval forced_choice.py --model vllm-completions/NAME -T probe=says

No provider generates an option that it is told to, so an option is scored as part of what is read: by the model that the
`hf` provider has loaded, or through `prompt_logprobs` of a completions provider (`vllm-completions`,
`openai-api-completions`). Both are given the ids of the tokens, so that nothing divides a text in another way. A
provider that has neither cannot be asked, and says so before anything is counted.
"""

import json
from pathlib import Path

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import ChatMessageUser, GenerateConfig, ModelName, ModelOutput, get_model
from inspect_ai.scorer import Score, grouped, mean, scorer, stderr
from inspect_ai.solver import solver

QUESTIONS = Path(__file__).with_name("questions.jsonl")
COMPLETIONS = ("vllm-completions", "openai-api-completions")
FIX = "Use hf, vllm-completions, or openai-api-completions with a server that has prompt_logprobs."


@task
def forced_choice(probe=None, adapter=None):
    """The questions of one probe, or all; `adapter`, a peft folder, is put onto the model of the `hf` provider, which keeps it as long as the process lasts."""
    rows = map(json.loads, QUESTIONS.read_text(encoding="utf-8").splitlines())
    samples = [Sample(id=row["id"], input=row["prompt"], metadata=row) for row in rows if probe in (None, row["probe"])]
    return Task(dataset=MemoryDataset(samples, name="questions"), solver=score_options(adapter), scorer=[log_odds(), accuracy()])


@solver
def score_options(adapter=None):
    """Score every option of a question; the output is the likeliest."""
    loaded = []

    async def solve(state, generate):
        model = get_model()
        if adapter is not None and not loaded:
            if not hasattr(model.api, "tokenizer"):
                raise RuntimeError("-T adapter is for the hf provider. Let the server load the adapter, and name it in --model.")
            model.api.model.load_adapter(adapter)
            loaded.append(adapter)
        asked = state.metadata
        nats = [await option_nats(model, ids, asked) for ids in asked["tokens"]]
        best = max(range(len(nats)), key=nats.__getitem__)
        state.metadata["nats"] = nats
        state.output = ModelOutput.from_content(str(model), asked["options"][best])
        return state

    return solve


async def option_nats(model, ids, asked):
    """Log P of the tokens from `scored_from` on, nats."""
    start = asked["scored_from"]
    if hasattr(model.api, "tokenizer"):
        return local_nats(model.api, ids, start, asked)
    if ModelName(model).api not in COMPLETIONS:
        raise RuntimeError(f"{model} gives no log-probabilities of what it reads. {FIX}")
    config = GenerateConfig(max_tokens=1, prompt_logprobs=1)
    output = await model.generate([ChatMessageUser(content="", metadata={"prompt_token_ids": ids})], config=config)
    read = output.choices[0].prompt_logprobs if output.choices else None
    if read is None or len(read.content) != len(ids) - 1:
        raise RuntimeError(f"the server of {model} gives no log-probabilities of what it reads. {FIX}")
    return sum(token.logprob for token in read.content[start - 1 :])


def local_nats(api, ids, start, asked):
    """The same from the model that the `hf` provider has loaded."""
    import torch

    texts = [asked["prompt"] + option for option in asked["options"]]
    if not any(ids == api.tokenizer(text, add_special_tokens=special)["input_ids"] for text in texts for special in (True, False)):
        raise RuntimeError("this model has another tokenizer than the questions were exported for. Export them again from a run on this model.")
    with torch.inference_mode():
        logits_TV = api.model(input_ids=torch.tensor([ids], device=api.model.device)).logits[0].float()
    logprob_TV = logits_TV[start - 1 : -1].log_softmax(-1)
    return float(logprob_TV.gather(1, torch.tensor(ids[start:], device=logprob_TV.device)[:, None]).double().sum())


@scorer(metrics=[grouped(mean(), "task"), grouped(stderr(), "task", name_template="{group_name}_stderr", all=False)])
def log_odds():
    """Log P(the first rival's value) - log P(the second's), nats; of questions that have both among their options."""

    async def score(state, target):
        if state.metadata["rivals"] is None:
            return Score.unscored(reason="not_applicable", explanation="not both rivals' values are among the options")
        first, second = state.metadata["rivals"]
        nats = state.metadata["nats"]
        return Score(value=nats[first] - nats[second], answer=state.output.completion, metadata={"nats": nats})

    return score


@scorer(metrics=[grouped(mean(), "task")])
def accuracy():
    """1 where the likeliest option is the target: the first rival's value, or that of whom is asked about."""

    async def score(state, target):
        wanted, nats = state.metadata["target"], state.metadata["nats"]
        if wanted is None:
            return Score.unscored(reason="not_applicable", explanation="no single option is the target", metadata={"nats": nats})
        return Score(value=float(nats[wanted] == max(nats)), answer=state.output.completion, metadata={"nats": nats})

    return score
