"""What vLLM itself says of adapters. It knows nothing of the laboratory:

    PYTHON vllm_program.py ASKED.json SAID.json

`adapters`: each a base, an adapter, and the tokens of some texts; said are, with the adapter and without it, the tokens that vLLM writes after each
text when it takes the likeliest one every time, and at each of them log P of the ten likeliest, nats. `configs`: each an adapter_config.json; said is
why vLLM refuses it, or null.
"""

import gc
import json
import sys
from pathlib import Path

from vllm import LLM, SamplingParams  # type: ignore[import-not-found]  # runs where vLLM is installed
from vllm.config.lora import LoRAConfig  # type: ignore[import-not-found]  # runs where vLLM is installed
from vllm.lora.peft_helper import PEFTHelper  # type: ignore[import-not-found]  # runs where vLLM is installed
from vllm.lora.request import LoRARequest  # type: ignore[import-not-found]  # runs where vLLM is installed


def written(asked):
    """With one adapter, and on its base alone."""
    memory = {"max_model_len": 64, "max_num_seqs": 8, "kv_cache_memory_bytes": 2**26}
    llm = LLM(model=asked["base"], dtype="float32", enable_lora=True, max_lora_rank=asked["max_lora_rank"], enforce_eager=True, **memory)
    prompts = [{"prompt_token_ids": ids} for ids in asked["texts"]]
    sampling = SamplingParams(temperature=0, max_tokens=asked["tokens"], ignore_eos=True, logprobs=10)
    found = {}
    for name, adapter in (("adapter", LoRARequest("exported", 1, asked["adapter"])), ("base", None)):
        outputs = [output.outputs[0] for output in llm.generate(prompts, sampling, use_tqdm=False, lora_request=adapter)]
        nats = [[{token: one.logprob for token, one in step.items()} for step in output.logprobs] for output in outputs]
        found[name] = {"written": [list(output.token_ids) for output in outputs], "nats": nats}
    del llm
    gc.collect()
    return found


def refused(config):
    """Why an adapter of this config is refused."""
    try:
        PEFTHelper.from_dict(config).validate_legal(LoRAConfig(max_lora_rank=512))
    except ValueError as error:
        return str(error)
    return None


if __name__ == "__main__":
    asked = json.loads(Path(sys.argv[1]).read_text())
    said = {"configs": {name: refused(config) for name, config in asked["configs"].items()}, "adapters": {}}
    for name, adapter in asked["adapters"].items():
        said["adapters"][name] = written(adapter)
        Path(sys.argv[2]).write_text(json.dumps(said))
