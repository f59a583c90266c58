"""A forced choice by an endpoint, against servers that really answer: by a rule that is worked out apart, or badly.

The summaries come from the toy of the evaluation's own tests, so that what each context says is known. The last test
is llama.cpp's server with a tiny model, whose log-probabilities torch computes on its own.
"""

from __future__ import annotations

import json
import math
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pytest

from popi_edge import prompts
from popi_edge.cli import main
from popi_edge.errors import ConfigError, GeneratorError
from popi_edge.signals import Signal
from popi_training import compare, report, report_sources
from popi_training.evaluate import choice, run
from popi_training.evaluate.conditions import BARE, Context, contexts, draw_donors
from popi_training.evaluate.data import Dataset
from popi_training.evaluate.journal import UNITS, Journal
from popi_training.evaluate.metrics import wins
from tests.hostile_server import HostileServer, hang_up_in_body, not_json, redirect, status, wrong_shape
from tests.test_evaluate_run import COLD, PLAIN, WARM, Toy, dataset, quiet, row
from tests.tiny import TEXT, llama

Rule = Callable[[dict[str, Any]], Any]
"""A request's JSON → the first choice of a reply, or an HTTP status."""

SHOWN = re.compile(r"Asked:\n((?:>.*\n)+)\nReply A:\n((?:>.*\n)+)\nReply B:\n((?:>.*\n)+)\nWhich .* A or B\.")


class Judge(ThreadingHTTPServer):
    """An endpoint that answers by a rule. ``bodies``: what it answered with 200; ``seen`` counts every request."""

    daemon_threads = True

    def __init__(self, rule: Rule) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.rule, self.bodies, self.seen = rule, list[dict[str, Any]](), 0
        self.headers: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    server: Judge

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen += 1
        self.server.headers.append(self.headers["Authorization"])
        found = self.server.rule(body) if self.path == "/v1/chat/completions" else 404
        if not isinstance(found, int):
            self.server.bodies.append(body)
        code = found if isinstance(found, int) else 200
        answer = {"error": {"message": "no"}} if isinstance(found, int) else {"choices": [found]}
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *_: Any) -> None:
        """Quiet."""


def says(text: str | None, **more: Any) -> dict[str, Any]:
    return {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"} | more


def shown(body: dict[str, Any]) -> tuple[str, str, str, str]:
    """System message, prompt, reply A, reply B of a request."""
    (one, system), (two, user) = ((m["role"], m["content"]) for m in body["messages"])
    found = SHOWN.fullmatch(user)
    assert found and (one, two) == ("system", "user") and (body["temperature"], body["stream"]) == (0, False)
    prompt, a, b = ("\n".join(line[2:] for line in part.strip().split("\n")) for part in found.groups())
    return system, prompt, a, b


def overlap(system: str, reply: str) -> int:
    """How many of a reply's words stand in the system message."""
    return sum(word in system for word in reply.split())


def by_words(body: dict[str, Any]) -> Any:
    """The reply with more words of the system message; A where they tie."""
    system, _, a, b = shown(body)
    return says("A" if overlap(system, a) >= overlap(system, b) else "B")


def by_length(body: dict[str, Any]) -> Any:
    _, _, a, b = shown(body)
    return says("(A)" if len(a) >= len(b) else "**B**")


def system_of(context: Context, toy: Toy) -> str:
    signals: tuple[Signal, ...] = context.signals
    tokenizer: Any = toy.tokenizer
    return prompts.raw_system(signals, tokenizer) if signals else prompts.generate_system(context.summary)


def asked(data: Dataset, url: str, folder: Path | None = None, model: str | None = None) -> dict[str, Any]:
    return listed(data, url, folder, model)[0]


def listed(
    data: Dataset, url: str, folder: Path | None = None, model: str | None = None
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    toy, chooser = Toy(), choice.open_chooser(url, model)
    pair = run.Pair(toy, model="toy", identity="toy")  # type: ignore[arg-type]
    with Journal(folder, pair.settings(data, 0) | chooser.settings()) as journal:
        found = choice.evaluate(data, pair, journal, chooser, advance=quiet)
    assert "score" not in toy.calls
    return found


def worked_out(data: Dataset, score: Callable[[str, str, str], float]) -> tuple[dict[str, dict[str, float]], Any]:
    """Accuracy and contrast by condition from a plain rule (system, y⁺, y⁻) → score in [0, 1]; and all contexts."""
    toy, donors = Toy(), draw_donors(data.rows, 0)
    summaries = ["They like summer." if r.user_key == WARM else "They like winter." for r in data.rows]
    out, every = {}, set()
    for c in PLAIN:
        right, beats = [], []
        for i, r in enumerate(data.rows):
            both = contexts(c, i, data.rows, donors, summaries, False)
            every |= {(i, context) for context in both}
            own, other = (score(system_of(context, toy), r.chosen, r.rejected) for context in both)
            right.append(own)
            beats.append(float(wins([own], [other])[0]))
        out[c] = {"accuracy": float(np.mean(right)), "contrast": float(np.mean(beats))}
    return out, every


def check(result: dict[str, Any], expected: dict[str, dict[str, float]]) -> None:
    assert list(result["conditions"]) == PLAIN
    for name, values in expected.items():
        for k, v in values.items():
            assert result["conditions"][name][k] == pytest.approx(v), (name, k)


def test_choices_in_both_orders_are_those_of_the_rule(tmp_path: Path) -> None:
    data = dataset(tmp_path)
    with Judge(by_words) as judge:
        result = asked(data, judge.url, model="m-1")
    expected, every = worked_out(data, lambda s, up, down: float(wins([overlap(s, up)], [overlap(s, down)])[0]))
    check(result, expected)
    # By hand: own words decide; of the raw pairs, which hold both words, only the longer replies win; none ties.
    assert [expected[c]["accuracy"] for c in ("none", "summary", "oracle_summary")] == [0.5, 1, 1]
    assert expected["raw"] == {"accuracy": pytest.approx(8 / 12), "contrast": 0.5}
    assert result["gap_closed"]["summary"] == {"accuracy": 1, "contrast": 1}
    stuck = [overlap(system_of(c, Toy()), data.rows[i].chosen) == overlap(system_of(c, Toy()), data.rows[i].rejected)
             for i, c in every]  # fmt: skip
    assert result["generator"] == {
        "url": judge.url, "model": "m-1", "logprobs": False, "logprobs_share": 0.0, "unparsed": 0.0,
        "position_bias": pytest.approx(sum(stuck) / len(stuck)), "answers": judge.seen,
    }  # fmt: skip
    sent = {json.dumps(body) for body in judge.bodies}
    assert len(sent) == judge.seen  # nothing is asked twice: rows that mirror each other share their questions
    assert {body["model"] for body in judge.bodies} == {"m-1"}
    seen = {shown(body) for body in judge.bodies}
    for i, c in every:
        r, system = data.rows[i], system_of(c, Toy())
        assert {(system, r.prompt, r.chosen, r.rejected), (system, r.prompt, r.rejected, r.chosen)} <= seen


def test_tokens_users_and_tests_are_as_in_a_run_by_scores(tmp_path: Path) -> None:
    data = dataset(tmp_path)
    with Judge(by_words) as judge:
        result = asked(data, judge.url)
    pair = run.Pair(Toy(), model="toy")  # type: ignore[arg-type]
    plain = run.evaluate(data, pair, Journal(), advance=quiet)[0]
    assert set(result) == {*plain, "generator"}
    for name in PLAIN:
        assert list(result["conditions"][name]) == list(plain["conditions"][name])
        assert result["conditions"][name]["tokens"] == plain["conditions"][name]["tokens"]
    assert [(t["a"], t["b"], t["metric"]) for t in result["tests"]] == [
        (t["a"], t["b"], t["metric"]) for t in plain["tests"]
    ]
    for key in ("users", "pairs", "prompts", "distinct_summaries", "statuses", "dropped"):
        assert result[key] == plain[key]
    assert set(result["baselines"]) == {"longer"}


def test_who_likes_length_alone_scores_as_the_longer_reply_does_and_has_no_contrast(tmp_path: Path) -> None:
    data = dataset(tmp_path, [row(n, p, times=n) for n in (1, 2, 3) for p in (WARM, COLD)])
    with Judge(by_length) as judge:
        result = asked(data, judge.url)
    for c in result["conditions"].values():
        assert c["accuracy"] == result["baselines"]["longer"]["accuracy"]
        assert c["contrast"] == 0.5
    assert result["shorter"]["conditions"]["summary"]["accuracy"] == 0
    assert result["generator"]["position_bias"] == pytest.approx(1 / 3)  # two replies of two words tie
    assert result["generator"]["unparsed"] == 0


def biased(body: dict[str, Any]) -> Any:
    """Half a nat for every word more, and 4 nats for whatever stands first: always A. Spelled in two ways."""
    system, _, a, b = shown(body)
    if body.get("top_logprobs") != 20:
        return 422
    d = 4 + (overlap(system, a) - overlap(system, b)) / 2
    p = {"A": 0.9 / (1 + math.exp(-d)), "B": 0.9 / (1 + math.exp(d))}
    halves = [{"token": t, "logprob": math.log(p["A"] / 2)} for t in ("A", "*A")]
    rest = [{"token": " B", "logprob": math.log(p["B"])}, {"token": "I", "logprob": 0}, {"token": "A", "logprob": None}]
    listed = [{"token": "\n", "logprob": 0.0, "top_logprobs": [{"token": "B", "logprob": -1.0}]},
              {"token": "A", "logprob": -1.0, "top_logprobs": [*halves, *rest]}]  # fmt: skip
    return says("\nA", logprobs={"content": listed})


def test_log_probabilities_show_a_contrast_that_the_position_hides(tmp_path: Path) -> None:
    data = dataset(tmp_path)
    with Judge(biased) as judge:
        result, lines = listed(data, judge.url)
    assert {c["accuracy"] for c in result["conditions"].values()} == {0.5}
    assert result["generator"] | {"answers": 0, "url": "", "model": ""} == {
        "url": "", "model": "", "logprobs": True, "logprobs_share": 1, "unparsed": 0, "position_bias": 1, "answers": 0,
    }  # fmt: skip
    expected, _ = worked_out(data, lambda s, up, down: overlap(s, up) - overlap(s, down))
    for name in PLAIN:
        assert result["conditions"][name]["contrast"] == pytest.approx(expected[name]["contrast"])
    assert expected["summary"]["contrast"] == 1
    for line, r in zip(lines, data.rows, strict=True):
        text = prompts.generate_system(line["text"])
        difference = overlap(text, r.chosen) - overlap(text, r.rejected)
        assert line["margins"]["summary"][0] == pytest.approx(difference / 2, abs=1e-4)


def test_the_listing_of_choices_gives_their_accuracy_to_who_reads_it(tmp_path: Path) -> None:
    """Log-probabilities tell the rows although the position decides every choice, so that signs of m would say 1."""
    data, listing = dataset(tmp_path), tmp_path / "summaries.jsonl"
    with Judge(biased) as judge:
        result, lines = listed(data, judge.url)
    run.write_listing(listing, lines)
    read = compare.read(listing)
    for difference in compare.compare(read, read)["differences"]:
        assert difference["now"] == result["conditions"][difference["after"]][difference["metric"]]
    (tmp_path / "result.json").write_text(json.dumps(result))
    evaluation = report_sources.read_evaluation(tmp_path, "choices")
    rows = evaluation.listing or []
    assert report.described(rows)["accuracy"] == 0.5 and not report._unlike(evaluation)
    assert [why for _, why in report.failures(rows)] == [["undecided"]] * len(rows)
    assert all(row.unreachable for row in rows)


def test_what_is_no_letter_counts_half_and_is_counted(tmp_path: Path) -> None:
    def refusing(body: dict[str, Any]) -> Any:
        return says(None) if "winter" in shown(body)[0] else by_words(body)

    def half(system: str, up: str, down: str) -> float:
        return 0.5 if "winter" in system else float(wins([overlap(system, up)], [overlap(system, down)])[0])

    data = dataset(tmp_path)
    with Judge(refusing) as judge:
        result = asked(data, judge.url)
    expected, _ = worked_out(data, half)
    check(result, expected)
    assert result["by_persona"][COLD]["conditions"]["summary"]["accuracy"] == 0.5
    assert result["by_persona"][COLD]["conditions"]["summary"]["contrast"] == 1  # ½ against 0
    lost = sum("winter" in shown(body)[0] for body in judge.bodies)
    assert result["generator"]["unparsed"] == lost / judge.seen


@pytest.mark.parametrize(
    ("text", "named"),
    [("A", "A"), (" B.", "B"), ("(B)", "B"), ("**A**", "A"), ("A\nbecause", "A"), ("B: it", "B"), ("“A”", "A"),
     ("A reply", None), ("A is", None), ("Reply A", None), ("a", None), ("AB", None), ("A/B", None), ("A or B", None),
     ("C", None), ("", None), ("1. A", None), ("А", None), ("I cannot", None)],
)  # fmt: skip
def test_a_letter_is_read_strictly(text: str, named: str | None) -> None:
    assert choice.letter(text) == named


def test_the_spellings_of_a_letter_are_added_up() -> None:
    top = [{"token": t, "logprob": math.log(p)} for t, p in (("A", 0.5), (" A", 0.2), ("(B", 0.1), ("b", 0.1))]
    listed = [{"token": " ("}, {"token": "A", "top_logprobs": top}, {"token": "B", "top_logprobs": top[2:]}]
    found = choice.letter_logprobs({"logprobs": {"content": listed}})
    assert found == pytest.approx([math.log(0.7), math.log(0.1)])


@pytest.mark.parametrize(
    "listed",
    [None, [], {"content": None}, {"content": [{"token": "A"}]}, {"content": [{"token": "A", "top_logprobs": [1]}]},
     {"content": [{"token": "A", "top_logprobs": [{"token": "A", "logprob": -1.0}]}]},
     {"content": [{"token": "A", "top_logprobs": [{"token": "A", "logprob": "x"}, {"token": "B", "logprob": -1}]}]},
     *({"content": [{"token": "A", "top_logprobs": [{"token": "A", "logprob": odd}, {"token": "B", "logprob": -1}]}]}
       for odd in (-math.inf, math.nan, -1e308, -(10**400), True))],
)  # fmt: skip
def test_log_probabilities_of_one_letter_or_of_another_shape_are_none(listed: Any) -> None:
    assert choice.letter_logprobs({"logprobs": listed}) is None


# going on, and failing ------------------------------------------------------------------------------------------
def answers(folder: Path) -> int:
    lines = (folder / UNITS).read_text("utf-8").splitlines()
    return sum('"choice:' in line for line in lines)


def falling(judge: Judge, after: int) -> Rule:
    return lambda body: by_words(body) if len(judge.bodies) < after else 503


def test_an_endpoint_that_falls_over_loses_nothing(tmp_path: Path) -> None:
    data = dataset(tmp_path)
    with Judge(by_words) as judge:
        expected = asked(data, judge.url, tmp_path / "whole")
        whole = judge.seen
        assert answers(tmp_path / "whole") == whole
        for done in (0, 1, 13):
            folder, judge.bodies = tmp_path / f"run-{done}", []
            judge.rule = falling(judge, done)
            with pytest.raises(GeneratorError, match=r"127.0.0.1:\d+: HTTP 503: no"):
                asked(data, judge.url, folder)
            assert answers(folder) == done
            judge.rule, judge.seen = by_words, 0
            assert asked(data, judge.url, folder) == expected
            assert judge.seen == whole - done
        judge.seen = 0
        assert asked(data, judge.url, tmp_path / "whole") == expected and judge.seen == 0


def test_another_url_or_model_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    data, folder = dataset(tmp_path), tmp_path / "run"
    with Judge(by_words) as judge, Judge(by_words) as other:
        asked(data, judge.url, folder, "one")
        before, sent = (folder / UNITS).read_bytes(), judge.seen
        with pytest.raises(ConfigError, match="another generator_model: one there, two now"):
            asked(data, judge.url, folder, "two")
        with pytest.raises(ConfigError, match=f"another generator: {judge.url} there, {other.url} now"):
            asked(data, other.url, folder, "one")
        assert (judge.seen, other.seen) == (sent, 0) and (folder / UNITS).read_bytes() == before


@pytest.mark.parametrize("most", [0, 5])
def test_an_endpoint_that_refuses_log_probabilities_is_asked_without_them(tmp_path: Path, most: int) -> None:
    def rule(body: dict[str, Any]) -> Any:
        return 400 if body.get("top_logprobs", 0) > most else by_words(body)

    data = dataset(tmp_path)
    with Judge(rule) as judge:
        result = asked(data, judge.url, tmp_path / "run")
        refused = judge.seen - len(judge.bodies)
        assert refused == (2 if most == 0 else 1)
        assert {body.get("top_logprobs", 0) for body in judge.bodies} == {most}
        assert result["generator"]["logprobs"] is False and result["conditions"]["summary"]["contrast"] == 1
        sent = judge.seen
        asked(data, judge.url, tmp_path / "run")
        assert judge.seen == sent


@pytest.mark.parametrize(
    ("url", "model", "variable", "said"),
    [
        ("ftp://127.0.0.1/v1", None, None, "http"),
        ("http://", None, None, "host"),
        ("http://anna:secret@127.0.0.1/v1", None, None, "--generator-key-env"),
        ("https://127.0.0.1/v1?key=secret", None, None, "--generator-key-env"),
        ("http://127.0.0.1/v1", "x" * 301, None, "model"),
        ("http://127.0.0.1/v1", None, "not a name", "variable"),
        ("http://127.0.0.1/v1", None, "UNSET_VARIABLE", "UNSET_VARIABLE is not set"),
        ("http://far.example/v1", None, "SOME_KEY", "clear text"),
        ("https://far.example/v1", None, "ODD_KEY", "cannot carry"),
    ],
)
def test_an_endpoint_that_makes_no_sense_is_one_line(
    url: str, model: str | None, variable: str | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_KEY", "secret")
    monkeypatch.setenv("ODD_KEY", "secret\nsecret")
    with pytest.raises(ConfigError) as e:
        choice.open_chooser(url, model, variable)
    assert said in str(e.value) and "\n" not in str(e.value) and "secret" not in str(e.value)


# the command ----------------------------------------------------------------------------------------------------
@pytest.fixture
def popi(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """``popi eval`` on the toy's rows, with the toy in place of a bundle's model: exit code, stdout, stderr."""
    toys: list[Toy] = []

    def open_pair(bundle: str | None, engine: str | None, settings: Any) -> run.Pair:
        toys.append(Toy())
        return run.Pair(toys[-1], model="toy", identity="toy")  # type: ignore[arg-type]

    monkeypatch.setattr(run, "open_pair", open_pair)
    monkeypatch.setenv("POPI_HOME", str(tmp_path / "home"))
    dataset(tmp_path)

    def call(*words: str) -> tuple[int, str, str]:
        args = ["popi", "eval", "--data", str(tmp_path / "rows.json"), "--format", "alignx", *words]
        monkeypatch.setattr(sys, "argv", args)
        with pytest.raises(SystemExit) as end:
            main()
        said = capsys.readouterr()
        return int(end.value.code or 0), said.out, said.err

    yield call
    assert all(t.closed and "score" not in t.calls for t in toys)
    assert not (tmp_path / "home").exists()  # no store, no generators, no egress log


def test_the_command_sends_the_key_and_shows_it_nowhere(
    popi: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THE_KEY", "sk-very-secret")
    out, summaries = tmp_path / "out", tmp_path / "summaries.jsonl"
    with Judge(by_words) as judge:
        words = ["--generator", judge.url, "--generator-model", "m-1", "--generator-key-env", "THE_KEY",
                 "--limit", "6", "--profile", "--out", str(out), "--summaries", str(summaries)]  # fmt: skip
        code, printed, said = popi(*words, "--json")
        assert code == 0, said
        assert set(judge.headers) == {"Bearer sk-very-secret"}
        result = json.loads(printed)
        assert json.loads((out / "result.json").read_text("utf-8")) == result
        assert (result["pairs"], result["limit"]) == (6, 6)
        assert set(result["conditions"]) == set(PLAIN) and set(result["profile"]["conditions"]) == set(PLAIN)
        assert result["generator"]["answers"] == judge.seen == answers(out)
        sent = judge.seen
        code, table, said_again = popi(*words)
        assert code == 0 and judge.seen == sent
    assert re.search(r"^summary +1\.000 +1\.000 to 1\.000 +1\.000", table, re.M)
    last = table.strip().splitlines()[-1]
    assert last.startswith(f"Chosen by m-1 at {judge.url}: {sent} answers") and last.endswith("by choices alone.")
    kept = [p.read_text("utf-8") for p in (*out.iterdir(), summaries)]
    assert "very-secret" not in "".join([printed, said, table, said_again, *kept])
    assert "choices: 100%" in said


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [(not_json, "not JSON"), (status("401 Unauthorized"), "HTTP 401"), (status("404 Not Found"), "HTTP 404"),
     (status("500 Internal Server Error"), "HTTP 500"), (redirect("http://elsewhere.example/"), "not followed"),
     (wrong_shape, "choices[0].message.content"), (hang_up_in_body, "hung up"), (None, "connection refused")],
)  # fmt: skip
def test_a_bad_endpoint_is_one_line_before_any_summary_is_made(
    popi: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, behaviour: Any,
    words: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("THE_KEY", "sk-very-secret")
    with HostileServer(behaviour or not_json) as server:
        url = server.url
        if behaviour is not None:
            args = ("--generator", url, "--generator-key-env", "THE_KEY", "--out", str(tmp_path / "out"))
            code, printed, said = popi(*args)
    if behaviour is None:
        code, printed, said = popi("--generator", url, "--out", str(tmp_path / "out"))
    assert (code, printed) == (1, "")
    assert words in said and len(said.splitlines()) == 1 and "very-secret" not in said and "\x1b" not in said
    assert len((tmp_path / "out" / UNITS).read_text("utf-8").splitlines()) == 1  # the settings alone


def test_a_model_without_a_url_is_wrong_usage(popi: Callable[..., tuple[int, str, str]]) -> None:
    code, _, said = popi("--generator-model", "m-1")
    assert code == 2 and "need --generator" in said


# llama.cpp's server -------------------------------------------------------------------------------------------
def lettered(path: Path) -> Any:
    """A tiny random llama that says A or B, whichever its context makes likelier, and then ends."""
    import torch

    from popi_training.micro import vocabulary, write

    words = vocabulary(TEXT, 400)
    model = llama(path, tied=False)
    letters = [words[0].index(x) for x in "AB"]
    with torch.no_grad():
        inputs, outputs = model.model.embed_tokens.weight, model.lm_head.weight
        inputs[:, 0] = 40.0
        inputs[letters, 0] = -40.0
        outputs[:, 0] = 0.0
        outputs[letters, 0] = 3.0
        outputs[2, 0] = -3.0
        outputs[letters, 1:] *= 10
        model.model.norm.weight[0] = 1.0
    write(path, model, words)
    return model


@pytest.mark.parametrize("kept", [True, False])
def test_llama_cpps_server_gives_the_margins_that_torch_computes(tmp_path: Path, kept: bool) -> None:
    import torch

    from popi_edge.models.gguf import Gguf
    from popi_edge.models.tokenizer import Tokenizer

    model = lettered(tmp_path / "tiny.gguf")
    tokenizer = Tokenizer(Gguf(tmp_path / "tiny.gguf"))
    (a,), (b,) = tokenizer.encode("A"), tokenizer.encode("B")
    data = dataset(tmp_path, [row(n, p, past=2) for n in range(2) for p in (WARM, COLD)])
    with served(tmp_path / "tiny.gguf", logits_all=kept) as url:
        result, lines = listed(data, url)
    margins: dict[tuple[int, Context], float] = {}
    choices: dict[tuple[int, Context], float] = {}
    donors, toy = draw_donors(data.rows, 0), Toy()
    texts = [line["text"] for line in lines]
    for name in PLAIN:
        for i, r in enumerate(data.rows):
            for context in contexts(name, i, data.rows, donors, texts, False):
                signs = []
                for swapped in (False, True):
                    ask = choice.question(r, system_of(context, toy), swapped=swapped)
                    with torch.no_grad():
                        logits = model(torch.tensor([prompts.chat_ids(tokenizer, ask.messages)])).logits[0, -1]
                    assert {int(t) for t in logits.topk(2).indices} == {a, b}
                    signs.append(float(logits[b] - logits[a]) if swapped else float(logits[a] - logits[b]))
                margins[i, context] = sum(signs) / 2
                choices[i, context] = sum(s > 0 for s in signs) / 2
    for name in PLAIN:
        both = [contexts(name, i, data.rows, donors, texts, False) for i in range(len(data.rows))]
        right = [choices[i, own] for i, (own, _) in enumerate(both)]
        assert result["conditions"][name]["accuracy"] == np.mean(right)
        source = margins if kept else choices
        for i, (own, other) in enumerate(both):
            expected = [source[i, own], source[i, other]]
            assert lines[i]["margins"][name] == pytest.approx(expected, abs=2e-2), (name, i)
    assert result["generator"]["unparsed"] == 0 and result["generator"]["logprobs"] is kept
    assert np.std([margins[i, BARE] for i in range(4)]) > 0.1 and 0 < result["generator"]["position_bias"] < 1


class served:
    """llama.cpp's own server on loopback, with a model, until the block ends."""

    def __init__(self, model: Path, *, logits_all: bool) -> None:
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        self.command = [sys.executable, "-W", "ignore", "-m", "llama_cpp.server", "--model", str(model),
                        "--host", "127.0.0.1", "--port", str(self.port), "--n_ctx", "1024", "--n_threads", "1",
                        "--logits_all", str(logits_all)]  # fmt: skip

    def __enter__(self) -> str:
        self.child = subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while True:
            with socket.socket() as s:
                if s.connect_ex(("127.0.0.1", self.port)) == 0:
                    return f"http://127.0.0.1:{self.port}/v1"
            if self.child.poll() is not None or time.monotonic() > deadline:
                self.child.kill()
                raise AssertionError("llama.cpp's server did not start")
            time.sleep(0.1)

    def __exit__(self, *_: object) -> None:
        self.child.terminate()
        self.child.wait(20)
