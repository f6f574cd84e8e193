"""What the benchmarks ask: the questions of a cell of an experiment, or questions of random words for a base of random words."""

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from persona_lab.design import Node
from persona_lab.experiment.planning.scores import cast_of
from persona_lab.probes import PROBES
from persona_lab.probes.protocol import Choice


def choices_of(node: Node, questions: int) -> list[Choice]:
    """So many of the forced-choice questions whose scores a node holds, evenly spread over its probes."""
    items = [(p, item) for p in node.fields["probes"] for item in PROBES[p].items(cast_of(node))]
    asked = [r for p, item in items for r in PROBES[p].requests(item) if isinstance(r, Choice)]
    return [asked[i * len(asked) // questions] for i in range(questions)]


def word_tokenizer() -> PreTrainedTokenizerFast:
    """8,192 words, one token each."""
    words = {word: i for i, word in enumerate(["<unk>", "<bos>", "<eos>", *(f"w{i}" for i in range(3, 8192))])}
    core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<bos>", eos_token="<eos>", pad_token="<eos>", unk_token="<unk>", model_max_length=512)


def word_text(rng: np.random.Generator, length: int) -> str:
    """So many random words."""
    return " ".join(f"w{i}" for i in rng.integers(3, 8192, length))


def word_base(width: int, heads: int) -> LlamaForCausalLM:
    """Four random layers over these words."""
    inner = -(-8 * width // 3 // 8) * 8  # 688 at 256
    shape = LlamaConfig(vocab_size=8192, hidden_size=width, intermediate_size=inner, num_hidden_layers=4, num_attention_heads=heads, max_position_embeddings=512)
    torch.manual_seed(0)
    return LlamaForCausalLM(shape)


def word_questions(questions: int) -> list[Choice]:
    """Questions of about 120 random words and four options each, which share nothing with one another."""
    rng = np.random.default_rng(0)
    return [
        Choice(word_text(rng, int(rng.integers(100, 139))), tuple(f" {word_text(rng, 3 if n % 2 else 1)}" for _ in range(4))) for n in range(questions)
    ]
