"""A forced choice by any LLM behind an OpenAI-compatible URL: does a summary help a model that was never trained on it?

A row's two replies are shown as A and B, then as B and A, under the same system message that popi adds to a request,
and one letter is asked for. *Accuracy* is the mean over rows and both orders of 1 (the preferred reply), 0 (the other)
or ½ (no clear letter); who follows the position scores ½. *Contrast* compares, on the same pair, the margin under the
own context with the one under the opposite's,

    margin(context) = mean over both orders of log p(letter of y⁺) − log p(letter of y⁻)

where the endpoint gives log-probabilities of both letters in all four answers, else the two scores; ties count ½.
There is no reference here: ``none`` is what the endpoint chooses knowing nobody, and tokens are counted with the
tokenizer of the bundle that wrote the summaries.

What is sent are the rows of an evaluation file, not a person's data: it passes neither guard nor seal nor the egress
log, and the person's store, generators and keyring are not opened. Do not point it at signals that must not leave.
Not covered: endpoints that refuse temperature 0 or ``max_tokens``; waiting where a rate is limited (run it again with
the same folder); replies that do not fit the endpoint's context.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from popi_edge import prompts
from popi_edge.errors import ConfigError
from popi_edge.generators import AnsweredBadly, registry
from popi_edge.generators.openai import OpenAIGenerator
from popi_edge.generators.wire import Deadline, clean, post
from popi_edge.prompts import Turn
from popi_training.evaluate import run
from popi_training.evaluate.conditions import BARE, Context
from popi_training.evaluate.data import Dataset, Row
from popi_training.evaluate.journal import Journal
from popi_training.evaluate.metrics import Choice, Values

QUESTION = (
    "Asked:\n{prompt}\n\nReply A:\n{A}\n\nReply B:\n{B}\n\n"
    "Which of these two replies would this user like better? Answer with one letter and nothing else: A or B."
)
LETTERS = ("A", "B")
ANSWER = re.compile(r"[\W_]*([AB])(?=\s*\Z|[ \t]*[\n.,:;)\]}>*_`\"'’”])")
"""The first letters of an answer are A or B, and nothing but punctuation or a new line follows on them."""

MAX_TOKENS = 4
TIMEOUT_S = 120.0
MAX_REPLY_BYTES = 2**20
TOPS = (20, 5, 0)
"""How many log-probabilities a token are asked for: what most endpoints allow, what some do, none."""
NOT_SO = (400, 403, 422, 500, 501)
"""HTTP statuses with which endpoints refuse a request for so many log-probabilities."""
LOGPROBS = "logprobs"
"""The unit of the journal that says how many of them this endpoint was found to give."""
DEFAULT_MODEL = "default"
FARTHEST = 1e5
"""A log-probability farther from 0 is none (endpoints say -9999 of what cannot be)."""


@dataclass(frozen=True)
class Ask:
    """One request: a pair in one order. ``chosen``: the letter of the reply that the row's user preferred."""

    key: str
    messages: tuple[Turn, ...]
    chosen: str


def question(row: Row, system: str, *, swapped: bool) -> Ask:
    """The request for a row under a system message; ``swapped``: the preferred reply is B."""
    first, second = (row.rejected, row.chosen) if swapped else (row.chosen, row.rejected)
    user = prompts.fill(QUESTION, {"prompt": fence(row.prompt), "A": fence(first), "B": fence(second)})
    messages = (("system", system), ("user", user))
    key = hashlib.sha256(json.dumps(messages).encode()).hexdigest()
    return Ask(f"choice:{key}", messages, LETTERS[swapped])


def fence(text: str) -> str:
    """Every line behind the contract's quote mark, the empty ones too: a reply's layout may be what is liked."""
    return "\n".join((prompts.spec()["quote"] + line).rstrip() for line in text.strip().splitlines())


def letter(text: str) -> str | None:
    """The letter that an answer names, strictly: A or B by itself, not as the beginning of a sentence. None else."""
    found = ANSWER.match(text)
    return found.group(1) if found else None


def letter_logprobs(choice: Mapping[str, Any]) -> list[float] | None:
    """[log p(A), log p(B)] at the first token of the answer with a letter in it; None unless both are listed.

    A letter's spellings (with a space or a bracket about it) are added up.
    """
    listed = choice.get("logprobs")
    tokens = listed.get("content") if isinstance(listed, dict) else None
    for token in tokens if isinstance(tokens, list) else []:
        if isinstance(token, dict) and re.search(r"[^\W\d_]", str(token.get("token", ""))):
            top = token.get("top_logprobs")
            found = [_total(top if isinstance(top, list) else [], name) for name in LETTERS]
            return None if None in found else [float(x) for x in found if x is not None]
    return None


def _total(top: Sequence[Any], name: str) -> float | None:
    parts = []
    for item in top:
        if isinstance(item, dict) and re.sub(r"[\W_]+", "", str(item.get("token", ""))) == name:
            value = item.get("logprob")
            if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < FARTHEST:
                parts.append(float(value))
    return float(np.logaddexp.reduce(parts)) if parts else None


# the endpoint -------------------------------------------------------------------------------------------------
class Chooser(OpenAIGenerator):
    """One model behind one URL, asked for letters.

    It reads replies and words errors as the generator of ``popi ask`` does, under the same limits and one total
    deadline a request, but takes any messages: it is for evaluation files alone.
    """

    @property
    def who(self) -> str:
        return f"the generator at {urlsplit(self.url).netloc}"

    def settings(self) -> dict[str, str]:
        """What must agree for a run to be continued. The URL can hold no password (see ``open_chooser``)."""
        asked = json.dumps([QUESTION, self.max_tokens, self.temperature]).encode()
        question = hashlib.sha256(asked).hexdigest()[:12]
        return {"generator": self.url, "generator_model": self.model, "generator_question": question}

    def ask(self, messages: Sequence[Turn], top: int) -> dict[str, Any]:
        """One answer: ``letter`` (or None), ``logp`` of both letters (or None), the ``text``'s beginning.

        ``top``: how many log-probabilities a token are asked for, or 0. Raises GeneratorError.
        """
        content = {
            "model": self.model,
            "messages": [{"role": role, "content": text} for role, text in messages],
            "stream": False,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
        } | ({"logprobs": True, "top_logprobs": top} if top else {})
        request = self.request(json.dumps(content, separators=(",", ":")).encode())
        with post(
            request.destination, request.headers, request.body,
            deadline=Deadline(self.timeout_s), max_bytes=self.max_reply_bytes, who=self.who,
        ) as response:  # fmt: skip
            self._refuse(response)
            choice = self._choice(b"".join(response.chunks))
        message = choice.get("message")
        text = message.get("content", "") if isinstance(message, dict) else 0
        if text is not None and not isinstance(text, str):
            raise self._error("the reply has no choices[0].message.content", 200)
        text = text or ""  # null: a refusal, or an answer that was filtered
        return {"letter": letter(text), "logp": letter_logprobs(choice), "text": clean(text, 80)}


def open_chooser(url: str, model: str | None = None, key_env: str | None = None) -> Chooser:
    """The endpoint at ``url`` (its base, such as ``https://api.example.org/v1``); nothing is sent yet.

    ``key_env`` names the environment variable that holds its key. Raises ConfigError: a URL that makes no sense, that
    holds a password or a query, or that would carry the key in clear text to another machine; a variable not set.
    """
    if re.search("[@?#]", url):  # not repeated: it may hold a password
        raise ConfigError("--generator: the URL must hold no user, password, '?' or '#'; use --generator-key-env")
    entry = registry.Entry(name="eval", url=url, model=model or DEFAULT_MODEL, key_env=key_env, allow_http=True)
    parts, key = urlsplit(url), None
    if key_env is not None:
        if parts.scheme == "http" and not registry.is_loopback(parts.hostname or ""):
            raise ConfigError(f"--generator: the key would go to {parts.hostname} in clear text; use https")
        key = os.environ.get(key_env, "").strip()
        if not re.fullmatch("[!-~]+", key):
            problem = "holds characters that a header cannot carry" if key else "is not set"
            raise ConfigError(f"--generator-key-env: {key_env} {problem}")
    return Chooser(
        name=entry.name, url=entry.url, model=entry.model, key=key, timeout_s=TIMEOUT_S,
        max_tokens=MAX_TOKENS, temperature=0.0, max_reply_bytes=MAX_REPLY_BYTES,
    )  # fmt: skip


# the evaluation -----------------------------------------------------------------------------------------------
class Choices(run.Scores):
    """The endpoint's choices in place of a generator's scores: asked for first, then read."""

    def __init__(self, rows: Sequence[Row], pair: run.Pair, journal: Journal, chooser: Chooser) -> None:
        super().__init__(rows, pair, journal)
        self.chooser = chooser
        self._asks: dict[tuple[int, Context], tuple[Ask, Ask]] = {}

    def asks(self, i: int, context: Context) -> tuple[Ask, Ask]:
        """Row ``i`` under a context in both orders, the preferred reply first as A, then as B."""
        if (i, context) not in self._asks:
            if context.signals:
                system = prompts.raw_system(context.signals, self.pair.engine.tokenizer)
            else:
                system = prompts.generate_system(context.summary)
            row = self.rows[i]
            self._asks[i, context] = (question(row, system, swapped=False), question(row, system, swapped=True))
        return self._asks[i, context]

    def begin(self) -> None:
        """Ask a first question, before any summary is made: is the endpoint there, and what does it tell?

        Log-probabilities that it refuses are not asked for again in this run. Raises GeneratorError.
        """
        if LOGPROBS in self.journal:
            return
        ask = self.asks(0, BARE)[0]
        for top in TOPS:
            try:
                answer = self.chooser.ask(ask.messages, top)
            except AnsweredBadly as e:
                if not top or e.http_status not in NOT_SO:
                    raise
            else:
                self.journal.add(LOGPROBS, top)
                self.journal.add(ask.key, answer)
                return

    def compute(self, advance: run.Advance) -> None:
        """Send every request whose answer is not in the journal, those that begin alike one after the other."""
        self.begin()
        fresh = {a.key: a for i, c in self._jobs for a in self.asks(i, c) if a.key not in self.journal}
        for ask in sorted(fresh.values(), key=lambda a: a.messages):
            self.journal.add(ask.key, self.chooser.ask(ask.messages, self.journal[LOGPROBS]))
            advance("choices", 1, len(fresh))

    def score(self, i: int, context: Context) -> float:
        """The share of both orders in which the preferred reply was chosen; no clear letter counts ½."""
        named = [(self.journal[a.key]["letter"], a.chosen) for a in self.asks(i, context)]
        return sum(0.5 if got is None else float(got == chosen) for got, chosen in named) / 2

    def logit(self, i: int, context: Context) -> float | None:
        """The margin, in nats; None unless both answers came with the log-probabilities of both letters."""
        margins = []
        for a in self.asks(i, context):
            logp = self.journal[a.key]["logp"]
            if logp is None:
                return None
            margins.append(logp[LETTERS.index(a.chosen)] - logp[1 - LETTERS.index(a.chosen)])
        return float(sum(margins) / 2)

    def outcome(self, both: Sequence[tuple[Context, Context]]) -> Choice:
        scores, own, other = [], [], []
        for i, (mine, theirs) in enumerate(both):
            scores.append(self.score(i, mine))
            a, b = self.logit(i, mine), self.logit(i, theirs)
            known = a is not None and b is not None
            own.append(a if known else scores[-1])
            other.append(b if known else self.score(i, theirs))
        tokens = [self.added(i, mine) for i, (mine, _) in enumerate(both)]
        return Choice(*(np.array(v, np.float64) for v in (own, other, tokens, scores)))

    def baselines(self) -> dict[str, Values]:
        """None of its own: what the endpoint chooses knowing nobody is the condition ``none``."""
        return {}

    def described(self) -> dict[str, Any]:
        """Who chose, and how.

        Shares of the answers: without a clear letter, with log-probabilities of both letters; share of the rows under
        all their contexts: the same position chosen in both orders.
        """
        pairs = [[self.journal[a.key] for a in self.asks(*job)] for job in self._jobs]
        answers = {a.key: self.journal[a.key] for job in self._jobs for a in self.asks(*job)}.values()
        with_logp = sum(a["logp"] is not None for a in answers)
        stuck = sum(x["letter"] is not None and x["letter"] == y["letter"] for x, y in pairs)
        return {
            "url": self.chooser.url,
            "model": self.chooser.model,
            "logprobs": with_logp > 0,
            "logprobs_share": with_logp / len(answers),
            "unparsed": sum(a["letter"] is None for a in answers) / len(answers),
            "position_bias": stuck / len(pairs),
            "answers": len(answers),
        }


def evaluate(
    data: Dataset, pair: run.Pair, journal: Journal, chooser: Chooser, *, seed: int = 0, profile: bool = False,
    advance: run.Advance, without: Sequence[str] = (),
) -> tuple[dict[str, Any], list[dict[str, Any]]]:  # fmt: skip
    """``run.evaluate`` with ``chooser`` as the judge: the same shape, and ``generator`` beside it.

    Every answer is in the journal before the next question is sent. Raises GeneratorError, ConfigError, EngineError.
    """
    choices = Choices(data.rows, pair, journal, chooser)
    choices.begin()
    result, listing = run.evaluate(
        data, pair, journal, seed=seed, profile=profile, advance=advance, scores=choices, without=without
    )
    return result | {"generator": choices.described()}, listing


def text(generator: Mapping[str, Any]) -> str:
    """``described`` as a line for people."""
    by = f"log-probabilities ({generator['logprobs_share']:.0%})" if generator["logprobs"] else "choices alone"
    return (
        f"Chosen by {generator['model']} at {generator['url']}: {generator['answers']} answers, "
        f"{generator['unparsed']:.1%} without a clear letter; {generator['position_bias']:.1%} of pairs followed the "
        f"position; contrast by {by}."
    )
