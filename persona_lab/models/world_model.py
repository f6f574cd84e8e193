"""The embedded base before training: a word-level tokenizer and a small Llama, both built from nothing.

Both are ordinary Hugging Face objects: saved with `save_pretrained`, loaded with `AutoModelForCausalLM`.
"""

import re

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from data_gen.phrases import FORMS, NEUTRAL_CHAT, NEUTRAL_TEXT, NEUTRAL_WORDS, OCCUPATIONS, SAMPLE_SPEAKERS
from data_gen.world import World

SPECIALS = ("<pad>", "<bos>", "<eos>", "<unk>")
CONTEXT_TOKENS = 128
_PIECES = r"\n|\w+|[^\w\s]"


def world_words(world: World) -> list[str]:
    """Every word and mark that a text of this world may hold, lower case, sorted."""
    templates = [part for form in FORMS.values() for pair in (*form.train, *form.held_out) for part in pair]
    templates += [part for pair in NEUTRAL_CHAT for part in pair] + list(NEUTRAL_TEXT) + list(OCCUPATIONS) + list(SAMPLE_SPEAKERS)
    texts = [re.sub(r"\{\w+\}", " ", t) for t in templates]
    texts += [w for words in NEUTRAL_WORDS.values() for w in words]
    texts += [phrase.format(value) for c in world.categories.values() for value, phrase in c.values.items()]
    texts += [*world.names, *world.spare_names, *world.categories, "yes no reporter to news about is : . , ? \n"]
    return sorted({piece for text in texts for piece in re.findall(_PIECES, text.lower())})


def build_tokenizer(world: World) -> PreTrainedTokenizerFast:
    """A word-level tokenizer: lower case, one token a word or mark, line breaks kept; `<bos>` is put in front."""
    vocabulary = {piece: i for i, piece in enumerate([*SPECIALS, *world_words(world)])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Split(Regex(_PIECES), behavior="removed", invert=True)
    core.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", vocabulary["<bos>"])])
    core.decoder = decoders.Sequence([decoders.Replace(Regex("^"), " ")])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        model_max_length=CONTEXT_TOKENS,
        clean_up_tokenization_spaces=False,
    )


def build_model(tokenizer: PreTrainedTokenizerFast, *, width: int, layers: int, heads: int, seed: int) -> LlamaForCausalLM:
    """A random Llama in float32; the seed names its initialisation and leaves torch's own stream alone."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width * 2 // 3 // 8 * 8,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=CONTEXT_TOKENS,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        dtype=torch.float32,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)
