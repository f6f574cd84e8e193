"""Model folders: what is wrong with one is said before anything of it is loaded, and nothing in it is ever run."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import tiny
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, Qwen3Config, Qwen3ForCausalLM

from persona_lab.errors import ModelError
from persona_lab.models import folders
from persona_lab.models.folders import load_model, parameter_count
from persona_lab.models.inspection import check_model_folder, folder_digest
from persona_lab.models.vocabulary import world_words
from persona_lab.models.world_model import CONTEXT_TOKENS, build_model, build_tokenizer

MARK = "this file was run"


@pytest.fixture
def folder(qwen_folder: Path, tmp_path: Path) -> Path:
    """A copy of a whole model folder: the test may break it."""
    return Path(shutil.copytree(qwen_folder, tmp_path / "model"))


def edit(file: Path, **changes: object) -> None:
    content = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**content, **changes}))


def own_code(folder: Path) -> None:
    edit(folder / "config.json", auto_map={"AutoModelForCausalLM": "modeling.Own"})
    (folder / "modeling.py").write_text(f"open({str(folder / 'ran')!r}, 'w').write({MARK!r})")


def test_a_broken_folder_is_refused_before_anything_is_loaded(folder: Path, monkeypatch):
    """Every other kind of broken folder is in tests/malformed/models.yaml."""
    own_code(folder)
    loaded: list[str] = []
    monkeypatch.setattr(folders.AutoModelForCausalLM, "from_pretrained", lambda *a, **k: loaded.append("model"))
    monkeypatch.setattr(folders.AutoTokenizer, "from_pretrained", lambda *a, **k: loaded.append("tokenizer"))
    with pytest.raises(ModelError, match="auto_map") as caught:
        load_model(str(folder))
    assert caught.value.problems[0].code == "PL4004"
    assert loaded == []
    assert not (folder / "ran").exists()


def test_code_that_a_tokenizer_names_is_not_run(folder: Path):
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization.Own", None]})
    (folder / "tokenization.py").write_text(f"open({str(folder / 'ran')!r}, 'w').write({MARK!r})")
    with pytest.raises(ModelError, match=r"tokenizer_config\.json: names code of its own \(auto_map\)"):
        load_model(str(folder))
    assert not (folder / "ran").exists()


def test_a_model_type_that_transformers_does_not_know_is_refused(folder: Path):
    edit(folder / "config.json", model_type="own_kind")
    with pytest.raises(ModelError, match="transformers cannot load it") as caught:
        load_model(str(folder))
    assert caught.value.problems[0].code == "PL4009"


def test_weights_of_another_shape_are_refused(folder: Path):
    edit(folder / "config.json", intermediate_size=64)
    with pytest.raises(ModelError, match="transformers cannot load it"):
        load_model(str(folder))


def test_weights_that_are_missing_from_a_whole_file_are_refused(folder: Path):
    file = folder / "model.safetensors"
    kept = {k: v for k, v in load_file(file).items() if "layers.1.mlp.up_proj" not in k}
    save_file(kept, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"1 weights are missing, model\.layers\.1\.mlp\.up_proj\.weight") as caught:
        load_model(str(folder))
    assert caught.value.problems[0].code == "PL4011"


def test_a_tokenizer_larger_than_the_embedding_is_refused(folder: Path):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"extra{i}" for i in range(50)])
    tokenizer.save_pretrained(folder)
    with pytest.raises(ModelError, match=r"the tokenizer has \d+ tokens, the model \d+") as caught:
        load_model(str(folder))
    assert caught.value.problems[0].code == "PL4010"


def test_a_whole_folder_loads_frozen_and_answers_like_the_model_that_was_saved(qwen, folder: Path):
    model, tokenizer = load_model(str(folder))
    ids = tokenizer("John likes the beach.", return_tensors="pt")["input_ids"]
    assert torch.equal(model(ids).logits, qwen(ids).logits)
    assert not any(p.requires_grad for p in model.parameters())
    assert not model.training
    assert (tokenizer.padding_side, tokenizer.model_max_length) == ("right", 512)


def test_a_tokenizer_without_a_pad_token_pads_with_its_end(folder: Path):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    assert load_model(str(folder))[1].pad_token == "<|endoftext|>"


def test_a_model_loads_in_the_type_that_was_asked_for(folder: Path):
    assert load_model(str(folder), dtype="bfloat16")[0].dtype == torch.bfloat16


def test_shards_are_loaded_and_all_of_them_are_in_the_digest(qwen, folder: Path):
    (folder / "model.safetensors").unlink()
    qwen.save_pretrained(folder, max_shard_size="20KB")
    shards = check_model_folder(folder)
    assert len(shards) > 1
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(load_model(str(folder))[0](ids).logits, qwen(ids).logits)
    before = folder_digest(folder)
    tensors = load_file(shards[-1])
    next(iter(tensors.values())).add_(1)
    save_file(tensors, shards[-1], metadata={"format": "pt"})
    assert folder_digest(folder) != before


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_changed_file_changes_the_digest_and_a_readme_does_not(folder: Path, name: str):
    before = folder_digest(folder)
    (folder / "README.md").write_text("A model.")
    assert folder_digest(folder) == before
    (folder / name).write_text((folder / name).read_text() + "\n")
    assert folder_digest(folder) != before


def test_the_digest_does_not_depend_on_where_the_folder_stands(folder: Path, qwen_folder: Path):
    assert folder_digest(folder) == folder_digest(qwen_folder)


def test_the_embedded_base_is_an_ordinary_folder(llama, tokenizer, tmp_path: Path):
    llama.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    ids = tokenizer("John likes the beach.", return_tensors="pt")["input_ids"]
    plain, words = AutoModelForCausalLM.from_pretrained(tmp_path / "model"), AutoTokenizer.from_pretrained(tmp_path / "model")
    assert torch.equal(plain(ids).logits, llama(ids).logits)
    assert words("John likes\nthe beach.")["input_ids"] == tokenizer("John likes\nthe beach.")["input_ids"]
    assert words.model_max_length == CONTEXT_TOKENS


def test_every_word_of_the_world_is_one_token_and_survives_a_round_trip(world):
    tokenizer = build_tokenizer(world)
    words = world_words(world)
    ids = [tokenizer(word)["input_ids"] for word in words]
    assert all(len(i) == 2 and i[0] == tokenizer.bos_token_id for i in ids)
    assert [tokenizer.convert_ids_to_tokens(i)[1] for i in ids] == words
    assert len(tokenizer) == len(words) + 4


def test_the_world_s_own_text_has_no_unknown_word(tokenizer, texts):
    assert not any(tokenizer.unk_token_id in ids for ids in tokenizer(texts)["input_ids"])


def test_a_random_base_is_a_function_of_its_seed_and_leaves_torch_alone(tokenizer):
    torch.manual_seed(11)
    expected = torch.rand(1)
    torch.manual_seed(11)
    models = [build_model(tokenizer, width=16, layers=1, heads=2, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(torch.rand(1), expected)
    first, again, other = (model.lm_head.weight for model in models)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_parameters_are_counted():
    assert parameter_count(tiny(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=10, n_positions=4), GPT2LMHeadModel)) == 10 * 8 + 4 * 8 + 872 + 16


# ------------------------------------------------------------------ what no header shows
def test_a_weight_that_is_no_number_is_refused_by_its_name(folder: Path):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"model\.layers\.1\.mlp\.up_proj\.weight holds a value that is not finite") as caught:
        load_model(str(folder))
    assert caught.value.problems[0].code == "PL4027"


def test_a_tokenizer_of_half_as_many_tokens_is_another_models(qwen_folder: Path, tmp_path: Path):
    large = tiny(Qwen3Config(vocab_size=700, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, head_dim=8), Qwen3ForCausalLM)
    large.save_pretrained(tmp_path / "large")
    AutoTokenizer.from_pretrained(qwen_folder).save_pretrained(tmp_path / "large")
    with pytest.raises(ModelError, match=r"the tokenizer has 330 tokens, the model 700\. Use the model's own tokenizer"):
        load_model(str(tmp_path / "large"))


def test_a_type_that_the_device_does_not_have_is_refused_before_anything_is_read(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Tesla V100")
    with pytest.raises(ModelError, match=r"Tesla V100 cannot multiply bfloat16\. Use base\.dtype: float32"):
        load_model("nowhere/at-all", dtype="bfloat16", device="cuda:0")
