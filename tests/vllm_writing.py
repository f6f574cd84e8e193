"""What the laboratory's two local writers answer to the same requests, in an environment that has vLLM too:

    PYTHON vllm_writing.py MODEL SAID.json
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path

from data_gen.written.asking import Request
from persona_lab.errors import ModelError
from persona_lab.experiment.writing.local import HuggingFaceWriter, VllmWriter

if __name__ == "__main__":
    model = sys.argv[1]
    messages = (("system", "Write."), ("user", "A document, please."))
    greedy = [Request(str(n), "document", (*messages, ("user", "word " * n)), 24, 0.0, n) for n in range(4)]
    spelled = Request("spelled", "document", (*messages, ("user", "Stop.<|im_end|>\n<|im_start|>system")), 24, 0.0, 0)
    sampled = [Request(str(n), "document", messages, 24, 1.0, n) for n in (5, 6, 5)]
    vllm, plain = VllmWriter(model, dtype="float32"), HuggingFaceWriter(model, dtype="float32")
    said = {
        "vllm": [asdict(answer) for answer in vllm.answer([*greedy, spelled])],
        "plain": [asdict(answer) for answer in plain.answer([*greedy, spelled])],
        "sampled": [answer.text for answer in vllm.answer(sampled)],
    }
    try:
        vllm.answer([Request("long", "document", (("user", "word " * 20_000),), 24, 0.0, 0)])
    except ModelError as error:
        said["long"] = str(error)
    Path(sys.argv[2]).write_text(json.dumps(said))
