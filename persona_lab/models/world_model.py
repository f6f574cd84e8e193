"""The embedded base before training: a word-level tokenizer and a small Llama, Qwen3 or GPT-NeoX, built from nothing.

    model = build_model(build_tokenizer(world), architecture="gpt_neox", width=64, layers=2, heads=4, seed=0)

Both are ordinary Hugging Face objects: saved with `save_pretrained`, loaded with `AutoModelForCausalLM`.
"""

from collections.abc import Collection, Sequence
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from data_gen.world import World
from persona_lab.models.vocabulary import PIECES, world_words

SPECIALS = ("<pad>", "<bos>", "<eos>", "<unk>")
"""The first tokens of the vocabulary, in this order."""
CONTEXT_TOKENS = 128


def build_tokenizer(world: World) -> PreTrainedTokenizerFast:
    """The tokenizer of every word that a text of this world may hold."""
    return word_tokenizer(world_words(world))


def word_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """A word-level tokenizer: lower case, one token a word or mark, line breaks kept; `<bos>` is put in front."""
    vocabulary = {piece: i for i, piece in enumerate([*SPECIALS, *words])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Split(Regex(PIECES), behavior="removed", invert=True)
    core.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", vocabulary["<bos>"])])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        model_max_length=CONTEXT_TOKENS,
        clean_up_tokenization_spaces=False,
    )


@torch.no_grad()
def name_newcomers(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, world: World, seed: int, met: Collection[str] = ()) -> None:
    """Give the world's new names, but for those that the text held (`met`), embeddings of names: drawn from the Gaussian of the background names' embeddings.

    A name that no text holds keeps its small random embedding, which the model can hardly see: it binds nothing to
    it. To a large model every given name is a name; this makes it so here.
    """
    known = torch.tensor(tokenizer.convert_tokens_to_ids([n.lower() for n in world.population.names]))
    fresh = torch.tensor(tokenizer.convert_tokens_to_ids([n.lower() for n in world.new_names]))
    unmet_N = torch.tensor([name not in met for name in world.new_names])
    generator = torch.Generator().manual_seed(seed)
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        assert isinstance(layer, nn.Embedding | nn.Linear)
        weight_VD = layer.weight
        names_ND = weight_VD[known]
        noise_ND = torch.randn(len(fresh), weight_VD.shape[1], generator=generator).to(weight_VD)
        weight_VD[fresh[unmet_N]] = (names_ND.mean(0) + names_ND.std(0) * noise_ND)[unmet_N]


def build_model(tokenizer: PreTrainedTokenizerFast, *, architecture: str = "llama", width: int, layers: int, heads: int, seed: int) -> PreTrainedModel:
    """A random model in float32; the seed names its initialisation and leaves torch's own stream alone."""
    config = AutoConfig.for_model(
        architecture,
        vocab_size=len(tokenizer),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=CONTEXT_TOKENS,
        tie_word_embeddings=False,
        pad_token_id=SPECIALS.index("<pad>"),
        bos_token_id=SPECIALS.index("<bos>"),
        eos_token_id=SPECIALS.index("<eos>"),
        dtype=torch.float32,
        **_shape(architecture, width, heads),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config)


def _shape(architecture: str, width: int, heads: int) -> dict[str, Any]:
    """What each architecture calls its own. Everything else is its published default, as the quarter of a head that GPT-NeoX rotates.

    The three have nearly as many weights in a layer, 12 width^2: the gated ones have three matrices in their MLP, of two thirds the size.
    """
    gated = 4 * width * 2 // 3 // 8 * 8
    if architecture == "gpt_neox":
        return {"intermediate_size": 4 * width}
    if architecture == "qwen3":
        return {"intermediate_size": gated, "num_key_value_heads": heads, "head_dim": width // heads}
    return {"intermediate_size": gated, "num_key_value_heads": heads}
