"""Models on this machine as writers: a chat model by transformers, or by vLLM.

    KeptWriter(HuggingFaceWriter("Qwen/Qwen3-1.7B", dtype="bfloat16", device="cuda"), cache, at_once=16, interruption=interruption)
    KeptWriter(VllmWriter("Qwen/Qwen3-1.7B", dtype="bfloat16"), cache, at_once=256, interruption=interruption)

Every answer of a local writer is kept under the hash of what was asked, as an endpoint's is: a run that was stopped goes on.
Both are given the same tokens to read, and end an answer at the same tokens.
"""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from data_gen.streams import stream
from data_gen.written.asking import Answer, Request, Writer
from persona_lab.design import identity
from persona_lab.errors import EnvironmentFault, ModelError, quoted
from persona_lab.experiment.making.interruption import Interruption
from persona_lab.store.files import read_json, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from persona_lab.probes.voice import Voice

INSTALL = "pip install -e '.[vllm]'"
SETTINGS = {"VLLM_LOGGING_STREAM": "ext://sys.stderr", "VLLM_NO_USAGE_STATS": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
"""Of vLLM, where the environment says nothing else: results alone go to stdout, nothing is told over the network, and Ctrl-C stops no engine under way."""


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
    from persona_lab.models.dialogue import FIXED
    from persona_lab.models.folders import load_tokenizer
    from persona_lab.probes.em.asking import render

    tokenizer, _ = load_tokenizer(model, revision=revision)
    render(tokenizer, [{"role": "system", "content": "x"}, {"role": "user", "content": "x"}], **FIXED)


def prompts_of(tokenizer: "PreTrainedTokenizerBase", requests: Sequence[Request], model: str, longest: int) -> list[list[int]]:
    """Tokens that the model reads for each request, as its template writes them, so that an answer begins at once, without thinking.

    Raises:
        ModelError: PL4204, prompt and answer are longer than the `longest` tokens that the model reads.
    """
    from persona_lab.models.control_tokens import encoded
    from persona_lab.models.dialogue import FIXED
    from persona_lab.probes.em.asking import render

    texts = [render(tokenizer, [{"role": role, "content": text} for role, text in request.messages], **FIXED) for request in requests]
    prompts = [coded.ids for coded in encoded(tokenizer, texts, opened=True)]
    for request, prompt in zip(requests, prompts, strict=True):
        if len(prompt) + request.max_tokens > longest:
            said = f"{request.key} has {len(prompt)} tokens and an answer up to {request.max_tokens}, the model reads {longest}"
            raise ModelError("PL4204", model, f"{said}. Use shorter `words`, or a model that reads more.")
    return prompts


def answer_of(tokenizer: "PreTrainedTokenizerBase", read: int, tokens: Sequence[int], ends: Sequence[int], name: str) -> Answer:
    """What a model of this name has written after `read` tokens: all before the first token that ends an answer, or what there is of one that was cut off."""
    last = next((t for t, token in enumerate(tokens) if token in ends), None)
    text = str(tokenizer.decode(list(tokens[:last]), skip_special_tokens=True))
    return Answer(text, "length" if last is None else "stop", read, len(tokens[: None if last is None else last + 1]), name)


def settings_of(kind: str, digest: str, dtype: str) -> dict[str, Any]:
    """What a local writer's answers depend on beside what it is asked: weights, precision, and how the template is filled."""
    from persona_lab.models.dialogue import FIXED

    return {"kind": kind, "model": digest, "dtype": dtype, "template": FIXED}


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
        """Weights, precision, and how the template is filled."""
        return settings_of("hf", self.digest, self.dtype)

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

        from persona_lab.probes.em.asking import template_facts
        from persona_lab.probes.sampling import GREEDY, cached_writer, continues_exactly, plain_writer, write_tokens

        tokenizer = voice.tokenizer
        ids = [tuple(prompt) for prompt in prompts_of(tokenizer, requests, self.model, tokenizer.model_max_length)]
        ends = template_facts(tokenizer, voice.model.generation_config).ends
        longest = max(request.max_tokens for request in requests)
        uniform_NT = np.stack([_uniform(request, longest, GREEDY) for request in requests])
        heat = requests[0].temperature or 1.0
        with torch.inference_mode():
            writer = cached_writer(voice, ids, list(range(len(ids)))) if continues_exactly(voice) else plain_writer(voice, ids)
            written = write_tokens(writer, torch.from_numpy(uniform_NT).to(voice.model.device), ends.__contains__, temperature=heat)
        kept = [tokens[: request.max_tokens] for request, tokens in zip(requests, written, strict=True)]
        return [answer_of(tokenizer, len(prompt), tokens, ends, self.name) for prompt, tokens in zip(ids, kept, strict=True)]


def _uniform(request: Request, longest: int, greedy: float) -> np.ndarray:
    """A number for each token, (T,); at temperature 0 the likeliest token is taken."""
    return np.full(longest, greedy) if request.temperature == 0 else stream(request.seed, "written").random(longest)


class Engine(NamedTuple):
    """A model that vLLM has loaded."""

    llm: Any
    tokenizer: "PreTrainedTokenizerBase"
    ends: list[int]
    """Tokens that end an answer."""
    longest: int
    """Tokens of a prompt and its answer, as far as the memory of the device goes."""


@dataclass
class VllmWriter:
    """A chat model by vLLM's offline `LLM.generate`, which batches by itself."""

    model: str
    revision: str | None = None
    dtype: str = "bfloat16"
    digest: str = field(init=False)
    _engine: Engine | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Looks for vLLM, then at the model's folder and its template.

        Raises:
            EnvironmentFault: PL5506, vLLM is not installed.
            ModelError: the folder is refused, or the model is no chat model.
        """
        if find_spec("vllm") is None:
            raise EnvironmentFault("PL5506", "vllm", f"is not installed here. Use `{INSTALL}` in an environment of its own, or `writer.kind=hf`.")
        check_chat_model(self.model, self.revision)
        # Once: the settings are asked for with every request, and a folder holds gigabytes.
        self.digest = model_digest(self.model, self.revision)

    @property
    def name(self) -> str:
        """The model's folder."""
        return self.model.rstrip("/").rsplit("/", 1)[-1]

    def settings(self) -> dict[str, Any]:
        """Weights, precision, and how the template is filled."""
        return settings_of("vllm", self.digest, self.dtype)

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """All at once; ModelError PL4204 when a prompt does not fit, EnvironmentFault PL5507 when vLLM cannot load the model."""
        llm, tokenizer, ends, longest = self._engine = self._engine or self._loaded()
        prompts = [{"prompt_token_ids": ids} for ids in prompts_of(tokenizer, requests, self.model, longest)]
        sampling = [import_module("vllm").SamplingParams(temperature=r.temperature, max_tokens=r.max_tokens, seed=r.seed, stop_token_ids=ends) for r in requests]
        found = llm.generate(prompts, sampling, use_tqdm=False)
        # Not vLLM's own text, which leaves out a last character that is not whole.
        return [answer_of(tokenizer, len(one.prompt_token_ids), one.outputs[0].token_ids, ends, self.name) for one in found]

    def _loaded(self) -> Engine:
        from transformers import GenerationConfig

        from persona_lab.models.folders import load_tokenizer, local_folder
        from persona_lab.probes.em.asking import template_facts

        folder = local_folder(self.model, self.revision)
        tokenizer, config = load_tokenizer(self.model, revision=self.revision)
        own = (folder / "generation_config.json").is_file()
        generation = GenerationConfig.from_pretrained(folder) if own else GenerationConfig.from_model_config(config)
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)
        try:
            # -1: as much as the model reads, or less where the memory of the device ends first.
            llm = import_module("vllm").LLM(model=str(folder), dtype=self.dtype, max_model_len=-1, trust_remote_code=False)
        except (ImportError, OSError, ValueError, RuntimeError) as error:
            said = f"cannot load {self.model}: {quoted(str(error))}. Use a smaller model, `writer.kind=hf`, or `vllm serve` with `writer.kind=endpoint`."
            raise EnvironmentFault("PL5507", "vllm", said) from error
        longest = min(tokenizer.model_max_length, llm.llm_engine.model_config.max_model_len)
        return Engine(llm, tokenizer, list(template_facts(tokenizer, generation).ends), longest)
