"""Would vLLM serve an adapter? What its loader refuses, found before anybody waits for a GPU.

    loadable_in_vllm(config, names)   ->   []                 served with --max-lora-rank 8
                                      ->   ["vLLM does not ..."]

The rules are those of vLLM 0.32.0: `vllm/lora/peft_helper.py` (PEFTHelper) for adapter_config.json, `vllm/config/lora.py`
(MaxLoRARanks) for ranks, and `vllm/lora/utils.py` (parse_fine_tuned_lora_name) for the names of weights. Whether a model
has LoRA at all is for vLLM's table of models to say.
"""

from collections.abc import Iterable, Mapping
from typing import Any

VERSION = "0.32.0"
MAX_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What `--max-lora-rank` may be; an adapter's own rank is any number up to it."""
SAVED = {"classifier", "score"}
"""The only modules that an adapter may bring whole."""
INITS = {"gaussian", "eva", "orthogonal", "mica", "lora_ga"}
"""Beginnings that leave the base as it is; others change it when peft loads the adapter."""
UNSUPPORTED = {
    "use_dora": "DoRA",
    "lora_bias": "a bias of the adapter (lora_bias)",
    "alora_invocation_tokens": "activated LoRA",
    "layer_replication": "layer_replication",
    "use_bdlora": "block-diagonal LoRA",
    "use_qalora": "QALoRA",
}


def max_lora_rank(rank: int) -> int | None:
    """The least `--max-lora-rank` that takes this rank; None where none does."""
    return next((most for most in MAX_RANKS if most >= rank), None)


def loadable_in_vllm(config: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """Why vLLM would refuse an adapter of this `adapter_config.json` and weights of these names; empty where it would not."""
    refused = [f"vLLM does not support {what}" for key, what in UNSUPPORTED.items() if config.get(key)]
    if whole := sorted(set(config.get("modules_to_save") or ()) - SAVED):
        refused.append(f"vLLM does not support modules_to_save, here {', '.join(whole)}")
    init = config.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower() not in INITS:
        refused.append(f"vLLM does not support init_lora_weights {init}, which changes the base")
    if config.get("bias", "none") != "none":
        refused.append("vLLM does not support an adapter that trains biases")
    ranks = [config["r"], *(config.get("rank_pattern") or {}).values()]
    if wrong := [rank for rank in ranks if rank < 1 or max_lora_rank(rank) is None]:
        refused.append(f"vLLM takes ranks from 1 to {MAX_RANKS[-1]}, this has {wrong[0]}")
    if strange := sorted(name for name in names if not name.endswith((".lora_A.weight", ".lora_B.weight", ".lora_embedding_A", ".lora_embedding_B"))):
        refused.append(f"vLLM does not know the weight {strange[0]}")
    return refused
