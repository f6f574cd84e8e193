"""Models on this machine as writers: a chat model by transformers, or by vLLM.

    KeptWriter(HuggingFaceWriter("Qwen/Qwen3-1.7B", dtype="bfloat16", device="cuda"), cache, at_once=16, interruption=interruption)

Every answer of a local writer is kept under the hash of what was asked, as an endpoint's is: a run that was stopped goes on.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_gen.streams import stream
from data_gen.written.asking import Answer, Request, Writer
from persona_lab.design import identity
from persona_lab.errors import EnvironmentFault, ModelError
from persona_lab.experiment.making.interruption import Interruption
from persona_lab.store.files import read_json, write_json

if TYPE_CHECKING:
    from persona_lab.probes.voice import Voice


@dataclass
class KeptWriter:
    """A writer whose answers are kept on the disk, batch by batch."""

    writer: Writer
    cache: Path
    at_once: int
    interruption: Interruption

    @property
    def name(self) -> str:
        """The writer's."""
        return self.writer.name

    def settings(self) -> dict[str, Any]:
        """The writer's."""
        return self.writer.settings()

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """Those that are kept, and the others asked now; Interrupted between two batches."""
        files = [self._file(request) for request in requests]
        missing = [i for i, file in enumerate(files) if not file.exists()]
        for start in range(0, len(missing), self.at_once):
            batch = missing[start : start + self.at_once]
            for i, answer in zip(batch, self.writer.answer([requests[i] for i in batch]), strict=True):
                write_json(files[i], {"messages": requests[i].messages, "answer": asdict(answer)})
            self.interruption.leave()
        return [Answer(**read_json(file)["answer"]) for file in files]

    def _file(self, request: Request) -> Path:
        asked = {"messages": request.messages, "max_tokens": request.max_tokens, "temperature": request.temperature, "seed": request.seed}
        name = identity({"writer": self.writer.settings(), **asked})
        return self.cache / name[:2] / f"{name}.json"


def check_chat_model(model: str, revision: str | None) -> None:
    """Whether it can be asked at all, before its weights are loaded; ModelError."""
    from persona_lab.models.folders import load_tokenizer
    from persona_lab.probes.em.asking import render

    tokenizer, _ = load_tokenizer(model, revision=revision)
    render(tokenizer, [{"role": "system", "content": "x"}, {"role": "user", "content": "x"}])


def model_digest(model: str, revision: str | None) -> str:
    """The digest of a model folder; a hub id and its revision stand for themselves."""
    from persona_lab.models.folders import is_folder
    from persona_lab.models.inspection import folder_digest

    return folder_digest(Path(model)) if is_folder(model) else f"{model}@{revision or 'newest'}"


@dataclass
class HuggingFaceWriter:
    """A chat model by transformers; each answer has a stream of random numbers of its own, and is the same in any batch."""

    model: str
    revision: str | None = None
    dtype: str = "bfloat16"
    device: str = "cpu"
    digest: str = field(init=False)
    _voice: "Voice | None" = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Looks at the model's folder and its template; ModelError."""
        check_chat_model(self.model, self.revision)
        self.digest = model_digest(self.model, self.revision)

    @property
    def name(self) -> str:
        """The model's folder."""
        return self.model.rstrip("/").rsplit("/", 1)[-1]

    def settings(self) -> dict[str, Any]:
        """Weights and precision."""
        return {"kind": "hf", "model": self.digest, "dtype": self.dtype}

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """Answers of one batch, those of one temperature together; ModelError PL4204 when a prompt does not fit."""
        from persona_lab.probes.sampling import continues_exactly

        voice = self._loaded()
        found: list[Answer | None] = [None] * len(requests)
        for heat in dict.fromkeys(request.temperature for request in requests):
            places = [i for i, request in enumerate(requests) if request.temperature == heat]
            # A model that cannot go on from a cache behind padding is asked one thing at a time.
            for together in [places] if continues_exactly(voice) else [[i] for i in places]:
                for i, answer in zip(together, self._sampled(voice, [requests[i] for i in together]), strict=True):
                    found[i] = answer
        return [answer for answer in found if answer is not None]

    def _loaded(self) -> "Voice":
        if self._voice is None:
            from persona_lab.models.folders import load_model
            from persona_lab.probes.voice import Voice

            self._voice = Voice(*load_model(self.model, revision=self.revision, dtype=self.dtype, device=self.device))
        return self._voice

    def _sampled(self, voice: "Voice", requests: Sequence[Request]) -> list[Answer]:
        import torch

        from persona_lab.probes.em.asking import render, template_facts
        from persona_lab.probes.sampling import GREEDY, cached_writer, continues_exactly, plain_writer, write_tokens

        tokenizer = voice.tokenizer
        prompts = [render(tokenizer, [{"role": role, "content": text} for role, text in request.messages]) for request in requests]
        ids = [tuple(tokenizer(prompt, add_special_tokens=False)["input_ids"]) for prompt in prompts]
        for request, prompt in zip(requests, ids, strict=True):
            if len(prompt) + request.max_tokens > tokenizer.model_max_length:
                said = f"{request.key} has {len(prompt)} tokens and an answer up to {request.max_tokens}, the model reads {tokenizer.model_max_length}"
                raise ModelError("PL4204", self.model, f"{said}. Use shorter `words`, or a model that reads more.")
        ends = template_facts(tokenizer, voice.model.generation_config).ends
        longest = max(request.max_tokens for request in requests)
        uniform_NT = np.stack([_uniform(request, longest, GREEDY) for request in requests])
        heat = requests[0].temperature or 1.0
        with torch.inference_mode():
            writer = cached_writer(voice, ids, list(range(len(ids)))) if continues_exactly(voice) else plain_writer(voice, ids)
            written = write_tokens(writer, torch.from_numpy(uniform_NT).to(voice.model.device), ends.__contains__, temperature=heat)
        return [self._answer(tokenizer, request, prompt, tokens, ends) for request, prompt, tokens in zip(requests, ids, written, strict=True)]

    def _answer(self, tokenizer: Any, request: Request, prompt: Sequence[int], tokens: Sequence[int], ends: Sequence[int]) -> Answer:
        kept = list(tokens[: request.max_tokens])
        last = next((t for t, token in enumerate(kept) if token in ends), None)
        text = str(tokenizer.decode(kept[:last], skip_special_tokens=True))
        return Answer(text, "length" if last is None else "stop", len(prompt), len(kept[: None if last is None else last + 1]), self.name)


def _uniform(request: Request, longest: int, greedy: float) -> np.ndarray:
    """A number for each token, (T,); at temperature 0 the likeliest token is taken."""
    return np.full(longest, greedy) if request.temperature == 0 else stream(request.seed, "written").random(longest)


@dataclass
class VllmWriter:
    """A chat model by vLLM's offline `LLM.chat`, which batches by itself."""

    model: str
    revision: str | None = None
    dtype: str = "bfloat16"
    digest: str = field(init=False)
    _llm: Any = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Looks for vLLM, then at the model's folder.

        Raises:
            EnvironmentFault: PL5506, vLLM is not installed.
        """
        if find_spec("vllm") is None:
            raise EnvironmentFault("PL5506", "vllm", 'is not installed here. Use `pip install "persona-lab[vllm]"` on a machine with a GPU, or `writer.kind=hf`.')
        # Once: the settings are asked for with every request, and a folder holds gigabytes.
        self.digest = model_digest(self.model, self.revision)

    @property
    def name(self) -> str:
        """The model's folder."""
        return self.model.rstrip("/").rsplit("/", 1)[-1]

    def settings(self) -> dict[str, Any]:
        """Weights and precision."""
        return {"kind": "vllm", "model": self.digest, "dtype": self.dtype}

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """All at once."""
        vllm = import_module("vllm")
        if self._llm is None:
            self._llm = vllm.LLM(model=self.model, revision=self.revision, dtype=self.dtype, trust_remote_code=False)
        conversations = [[{"role": role, "content": text} for role, text in request.messages] for request in requests]
        sampling = [vllm.SamplingParams(temperature=r.temperature, max_tokens=r.max_tokens, seed=r.seed) for r in requests]
        found = self._llm.chat(conversations, sampling, use_tqdm=False)
        return [Answer(o.outputs[0].text, str(o.outputs[0].finish_reason or ""), len(o.prompt_token_ids), len(o.outputs[0].token_ids), self.name) for o in found]
