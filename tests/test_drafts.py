"""Of several drafts the one is kept under which the generator tells a person's own choices best: against torch."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import popi_edge as popi
from popi_edge import drafts, prompts
from popi_edge.cli import main
from popi_edge.config import load
from popi_edge.errors import ConfigError, ModelError
from popi_edge.models.manifest import parse
from popi_edge.summarize import SENTENCE_END, Decoding, infer, spoken, write

LONG = "one two three four five six seven eight nine ten " * 12
SIGNALS = (
    popi.Comparison(prompt="Why?", chosen="It rained.", rejected="Let us see what the sky has to say."),
    popi.Statement(text="I like short answers."),
    popi.Edit(prompt="How?", original="Walk there, and rest on the way.", edited="Walk."),
    popi.Rating(prompt="When?", response="Now.", score=1.0),
    popi.Comparison(prompt="Who?", chosen="A friend of mine.", rejected="Nobody."),
)


@pytest.fixture
def me(tiny: tuple[Path, Any], tmp_path: Path) -> Iterator[popi.Popi]:
    with popi.Popi.open(home=tmp_path / "home", model=str(tiny[0]), threads="1") as me:
        me.record(*SIGNALS)
        yield me


def test_the_newest_pairs_judge_and_replies_that_begin_alike_for_long_do_not(me: popi.Popi) -> None:
    tokenizer = me.engine.tokenizer
    found = drafts.judged(SIGNALS, tokenizer)
    assert [p.prompt for p in found] == ["Who?", "How?", "Why?"]
    assert found[1].up == tuple(prompts.reply_ids(tokenizer, "Walk."))
    many = [popi.Comparison(prompt=f"{k}?", chosen="Yes.", rejected="No.") for k in range(9)]
    assert [p.prompt for p in drafts.judged(many, tokenizer)] == ["8?", "7?", "6?", "5?"]
    late = popi.Comparison(prompt="?", chosen=f"{LONG} Yes.", rejected=f"{LONG} No.")
    assert drafts.judged([late], tokenizer) == []
    start = tokenizer.encode("one two ")
    (pair,) = drafts.judged([popi.Comparison(prompt="?", chosen=f"one two {LONG}", rejected="one two no")], tokenizer)
    assert len(pair.up) <= len(start) + drafts.TOKENS + 1 < len(prompts.reply_ids(tokenizer, LONG))


def by_torch(model: Any, me: popi.Popi, text: str) -> float:
    """The worth of a draft, one sequence a reply."""

    def logp(prompt: str, reply: tuple[int, ...], summary: str) -> float:
        context = prompts.generate_ids(me.engine.tokenizer, prompt, summary=summary or None)
        with torch.no_grad():
            logits = model(torch.tensor([[*context, *reply]])).logits[0].double().log_softmax(-1)
        return float(logits[range(len(context) - 1, len(context) + len(reply) - 1), list(reply)].sum())

    values = []
    for p in drafts.judged(SIGNALS, me.engine.tokenizer):
        told, bare = (logp(p.prompt, p.up, z) - logp(p.prompt, p.down, z) for z in (text, ""))
        values.append(-math.log(1 + math.exp(-drafts.BETA * (told - bare))))
    return sum(values) / len(values)


def test_what_is_kept_is_the_best_of_what_was_drawn(me: popi.Popi, tiny: tuple[Path, Any]) -> None:
    engine, mask, how = me.engine, me._constraint(), Decoding(sentences=1, drafts=6)
    made = infer(engine, SIGNALS, constraint=mask, decoding=how)
    texts = [prompts.signal_text(s, engine.tokenizer) for s in SIGNALS]
    prompt = prompts.chat_ids(engine.tokenizer, prompts.infer_messages(texts))
    drawn = [spoken(write(engine, prompt, 48, mask, None, how, temperature=t, seed=k)[0])
             for k, t in enumerate([0.0] + 5 * [drafts.TEMPERATURE])]  # fmt: skip
    options = drawn + [s for text in drawn for s in SENTENCE_END.split(text)]
    assert len(set(drawn)) > 2 and made.text in options[1:]
    values = {text: by_torch(tiny[1], me, text) for text in options}
    assert values[made.text] == pytest.approx(max(values.values()), abs=1e-5)
    assert max(values.values()) > values[drawn[0]] + drafts.GAIN
    assert made.tokens == len(engine.tokenizer.encode(made.text))
    assert infer(engine, SIGNALS, constraint=mask, decoding=how) == made
    assert infer(engine, SIGNALS, constraint=mask, decoding=Decoding(sentences=1)).text == drawn[0]


def test_the_likeliest_draft_stands_where_no_other_is_better_by_enough(
    me: popi.Popi, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs, texts = drafts.judged(SIGNALS, me.engine.tokenizer), ["Be kind.", "Likes a step.", "Prefers words."]
    values = [drafts.worth(*(drafts.margins(me.engine, z, pairs, None) for z in (text, ""))) for text in texts]
    best = max(range(3), key=values.__getitem__)
    monkeypatch.setattr(drafts, "GAIN", 1e-6)
    for order in ([0, 1, 2], [1, 2, 0], [2, 0, 1]):
        assert drafts.best(me.engine, [texts[i] for i in order], pairs, None) == texts[best]
    monkeypatch.setattr(drafts, "GAIN", 10.0)
    assert drafts.best(me.engine, texts, pairs, None) == texts[0] == drafts.best(me.engine, texts, [], None)


def test_without_a_pair_the_likeliest_draft_is_kept(me: popi.Popi) -> None:
    said = [popi.Statement(text="I like short answers."), popi.Profile(text="I like lists.")]
    one, six = (infer(me.engine, said, constraint=me._constraint(), decoding=Decoding(drafts=n)) for n in (1, 6))
    assert one == six and one.text


def test_the_person_says_how_many(
    me: popi.Popi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(drafts, "best", lambda engine, texts, pairs, adapter: asked.append(len(texts)) or texts[-1])
    place = ["--home", str(tmp_path / "home")]
    monkeypatch.setenv("POPI_MODEL", str(me.settings.model))

    def run(*words: str) -> str:
        monkeypatch.setattr("sys.argv", ["popi", "summary", "refresh", *words, *place])
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code == (2 if "65" in words else 0)
        return capsys.readouterr().out

    run()
    assert not asked
    assert json.loads(run("--drafts", "3", "--json"))["text"] and 1 <= asked.pop() <= 3
    run("--drafts", "65")
    monkeypatch.setenv("POPI_DRAFTS", "none")
    with pytest.raises(ConfigError, match="POPI_DRAFTS: drafts is 'none'; it must be a whole number from 1 to 64"):
        load(tmp_path / "home")


@pytest.mark.parametrize("drawn", [0, 65, True, "6", 2.0, None])
def test_a_bundle_that_asks_for_no_such_number_is_refused(drawn: object) -> None:
    shipped = Path(popi.__file__).parent / "models" / "popi-smol" / "manifest.json"
    manifest = json.loads(shipped.read_text("utf-8"))
    manifest["decoding"] = {"drafts": 6}
    assert parse(json.dumps(manifest).encode(), shipped)["decoding"]["drafts"] == 6
    manifest["decoding"]["drafts"] = drawn
    with pytest.raises(ModelError, match=r"decoding\.drafts is not a whole number from 1 to 64"):
        parse(json.dumps(manifest).encode(), shipped)
