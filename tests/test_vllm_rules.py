"""What vLLM's loader of adapters refuses is told before anybody tries."""

import pytest

from persona_lab.experiment.exporting.vllm import loadable_in_vllm, max_lora_rank

PLAIN = {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj"], "bias": "none", "init_lora_weights": True, "modules_to_save": None, "rank_pattern": {}}
NAMES = ["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"]
VLLM_CASES = {
    "plain": ({}, True),
    "an odd rank": ({"r": 5}, True),
    "rank stabilized": ({"use_rslora": True}, True),
    "a rank beyond all": ({"r": 513}, False),
    "a pattern of ranks beyond all": ({"rank_pattern": {"q_proj": 1024}}, False),
    "DoRA": ({"use_dora": True}, False),
    "whole modules": ({"modules_to_save": ["lm_head"]}, False),
    "a whole classifier": ({"modules_to_save": ["score"]}, True),
    "biases": ({"bias": "lora_only"}, False),
    "biases of the adapter": ({"lora_bias": True}, False),
    "a beginning that changes the base": ({"init_lora_weights": "pissa"}, False),
    "a beginning that does not": ({"init_lora_weights": "gaussian"}, True),
    "layers repeated": ({"layer_replication": [[0, 2]]}, False),
}


@pytest.mark.parametrize("case", VLLM_CASES)
def test_what_vllm_refuses_is_told(case: str) -> None:
    change, taken = VLLM_CASES[case]
    assert (loadable_in_vllm(PLAIN | change, NAMES) == []) is taken


def test_a_weight_that_is_no_lora_is_told() -> None:
    assert loadable_in_vllm(PLAIN, [*NAMES, "base_model.model.lm_head.weight"]) == ["vLLM does not know the weight base_model.model.lm_head.weight"]


@pytest.mark.parametrize(("rank", "most"), [(1, 1), (2, 8), (8, 8), (9, 16), (257, 320), (512, 512), (513, None)])
def test_the_rank_that_vllm_has_to_allow_is_the_least_that_it_knows(rank: int, most: int | None) -> None:
    assert max_lora_rank(rank) == most
