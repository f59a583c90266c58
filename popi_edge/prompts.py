"""The prompt contract: pure functions from signals, summaries and messages to token ids.

Texts of signals are data: each line of theirs starts with the quote mark, so that none can pass for an instruction,
control tokens in them stay text, and the instruction comes last. The templates live in ``spec/prompt_v1.json``.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from popi_edge.errors import ModelError
from popi_edge.signals import Comparison, Conversation, Edit, Post, Profile, Rating, Signal, Statement

if TYPE_CHECKING:
    from popi_edge.models.tokenizer import Tokenizer

CONTRACT = 1
Turn = tuple[str, str]


@functools.cache
def spec() -> Mapping[str, Any]:
    """The contract's data."""
    path = files("popi_edge.spec").joinpath(f"prompt_v{CONTRACT}.json")
    data: Mapping[str, Any] = json.loads(path.read_text("utf-8"))
    return data


def cut(text: str, limit: int, tokenizer: Tokenizer) -> str:
    """The text's first ``limit`` tokens, marked where it was cut."""
    head = text.strip()[: limit * 16]  # no token of the base is longer than 16 characters on average text
    ids = tokenizer.encode(head)
    if len(ids) <= limit and len(head) == len(text.strip()):
        return head
    whole: str = tokenizer.decode(ids[:limit]).rstrip("\ufffd").rstrip()
    return whole + str(spec()["cut"])


def quote(text: str) -> str:
    """Every line of a text behind the quote mark; all of Unicode's line ends count as line ends."""
    mark = spec()["quote"]
    return "\n".join(mark + line.rstrip() for line in text.strip().splitlines() if line.strip()) or mark.rstrip()


def signal_text(signal: Signal, tokenizer: Tokenizer) -> str:
    """One signal under its template, its texts cut and quoted."""
    limits, forms = spec()["limits"], spec()["signals"]

    def part(text: str, limit: str) -> str:
        return quote(cut(text, limits[limit], tokenizer))

    form, fields = signal.kind, {}
    match signal:
        case Comparison(prompt=p, chosen=c, rejected=r):
            fields = {"prompt": part(p, "prompt"), "chosen": part(c, "reply"), "rejected": part(r, "reply")}
        case Rating(prompt=p, response=r, score=s):
            fields = {"prompt": part(p, "prompt"), "response": part(r, "reply"), "score": f"{10 * s:.0f}"}
        case Edit(prompt=p, original=o, edited=e):
            fields = {"prompt": part(p, "prompt"), "original": part(o, "reply"), "edited": part(e, "reply")}
        case Post(text=t, prompt=None):
            fields = {"text": part(t, "text")}
        case Post(text=t, prompt=str(p)):
            form, fields = "post_prompted", {"prompt": part(p, "prompt"), "text": part(t, "text")}
        case Statement(text=t) | Profile(text=t):
            fields = {"text": part(t, "text")}
        case Conversation(messages=turns):
            kept = [m for m in turns if m.content.strip()][-limits["turns"] :]
            texts = [forms[f"turn_{m.role}"].replace("{text}", part(m.content, "turn")) for m in kept]
            fields = {"turns": "\n".join(texts)}
    return fill(forms[form], fields)


def fill(template: str, fields: Mapping[str, str]) -> str:
    """Put fields into a template in one pass: braces inside a field stay as they are."""
    out, rest = [], template
    while (start := rest.find("{")) >= 0:
        end = rest.index("}", start)
        out += [rest[:start], fields[rest[start + 1 : end]]]
        rest = rest[end + 1 :]
    return "".join([*out, rest])


def infer_messages(texts: Sequence[str], previous: str = "") -> list[Turn]:
    """The inference model's messages, from signals already put into text."""
    s = spec()
    slot = fill(s["previous"], {"text": quote(previous)}) if previous else ""
    user = fill(s["infer_user"], {"signals": "".join(texts), "previous": slot})
    return [("system", s["infer_system"]), ("user", user)]


def generate_system(summary: str | None) -> str:
    """The generator's system message: bare, or with the summary. This is all that popi adds to a request."""
    return str(spec()["bare_system"]) if not summary else fill(spec()["generate_system"], {"summary": summary})


def raw_system(signals: Sequence[Signal], tokenizer: Tokenizer) -> str:
    """Raw signals in the generator's system message: for evaluation only, nothing sends it."""
    texts = "".join(signal_text(s, tokenizer) for s in signals)
    return fill(spec()["raw_system"], {"signals": texts.rstrip()})


def generate_ids(
    tokenizer: Tokenizer, prompt: str, *, summary: str | None = None, signals: Sequence[Signal] | None = None
) -> list[int]:
    """Prompt ids for the generator: bare, under a summary, or (evaluation) under raw signals."""
    system = raw_system(signals, tokenizer) if signals else generate_system(summary)
    return chat_ids(tokenizer, [("system", system), ("user", prompt)])


def reply_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """A reply's tokens, the end-of-turn token included."""
    return [*tokenizer.encode(text), tokenizer.eos]


def chat_ids(tokenizer: Tokenizer, messages: Sequence[Turn]) -> list[int]:
    """Messages (role, content) → ids ending with the assistant's header.

    The model's own template is rendered in a sandbox with marks in place of the contents; control tokens are read in
    the template's text alone, and the contents are always plain text. Raises ModelError for an unusable template.
    """
    ids: list[int] = []
    for piece in _frame(tokenizer.chat_template, tuple(role for role, _ in messages), tokenizer.bos):
        if isinstance(piece, int):
            ids += tokenizer.encode(messages[piece][1])
        else:
            ids += _template_ids(tokenizer, piece)
    return ids


@functools.lru_cache(maxsize=64)
def _frame(template: str, roles: tuple[str, ...], bos: str) -> tuple[str | int, ...]:
    """The template around the contents: its own text, and the index of each message's content; ``bos`` is the token
    that begins every text of the model, or nothing."""
    from popi_edge.models.template import render

    marks = [f"\ue000{i}\ue001" for i in range(len(roles))]
    turns = [{"role": r, "content": m} for r, m in zip(roles, marks, strict=True)]
    text = render(template, turns, add_generation_prompt=True, bos_token=bos, eos_token="")
    pieces: list[str | int] = []
    for i, mark in enumerate(marks):
        before, found, text = text.partition(mark)
        if not found:
            raise ModelError("the model's chat template leaves a message out")
        pieces += [before, i]
    return (*pieces, text)


def _template_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of the template's own text, in which control tokens are control tokens."""
    ids: list[int] = []
    while text:
        hits = [(text.find(name), -len(name), name) for name in tokenizer.controls if name in text]
        if not hits:
            return ids + tokenizer.encode(text)
        at, _, name = min(hits)
        number = tokenizer.control(name)
        assert number is not None
        ids += [*tokenizer.encode(text[:at]), number] if at else [number]
        text = text[at + len(name) :]
    return ids
