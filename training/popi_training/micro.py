"""The tiny sibling of popi-micro: a model of about 150,000 parameters trained from nothing in seconds, for tests.

    python -m popi_training.micro OUT.gguf [--steps N] [--seed S]

Its world has four dimensions with a word for either pole; signals are statements and posts that use the word, a
summary names the words. It goes through the real prompt contract, the real trainer's packing and loss, the real export
and the real engines; what it cannot show is anything about language.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from popi_edge import prompts
from popi_edge.cli.common import launch
from popi_edge.signals import Post, Signal, Statement
from popi_training.pack import Sample, pack
from popi_training.recipe import Scratch

POLES = (("short", "long"), ("warm", "cool"), ("plain", "technical"), ("funny", "serious"))
TOPICS = ("bread", "rain", "trains", "gardens", "music", "paint")
VOCABULARY = 640
TOGETHER = 4
"""Users packed into one sequence: the tree mask costs the square of its length."""
LONG_AGO = "1970-01-01T00:00:00Z"
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' "
    "+ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Person:
    """One or two pole words, the signals that show them, and the summary that names them."""

    words: tuple[str, ...]
    signals: tuple[Signal, ...]
    summary: str


def person(name: str) -> Person:
    """The person called ``name``; names that differ give others."""
    rng = random.Random(f"micro:{name}")
    pairs = rng.sample(POLES, rng.choice([1, 2]))
    chosen = [rng.sample(p, 2) for p in pairs]
    signals: list[Signal] = []
    for like, _ in chosen * (2 if len(chosen) == 1 else 1):
        common = {"id": f"{name}-{len(signals)}", "at": LONG_AGO, "source": "micro"}
        said = rng.choice([f"I like {like} replies.", f"Be {like} about {rng.choice(TOPICS)}."])
        signals.append(rng.choice([Statement, Post])(said, **common))
    words = tuple(sorted(like for like, _ in chosen))
    return Person(words, tuple(signals), f"Prefers {' and '.join(words)} replies.")


def vocabulary(
    texts: Iterable[str], size: int, phrases: Sequence[str] = ()
) -> tuple[list[str], list[str], list[int]]:
    """Tokens, merges and token types of a byte-level BPE trained on some texts; each of ``phrases`` one token more."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[AddedToken(s, special=True) for s in special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    tokens = [t for t, _ in sorted(model["vocab"].items(), key=lambda kv: kv[1])]
    merges = [" ".join(m) if isinstance(m, list) else m for m in model["merges"]]
    types = [3 if t in special else 1 for t in tokens]
    return [*tokens, *phrases], merges, types + [4] * len(phrases)


def world_texts() -> list[str]:
    """The contract's own text and what some people say: what the world's vocabulary is trained on."""
    spec = prompts.spec()
    texts = [spec["infer_system"], spec["infer_user"], spec["bare_system"], *spec["signals"].values()] * 5
    for i in range(60):
        p = person(f"text-{i}")
        texts += [p.summary, *(t for s in p.signals for t in s.texts())]
    return texts


def write(path: Path, model: Any, words: tuple[list[str], list[str], list[int]]) -> None:
    """Write the model as GGUF in float32."""
    from popi_export.to_gguf import write_llama

    tokens, merges, types = words
    weights = {n: p.detach().numpy() for n, p in model.named_parameters()}
    write_llama(
        path, weights, model.config, tokens=tokens, merges=merges, types=types, eos=2, chat_template=TEMPLATE,
    )  # fmt: skip


SHAPE = Scratch(hidden=64, layers=2, heads=4, kv_heads=2, ffn=128)


def untrained(words: int, seed: int, shape: Scratch = SHAPE) -> Any:
    """A small random llama in torch."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=words, hidden_size=shape.hidden, intermediate_size=shape.ffn, num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads, max_position_embeddings=shape.context,
        rope_theta=10000.0, tie_word_embeddings=True, use_cache=False,
        initializer_range=0.12,  # larger than usual: attention finds the words much sooner
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def train(path: Path, *, steps: int = 150, batch: int = 32, seed: int = 0) -> list[float]:
    """Train from nothing and write the model to ``path``; the losses, step by step."""
    import torch

    from popi_edge.models import tokenizer as own
    from popi_edge.models.gguf import Gguf
    from popi_training.loss import supervised

    torch.use_deterministic_algorithms(True)
    words = vocabulary(world_texts(), VOCABULARY)
    model = untrained(len(words[0]), seed)
    write(path, model, words)
    tokenizer = own.Tokenizer(Gguf(path))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    losses = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1.0, (step + 1) / 20) * min(1.0, 2 * (steps - step) / steps)
        optimizer.zero_grad(set_to_none=True)
        names = [f"train-{seed}-{step * batch + i}" for i in range(batch)]
        total = 0.0
        for start in range(0, batch, TOGETHER):
            some = [_sample(person(name), tokenizer) for name in names[start : start + TOGETHER]]
            loss, _ = supervised(model, [pack(some)])[0]
            (loss * len(some) / batch).backward()
            total += loss.item() * len(some) / batch
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(total)
    write(path, model, words)
    return losses


def _sample(p: Person, tokenizer: Any) -> Sample:
    texts = [prompts.signal_text(s, tokenizer) for s in p.signals]
    ids = prompts.chat_ids(tokenizer, prompts.infer_messages(texts))
    return Sample(tuple(ids), (*tokenizer.encode(p.summary), tokenizer.eos))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    losses = train(options.out, steps=options.steps, seed=options.seed)
    print(f"loss {losses[0]:.2f} at first, {losses[-1]:.2f} at the end", file=sys.stderr)


if __name__ == "__main__":
    launch(main)
