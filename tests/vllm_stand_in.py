"""A stand-in for the part of vLLM that ``popi_training.vllm_rollout`` uses, on transformers and peft, for the CPU.

What vLLM would refuse or get wrong is refused or goes wrong here too: several greedy draws of one prompt, an adapter
that is larger than was said, a prompt that is too long, an adapter under a name that was used before (the old one
answers, as vLLM's cache of prompts would).
"""

from __future__ import annotations

import inspect
import os
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import torch


@dataclass
class SamplingParams:
    n: int = 1
    temperature: float = 1.0
    seed: int | None = None
    stop_token_ids: list[int] = field(default_factory=list)
    ignore_eos: bool = False
    max_tokens: int = 16
    logprobs: int | None = None
    detokenize: bool = True
    extra_args: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.temperature == 0 and self.n > 1:
            raise ValueError("n must be 1 for greedy sampling")
        if not 0 <= self.temperature <= 2 or self.max_tokens < 1:
            raise ValueError("no such temperature or length")


@dataclass
class LoRARequest:
    lora_name: str
    lora_int_id: int
    lora_path: str


class AdapterLogitsProcessor:
    """The base class of processors that are made one a request."""

    def __init__(self, config: Any, device: torch.device, pinned: bool) -> None:
        assert self.is_argmax_invariant() is False

    def is_argmax_invariant(self) -> bool:
        raise NotImplementedError

    def new_req_logits_processor(self, params: SamplingParams) -> Any:
        raise NotImplementedError


class LLM:
    """An engine whose base comes from the folder, and whose adapter from what a request names."""

    made: ClassVar[list[LLM]] = []

    def __init__(
        self, model: str, *, dtype: str, seed: int, gpu_memory_utilization: float, max_model_len: int,
        enable_lora: bool, max_loras: int, max_lora_rank: int, enable_prefix_caching: bool, logprobs_mode: str,
        logits_processors: list[type[AdapterLogitsProcessor]], async_scheduling: bool,
    ) -> None:  # fmt: skip
        assert os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == os.environ["VLLM_USE_V2_MODEL_RUNNER"] == "0"
        assert dtype == "bfloat16" and 0 < gpu_memory_utilization < 1 and seed >= 0
        assert enable_lora and max_loras == 1 and max_lora_rank in (8, 16, 32, 64, 128, 256)
        assert enable_prefix_caching and logprobs_mode == "processed_logprobs" and not async_scheduling
        self.folder, self.length, self.rank = model, max_model_len, max_lora_rank
        self.processors = [kind(None, torch.device("cpu"), False) for kind in logits_processors]
        self.requests: list[LoRARequest] = []
        self.adapted: dict[str, Any] = {}
        LLM.made.append(self)

    def generate(
        self, prompts: list[dict[str, list[int]]], params: list[SamplingParams], *, use_tqdm: bool, lora_request: Any
    ) -> list[Any]:
        assert not use_tqdm and len(prompts) == len(params)
        self.requests.append(lora_request)
        model = self._adapted(lora_request)
        asked = zip((p["prompt_token_ids"] for p in prompts), params, strict=True)
        return [SimpleNamespace(outputs=[self._one(model, ids, p, k) for k in range(p.n)]) for ids, p in asked]

    def _adapted(self, request: LoRARequest) -> Any:
        from peft import PeftConfig, PeftModel
        from transformers import AutoModelForCausalLM

        if request.lora_name not in self.adapted:
            assert {p.name for p in Path(request.lora_path).iterdir()} >= {
                "adapter_config.json", "adapter_model.safetensors",
            }  # fmt: skip
            config: Any = PeftConfig.from_pretrained(request.lora_path)
            assert config.r <= self.rank and not config.use_dora and not config.modules_to_save
            base = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32, local_files_only=True)
            self.adapted[request.lora_name] = PeftModel.from_pretrained(base, request.lora_path).eval()
        return self.adapted[request.lora_name]

    @torch.inference_mode()
    def _one(self, model: Any, prompt: list[int], params: SamplingParams, index: int) -> Any:
        assert len(prompt) + params.max_tokens <= self.length and params.logprobs == 0
        acting = [made for p in self.processors if (made := p.new_req_logits_processor(params))]
        assert all(len(inspect.signature(a).parameters) == 2 for a in acting)
        dice = torch.Generator().manual_seed((params.seed or 0) + index)
        ids, logprobs, cache, new = list[int](), list[dict[int, Any]](), None, prompt
        while len(ids) < params.max_tokens:
            out = model(input_ids=torch.tensor([new]), past_key_values=cache, use_cache=True)
            row, cache = out.logits[0, -1], out.past_key_values
            for act in acting:
                row = act(ids, row)
            scaled = (row / (params.temperature or 1.0)).log_softmax(0)
            drawn = scaled.argmax() if params.temperature == 0 else torch.multinomial(scaled.exp(), 1, generator=dice)
            token = int(drawn)
            ids.append(token)
            logprobs.append({token: SimpleNamespace(logprob=float(scaled[token]))})
            if token in params.stop_token_ids or (not params.ignore_eos and token == model.config.eos_token_id):
                break
            new = [token]
        return SimpleNamespace(index=index, token_ids=ids, logprobs=logprobs)


def modules() -> dict[str, ModuleType]:
    """What stands in ``sys.modules`` where this stands in for vLLM; no engine has been made."""
    LLM.made = []
    named: dict[str, dict[str, Any]] = {
        "vllm": {"LLM": LLM, "SamplingParams": SamplingParams},
        "vllm.lora": {},
        "vllm.lora.request": {"LoRARequest": LoRARequest},
        "vllm.v1": {},
        "vllm.v1.sample": {},
        "vllm.v1.sample.logits_processor": {"AdapterLogitsProcessor": AdapterLogitsProcessor},
    }
    made = {name: ModuleType(name) for name in named}
    for name, module in made.items():
        module.__path__ = []
        vars(module).update(named[name])
    return made
