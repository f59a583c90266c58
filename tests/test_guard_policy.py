"""What a person wants done with a finding: block, mask or ask; and nothing passes that nobody answered for."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import popi_edge as popi
from popi_edge import config
from popi_edge.errors import ConfigError
from popi_edge.guard import Finding, check, genuine, masked, verdict
from popi_edge.guard.finding import RULES, Clock
from popi_edge.guard.folding import spec
from popi_edge.guard.index import SignalIndex
from popi_edge.guard.policy import ACTIONS, Policy, mask
from popi_edge.vocabulary import Lexicon

LEXICON = Lexicon.load()
SEED = "kitchen bottle cup bread tea breakfast window habit luck mountain chocolate garden"
SIGNALS = [("w", f"wallet: {SEED}"), ("h", "I live in Wroclaw, call 601 234 567.")]


def policy(**actions: str) -> Policy:
    return Policy.of(actions)


# the policy -----------------------------------------------------------------------------------------------------
def test_what_is_not_named_is_blocked_and_default_names_the_rest() -> None:
    assert {Policy().action(rule) for rule in RULES} == {"block"}
    some = policy(default="ask", number="mask")
    assert some.action("number") == "mask" and some.action("overlap") == "ask"
    assert policy(size="mask").action("size") == "block"  # nothing in it could be replaced
    assert Policy({"number": "pass"}).action("number") == "block"  # an unknown action, however it came there


@pytest.mark.parametrize("table", [{"numbers": "mask"}, {"number": "allow"}, {"number": True}, "block", ["number"]])
def test_a_rule_or_an_action_that_does_not_exist_is_refused(table: object) -> None:
    with pytest.raises(ConfigError, match="guard"):
        Policy.of(table)


def test_every_rule_that_check_names_is_known() -> None:
    text = "Write ann@example.org, 4111 1111 1111 1111, j\u200boy teA .-. Wroclaw " + SEED
    found = check(text, SIGNALS, LEXICON, form=True)
    assert {f.rule for f in found} <= set(RULES) and len({f.rule for f in found}) >= 8
    assert {f.rule for f in check(text, SIGNALS, LEXICON, seconds=0)} <= set(RULES)


@pytest.mark.parametrize(
    ("text", "rules", "wanted"),
    [
        ("Lives in Wroclaw.", {"lexicon", "encoded"}, "Lives in something."),
        ("Wroclaw is fine.", {"lexicon", "encoded"}, "Something is fine."),
        ("Likes te\u200ba.", {"lexicon", "hidden", "encoded"}, "Likes something."),
        ("Likes tea\u200b.", {"lexicon", "hidden"}, "Likes something."),
        ("Likes  tea.", {"hidden"}, "Likes tea."),
        ("Likes 5 or 6, 7 answers.", {"number", "lexicon", "encoded"}, "Likes something or something answers."),
        (f"Says {SEED}. Likes tea.", {"overlap"}, "Says something. Likes tea."),
    ],
)
def test_a_masked_text_reads_on_and_passes(text: str, rules: set[str], wanted: str) -> None:
    done = masked(text, SIGNALS, LEXICON, Policy.of(dict.fromkeys(rules, "mask")))
    assert done == wanted and check(done, SIGNALS, LEXICON) == ()


def test_where_anything_blocks_nothing_is_masked() -> None:
    text = "Call 5 Wroclaw."
    assert masked(text, SIGNALS, LEXICON, policy(number="mask")) == text
    assert masked(text, SIGNALS, LEXICON, policy(default="mask")) != text


ODD = ("Wroclaw", "5", "likes", "a\u200bb", "ann@example.org", ".-.", "SeeD", ".")
PIECES = st.sampled_from([*ODD, *SEED.split()])


@settings(max_examples=80, deadline=None)
@given(st.lists(PIECES, max_size=14))
def test_masking_ends_in_the_text_itself_or_in_one_that_passes(pieces: list[str]) -> None:
    text, everything = " ".join(pieces), policy(default="mask")
    done = masked(text, SIGNALS, LEXICON, everything)
    assert done == text or check(done, SIGNALS, LEXICON) == ()


def test_mask_leaves_what_is_not_to_be_masked() -> None:
    found = [Finding("number", 6, 7, "5", None, "", action="mask"), Finding("lexicon", 0, 5, "Likes", None, "")]
    assert mask("Likes 5 teas", found) == "Likes something teas"


# asking ---------------------------------------------------------------------------------------------------------
def test_without_an_answer_asking_blocks_and_the_finding_says_so() -> None:
    given = verdict("Likes Wroclaw.", SIGNALS, LEXICON, policy=policy(default="ask"))
    assert not given.ok and {f.action for f in given.findings} == {"ask"} and "Wroclaw" in given.findings[0].message


def test_an_answer_of_yes_to_all_lets_it_pass_and_is_kept() -> None:
    asked: list[Finding] = []

    def yes(finding: Finding) -> bool:
        asked.append(finding)
        return True

    given = verdict("Likes Wroclaw.", SIGNALS, LEXICON, policy=policy(default="ask"), answer=yes)
    assert given.ok and genuine(given) and given.overruled == tuple(asked) and len(asked) == 2
    ask = policy(default="ask")
    some = verdict("Likes Wroclaw.", SIGNALS, LEXICON, policy=ask, answer=lambda f: f.rule == "lexicon")
    assert not some.ok and [f.rule for f in some.findings] == ["encoded"] and len(some.overruled) == 1


def test_nobody_is_asked_where_something_blocks_anyway_and_only_true_is_yes() -> None:
    def never(_: Finding) -> bool:
        raise AssertionError("asked")

    given = verdict("Likes 5 Wroclaw.", SIGNALS, LEXICON, policy=policy(lexicon="ask"), answer=never)
    assert not given.ok and not given.overruled
    for answer in (lambda _: 1, lambda _: "yes", lambda _: None):
        assert not verdict("Likes Wroclaw.", SIGNALS, LEXICON, policy=policy(default="ask"), answer=answer).ok  # type: ignore[arg-type]
    assert not verdict("Likes Wroclaw.", SIGNALS, LEXICON, policy=policy(default="ask"), answer=never).ok


# fails closed ---------------------------------------------------------------------------------------------------
def test_a_guard_without_time_blocks() -> None:
    text, index = "Prefers short answers.", SignalIndex(SIGNALS)
    for signals in (SIGNALS, index):
        found = check(text, signals, LEXICON, seconds=0)
        assert found and all("TimeoutError" in f.message for f in found)
        assert check(text, signals, LEXICON) == ()


def test_a_rule_that_could_not_decide_blocks_whatever_the_policy_says() -> None:
    def broken() -> object:
        yield "s", 5

    for setting in ("ask", "mask"):
        some = policy(default=setting)
        given = verdict("Likes tea.", broken(), LEXICON, policy=some, answer=lambda _: True)  # type: ignore[arg-type]
        assert not given.ok and given.findings[0].action == "block" and given.findings[0].failed
        assert masked("Likes 5 teas.", broken(), LEXICON, some) == "Likes 5 teas."  # type: ignore[arg-type]
    (found,) = check("Likes tea.", SIGNALS, LEXICON, seconds="soon")  # type: ignore[arg-type]
    assert found.failed and found.rule == "text"


def test_signals_without_end_block_when_the_time_is_over() -> None:
    def forever() -> object:
        while True:
            yield "s", "tea and bread"

    (found,) = [f for f in check("Likes tea.", forever(), LEXICON, seconds=0.2) if f.rule == "overlap"]  # type: ignore[arg-type]
    assert "TimeoutError" in found.message
    with pytest.raises(TimeoutError):
        Clock(0).check()


def test_a_text_longer_than_any_summary_blocks_unread() -> None:
    limit = spec()["limits"]["characters"]
    assert not [f for f in check("tea " * (limit // 4), (), LEXICON) if f.rule == "size"]
    assert [f.rule for f in check("tea " * (limit // 4) + "x", (), LEXICON)] == ["size"]


# settings and the façade ----------------------------------------------------------------------------------------
def write(home: Path, text: str) -> None:
    home.mkdir(exist_ok=True, mode=0o700)
    (home / "config.toml").write_text(text)


def test_the_settings_hold_the_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert config.load(tmp_path).guard == {}
    monkeypatch.setenv("POPI_GUARD", "nonsense")  # not read from the environment
    write(tmp_path, '[guard]\noverlap = "ask"\ndefault = "block"\n')
    assert config.load(tmp_path).guard == {"overlap": "ask", "default": "block"}
    for bad in ('guard = "mask"', '[guard]\nnumber = "allow"', '[guard]\nnames = "mask"', "[guard]\nnumber = 1"):
        write(tmp_path, bad)
        with pytest.raises(ConfigError, match=r"config\.toml.*guard"):
            config.load(tmp_path)
    assert set(ACTIONS) == {"block", "mask", "ask"}


def test_the_index_follows_the_store(tmp_path: Path) -> None:
    rng = random.Random(4)
    with popi.Popi.open(home=tmp_path) as me:
        ids: list[str] = []
        for i in range(25):
            for _ in range(rng.randrange(3)):
                if rng.random() < 0.75 or not ids:
                    signal = popi.Statement(text=f"number {i} {rng.choice(SEED.split())} {rng.random()}")
                    me.record(signal)
                    ids.append(signal.id)
                else:
                    me.store.delete([ids.pop(rng.randrange(len(ids)))])
            fresh = SignalIndex((s.signal.id, t) for s in me.store.each() for t in s.signal.texts())
            assert me._index("me").row.tolist() == fresh.row.tolist() and len(fresh) == len(ids)
        me.record(popi.Statement(text=f"Another's: {SEED}", user="kit"))
        assert me.check(SEED).ok and not me.check(SEED, "kit").ok


def test_a_deleted_signal_no_longer_blocks(tmp_path: Path) -> None:
    with popi.Popi.open(home=tmp_path) as me:
        secret = popi.Statement(text=SEED)
        me.record(secret)
        assert not me.check(SEED).ok
        me.store.delete([secret.id])
        assert me.check(SEED).ok


# the command line -----------------------------------------------------------------------------------------------
def run(home: Path, *words: str, code: int = 0) -> str:
    command = [sys.executable, "-m", "popi_edge", *words, "--home", str(home)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code and "Traceback" not in done.stderr, done.stderr
    return done.stdout


def test_a_text_can_be_tried_and_the_rules_be_seen(tmp_path: Path) -> None:
    run(tmp_path, "record", "statement", "I live in Wroclaw.")
    assert run(tmp_path, "guard", "check", "Prefers short answers.") == "nothing found\n"
    assert "Wroclaw" in run(tmp_path, "guard", "check", "Likes Wroclaw.", code=1)
    shown = json.loads(run(tmp_path, "guard", "check", "likes tea", "--form", "--json", code=1))
    assert {f["rule"] for f in shown["findings"]} == {"form"} and shown["ok"] is False
    write(tmp_path, '[guard]\noverlap = "ask"\n')
    rules = json.loads(run(tmp_path, "guard", "rules", "--json"))
    assert set(rules["rules"]) == set(RULES) and rules["rules"]["overlap"]["action"] == "ask"
    assert rules["rules"]["phone"]["libraries"] == ["phonenumbers"] and rules["libraries"]["stdnum"]
    assert "overlap" in run(tmp_path, "guard", "rules")


@pytest.mark.parametrize(("typed", "code"), [("y\ny\n", 0), ("n\n", 1)])
def test_at_a_terminal_the_guard_asks(tmp_path: Path, typed: str, code: int) -> None:
    run(tmp_path, "record", "statement", "I live in Wroclaw.")
    write(tmp_path, '[guard]\ndefault = "ask"\n')
    run(tmp_path, "guard", "check", "Likes Wroclaw.", code=1)  # nobody there to ask
    import pty

    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "popi_edge", "guard", "check", "Likes Wroclaw.", "--home", str(tmp_path)]
    os.write(leader, (typed * 2).encode())
    done = subprocess.run(command, stdin=follower, stderr=follower, stdout=subprocess.PIPE, timeout=60, check=False)
    os.close(follower)
    said = os.read(leader, 10_000).decode()
    os.close(leader)
    assert done.returncode == code and "May it pass all the same?" in said and "Traceback" not in said
