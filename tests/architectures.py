"""Random models of many architectures, and tokenizers of the kinds in which they are published, trained on a world's text."""

from collections.abc import Callable, Sequence
from pathlib import Path

from conftest import tiny
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    OPTConfig,
    Phi3Config,
    PhiConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

SIZE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 256}
GROUPED = {**SIZE, "num_key_value_heads": 2, "head_dim": 8}
OLD = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
OPT = {"hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 256, "word_embed_proj_dim": 32}
ARCHITECTURES: dict[str, tuple[str, Callable[..., PreTrainedConfig]]] = {
    "llama": ("begun", lambda n: LlamaConfig(**SIZE, vocab_size=n)),
    "qwen2": ("bytes", lambda n: Qwen2Config(**SIZE, num_key_value_heads=2, vocab_size=n + 6, tie_word_embeddings=True)),
    "qwen3": ("bytes", lambda n: Qwen3Config(**GROUPED, vocab_size=n + 6)),
    "gemma2": ("begun", lambda n: Gemma2Config(**GROUPED, vocab_size=n)),
    "gemma3": ("begun", lambda n: Gemma3TextConfig(**GROUPED, vocab_size=n)),
    "mistral": ("pieces", lambda n: MistralConfig(**SIZE, num_key_value_heads=2, vocab_size=n)),
    "gpt_neox": ("bytes", lambda n: GPTNeoXConfig(**SIZE, vocab_size=n)),
    "olmo2": ("bytes", lambda n: Olmo2Config(**SIZE, vocab_size=n)),
    "gpt2": ("bytes", lambda n: GPT2Config(**OLD, vocab_size=n)),
    "phi3": ("pieces", lambda n: Phi3Config(**SIZE, vocab_size=n, pad_token_id=0)),
    "phi": ("bytes", lambda n: PhiConfig(**SIZE, vocab_size=n)),
    "opt": ("begun", lambda n: OPTConfig(**OPT, vocab_size=n)),
}
"""Name to the kind of its tokenizer and its config for so many tokens: two layers, no pad token in any of them."""


def published_tokenizer(kind: str, texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """A BPE of 380 tokens: over `bytes`, as GPT-2 and Qwen have it; `begun` with a first token too (Llama 3, Gemma); over `pieces` with spaces in them (Mistral)."""
    pieces = kind == "pieces"
    core = Tokenizer(models.BPE(unk_token="<unk>" if pieces else None))
    core.pre_tokenizer = pre_tokenizers.Metaspace() if pieces else pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.Metaspace() if pieces else decoders.ByteLevel()
    specials = {"bytes": ["<|endoftext|>"], "begun": ["<s>", "</s>"], "pieces": ["<unk>", "<s>", "</s>"]}[kind]
    letters = ["\n"] if pieces else pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=380, special_tokens=specials, initial_alphabet=letters, show_progress=False))
    if kind == "bytes":
        return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|endoftext|>")
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", core.token_to_id("<s>"))])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>")


def random_folder(name: str, texts: Sequence[str], folder: Path) -> Path:
    """A random model of an architecture as a Hugging Face folder."""
    kind, config = ARCHITECTURES[name]
    tokenizer = published_tokenizer(kind, texts)
    tiny(config(len(tokenizer)), AutoModelForCausalLM.from_config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
