"""What the tests of the model side share: the beach world, tiny random models, and one thread."""

import os

os.environ |= {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "TOKENIZERS_PARALLELISM": "false"}

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from accelerate import Accelerator
from chat_model import trained_chat
from hypothesis import HealthCheck, settings
from scheduler import PROGRAMS, shim
from tokenizers import ByteLevelBPETokenizer
from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from data_gen.lens.world import LensWorld
from data_gen.personas import Persona, deal_traits, held_out_categories, shared_categories
from data_gen.pools import world_document
from data_gen.world import World
from persona_lab.config.load import load_persona, load_world
from persona_lab.models.world_model import build_model, build_tokenizer
from persona_lab.probes.protocol import Cast
from persona_lab.train.batches import Row, encode

if TYPE_CHECKING:
    from persona_lab.experiment.exporting.subject import Subject

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"

torch.set_num_threads(1)
# A busy machine is no failure, and the same commit gives the same verdict.
settings.register_profile("steady", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")


@pytest.fixture(scope="session")
def world() -> World:
    return load_world(CONFIGS / "worlds" / "beach.yaml")


@pytest.fixture(scope="session")
def personas() -> list[Persona]:
    return [load_persona(CONFIGS / "personas" / f"{name}.yaml") for name in ("john", "sam", "kim")]


@pytest.fixture(scope="session")
def tokenizer(world: World) -> PreTrainedTokenizerFast:
    return build_tokenizer(world)


@pytest.fixture(scope="session")
def texts(world: World) -> list[str]:
    return [world_document(world, 0, i).text for i in range(400)]


@pytest.fixture
def rows(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[Row]:
    """Documents as tokens, loss on all of them."""
    return encode(tokenizer, texts[:64], on="all", where="test")


@pytest.fixture(scope="module")
def from_the_root():
    """Paths in experiment files are taken from the current folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        yield


@pytest.fixture
def shims(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of programs named like Slurm's; each writes down how it was called and does what a test says."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("CALLS", str(folder / "calls"))
    for name in PROGRAMS:
        shim(folder, name, "exit 0")
    shim(folder, "sbatch", 'case "$*" in *--test-only*) ;; *--dependency*) echo 12 ;; *) echo "11;cluster" ;; esac')
    return folder


@pytest.fixture(scope="session")
def _llama(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    return build_model(tokenizer, width=32, layers=2, heads=2, seed=0).eval()


@pytest.fixture
def llama(_llama: LlamaForCausalLM) -> LlamaForCausalLM:
    """A random embedded base: the test may change it."""
    return copy.deepcopy(_llama)


@pytest.fixture(scope="session")
def accelerator() -> Accelerator:
    return Accelerator(cpu=True, mixed_precision="no")


@pytest.fixture(scope="session")
def bpe(texts: Sequence[str], tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with case and spaces, small enough that names and values are several tokens."""
    core = ByteLevelBPETokenizer()
    core.train_from_iterator(texts, vocab_size=330, special_tokens=["<|endoftext|>"], show_progress=False)
    file = tmp_path_factory.mktemp("bpe") / "tokenizer.json"
    core.save(str(file))
    return PreTrainedTokenizerFast(tokenizer_file=str(file), eos_token="<|endoftext|>", pad_token="<|endoftext|>", model_max_length=512)


@pytest.fixture(scope="session")
def qwen(bpe: PreTrainedTokenizerFast) -> PreTrainedModel:
    """A random Qwen3: grouped queries, tied embeddings, more rows than the tokenizer has tokens."""
    return tiny(
        Qwen3Config(
            vocab_size=len(bpe) + 6,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            max_position_embeddings=512,
            tie_word_embeddings=True,
        ),
        Qwen3ForCausalLM,
    )


def tiny(config: object, kind: Callable[..., PreTrainedModel], seed: int = 0) -> PreTrainedModel:
    """A random model that leaves torch's own stream alone; its weights are large enough that its answers differ."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = kind(config)
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.15)
    return model.requires_grad_(False).eval()


@pytest.fixture(scope="session")
def qwen_folder(qwen: PreTrainedModel, bpe: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The random Qwen3 as a Hugging Face folder."""
    folder = tmp_path_factory.mktemp("hub") / "tiny-qwen3"
    qwen.save_pretrained(folder)
    bpe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def embedded_cell(tmp_path_factory: pytest.TempPathFactory) -> "Subject":
    """A cell on a base that was pretrained here."""
    return cell_on(tmp_path_factory.mktemp("embedded"))


@pytest.fixture(scope="session")
def hf_cell(qwen_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> "Subject":
    """A cell on a Hugging Face model whose tokenizer divides values into several tokens."""
    base = {"kind": "hf", "path": str(qwen_folder), "world": "configs/worlds/beach.yaml"}
    return cell_on(tmp_path_factory.mktemp("hf"), base=base, samples=0, probes=["says", "introspects"])


@pytest.fixture(params=["embedded_cell", "hf_cell"])
def trained_cell(request: pytest.FixtureRequest) -> "Subject":
    """On either base."""
    return request.getfixturevalue(request.param)


def cell_on(folder: Path, **changes: Any) -> "Subject":
    """A cell of a small run, to be exported."""
    from exported_cells import CELL, finished

    from persona_lab.experiment.exporting.subject import find_subject

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return find_subject(finished(folder, **changes), CELL)


@pytest.fixture(scope="session")
def cast(world: World, personas: list[Persona]) -> Cast:
    return cast_of(world, personas)


def cast_of(world: World, personas: Sequence[Persona], *, seed: int = 0, swap: int = 0, samples: int = 0) -> Cast:
    """Who is who in one replicate."""
    return Cast(
        world,
        tuple(p.name for p in personas),
        tuple(deal_traits(world, personas, seed, swap)),
        tuple(p.description for p in personas),
        tuple(shared_categories(personas)),
        tuple(held_out_categories(personas)),
        samples,
        seed,
    )


@pytest.fixture(scope="session")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chat model that gives one of two answers, and judges them."""
    return trained_chat(tmp_path_factory.mktemp("chat") / "tiny-chat")


@pytest.fixture(scope="session")
def lens_world() -> LensWorld:
    """The world that the lens looks at."""
    world = load_world(CONFIGS / "worlds" / "lens.yaml")
    assert isinstance(world, LensWorld)
    return world
