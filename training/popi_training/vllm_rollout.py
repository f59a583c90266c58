"""Summaries drawn by vLLM instead of transformers (``joint.rollout = "vllm"``): for bases where drawing takes longest.

One engine holds the base, in bfloat16 (its LoRA kernels know no float32); what π_φ has learnt comes to it before every
draw as an adapter of PEFT's format, under a name of its own, since vLLM keeps what it has read of a prompt by the
adapter's name. The closed vocabulary is a logits processor, and the log-probabilities are those of what was sampled
from: masked, at the rollout's temperature. They differ from the trainer's by its rounding; ``objective.policy_loss``
weighs by the ratio of the two.

Covered: a Hugging Face folder with LoRA adapters, one process on one GPU, vLLM 0.11 or newer with its V1 model runner.
Not covered: whole models, GGUF bases, several processes, the looks at development people (transformers draws those).
What is drawn of a prompt depends on the others of its batch in the last bits, so that a run does not repeat exactly.

Written against vLLM's documented interface and tested with a stand-in for it on the CPU (tests/test_vllm_rollout.py);
we have never run it with vLLM itself on a GPU.
"""

from __future__ import annotations

import importlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from popi_edge.errors import ConfigError, EngineError
from popi_training.pack import Ints
from popi_training.recipe import Recipe
from popi_training.roles import Adapters, Roles
from popi_training.rollout import Draw, How, Prompts, ended
from popi_training.team import several
from popi_training.warm import Reader

RANKS = (8, 16, 32, 64, 128, 256)
"""What vLLM takes for the largest rank of an adapter; the adapter's own may be smaller."""
MEMORY = 0.3
"""Share of the GPU's memory for weights and cache of the engine; the trainer needs the rest."""
MASKED = "popi_masked"
"""The request's own argument (``extra_args``) that says whether the closed vocabulary holds for it."""
WHAT = "joint.rollout vllm"


class VllmRollouts:
    """Draws with a vLLM engine in this process, which is started at the first draw."""

    def __init__(self, recipe: Recipe, base: Path) -> None:
        """``base``: where the recipe's base lies. Raises ConfigError for one that is no folder, for several processes,
        or where vLLM is not installed."""
        if not base.is_dir():
            raise ConfigError(f"{WHAT}: the base must be a Hugging Face folder, not {base.name}")
        if several():
            raise ConfigError(f"{WHAT}: it draws in one process, and there are several")
        self.base, self.rank, self.seed = base, recipe.lora.rank, recipe.seed
        self._library, self._request, self._processor = _imported()
        self._engine: Any = None
        self._reader: Reader | None = None
        self._swaps = 0

    def draw(
        self, roles: Roles, reader: Reader, prompts: Prompts, seeds: Sequence[int] | None, how: How
    ) -> list[list[Draw]]:
        """As ``rollout``, [prompts][group]. Raises ValueError as that does, ConfigError for roles without adapters,
        EngineError where the engine does not start or draws what the mask forbids."""
        if not prompts or how.group < 1:
            raise ValueError("a rollout needs prompts and a group of at least one")
        if not isinstance(roles, Adapters):
            raise ConfigError(f"{WHAT}: it swaps LoRA adapters, and these roles have none")
        self._reader = reader
        self._engine = self._engine or self._started(reader)
        greedy = how.temperature <= 0  # of which vLLM gives no more than one
        rolled: Sequence[int | None] = seeds or [None] * len(prompts)
        params = [
            self._library.SamplingParams(
                n=1 if greedy else how.group, temperature=max(0.0, how.temperature), seed=seed, logprobs=0,
                max_tokens=reader.limits["summary_tokens"], extra_args={MASKED: how.mask}, detokenize=False,
                stop_token_ids=list(reader.tokenizer.eos_ids), ignore_eos=True,  # these and no others end a summary
            )
            for seed in rolled
        ]  # fmt: skip
        self._swaps += 1
        with tempfile.TemporaryDirectory(prefix="popi-vllm-") as place:
            roles.model.save_pretrained(place, selected_adapters=["infer"], save_embedding_layers=False)
            adapter = self._request(f"infer-{self._swaps}", self._swaps, str(Path(place) / "infer"))
            asked = [{"prompt_token_ids": list(p)} for p in prompts]
            answers = self._engine.generate(asked, params, lora_request=adapter, use_tqdm=False)
        words = int(roles.model.config.vocab_size)
        made = [[_read(reader, output, how.mask, words) for output in answer.outputs] for answer in answers]
        return [draws * how.group for draws in made] if greedy else made

    def _started(self, reader: Reader) -> Any:
        """The engine, with room for the longest prompt that a reader gives and a summary behind it."""
        limits = reader.limits
        try:
            return self._library.LLM(
                model=str(self.base), dtype="bfloat16", seed=self.seed, gpu_memory_utilization=MEMORY,
                max_model_len=min(reader.context, limits["infer_tokens"] + limits["summary_tokens"]),
                enable_lora=True, max_loras=1, max_lora_rank=min(r for r in RANKS if r >= self.rank),
                enable_prefix_caching=True, logprobs_mode="processed_logprobs",
                logits_processors=[self._masking()],
                async_scheduling=False,  # which would show the mask -1 in place of the newest token
            )  # fmt: skip
        except Exception as e:  # CUDA's, vLLM's own, the file system's: whatever it was, it is one line here
            reason = next(iter(str(e).splitlines()), type(e).__name__)
            raise EngineError(f"{WHAT}: the engine does not start on {self.base.name}: {reason:.200}") from e

    def _masking(self) -> type:
        """A class for the engine to make its logits processor of; it reads by the reader of the draw that runs."""
        rollouts = self

        class Masking(self._processor):  # type: ignore[misc, name-defined]
            def is_argmax_invariant(self) -> bool:
                return False

            def new_req_logits_processor(self, params: Any) -> Mask | None:
                masked = (params.extra_args or {}).get(MASKED)
                return Mask(rollouts._reader) if masked and rollouts._reader else None

        return Masking


class Mask:
    """The closed vocabulary over one summary whose tokens come one by one."""

    def __init__(self, reader: Reader) -> None:
        self._reader, self._state, self._read = reader, reader.vocabulary.start(), 0

    def allowed(self, ids: Sequence[int]) -> Ints:
        """What may follow ``ids``, which go on from those of the call before."""
        for token in ids[self._read :]:
            self._state = self._reader.vocabulary.advance(self._state, token)
        self._read = len(ids)
        return self._reader.allowed(self._state, self._reader.limits["summary_tokens"] - self._read)

    def __call__(self, output_ids: Sequence[int], logits: torch.Tensor) -> torch.Tensor:
        """Logits [vocabulary] with −∞ for whatever may not follow (vLLM's processor of one request)."""
        kept = torch.from_numpy(self.allowed(output_ids)).to(logits.device)
        masked = torch.full_like(logits, -torch.inf)
        masked[kept] = logits[kept]
        return masked


def _read(reader: Reader, output: Any, mask: bool, words: int) -> Draw:
    """A summary as vLLM gave it, with what was allowed. Raises EngineError where it has a token that was not."""
    ids, walk, every = tuple(output.token_ids), Mask(reader), np.arange(words)
    allowed = list[Ints]()
    for i, token in enumerate(ids):
        allowed.append(walk.allowed(ids[:i]) if mask else every)
        if token not in allowed[-1]:
            raise EngineError(f"{WHAT}: the engine drew token {token}, which the mask forbids; is it of vLLM's V1?")
    logprobs = tuple(float(at[token].logprob) for at, token in zip(output.logprobs, ids, strict=True))
    finished = ids[-1] in reader.tokenizer.eos_ids
    if mask and not finished:
        token, only, logprob = ended(reader)
        ids, allowed, logprobs, finished = (*ids, token), [*allowed, only], (*logprobs, logprob), True
    return Draw(ids, tuple(allowed), logprobs, finished)


def _imported() -> tuple[Any, Any, Any]:
    """vLLM, its ``LoRARequest`` and its ``AdapterLogitsProcessor``. Raises ConfigError where it is not installed."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # another process would have no reader to mask by
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"  # the second runner takes no such processors
    try:
        library: Any = importlib.import_module("vllm")
        lora: Any = importlib.import_module("vllm.lora.request")
        processors: Any = importlib.import_module("vllm.v1.sample.logits_processor")
        return library, lora.LoRARequest, processors.AdapterLogitsProcessor
    except (ImportError, AttributeError):
        raise ConfigError(f"{WHAT}: vllm not installed; run: pip install 'vllm>=0.11' (needs CUDA)") from None
