"""The seven kinds of signal: strict about what they hold, and the same after a trip through JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from popi_edge.errors import SignalError
from popi_edge.signals import (
    KINDS,
    MAX_TEXT,
    Comparison,
    Conversation,
    Edit,
    Message,
    Post,
    Profile,
    Rating,
    Signal,
    Statement,
    from_json,
    to_json,
)

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=30)
FULL = TEXT.filter(str.strip)
NAME = st.text("abcXYZ019 -_é雪", min_size=1, max_size=20).filter(str.strip)
COMMON = {
    "at": st.datetimes(timezones=st.timezones()).map(lambda d: d.isoformat()).filter(lambda t: "1000" < t < "9998"),
    "source": NAME,
    "user": NAME,
}
TURNS = st.lists(st.builds(Message, st.sampled_from(["assistant", "system"]), TEXT), max_size=3).flatmap(
    lambda turns: FULL.map(lambda text: (*turns, Message("user", text)))
)
ANY = st.one_of(
    st.builds(Comparison, FULL, FULL, FULL, **COMMON),
    st.builds(Rating, FULL, FULL, st.floats(0, 1), **COMMON),
    st.builds(Edit, FULL, FULL, FULL, **COMMON),
    st.builds(Statement, FULL, **COMMON),
    st.builds(Post, FULL, st.none() | FULL, **COMMON),
    st.builds(Conversation, TURNS, **COMMON),
    st.builds(Profile, FULL, **COMMON),
)


@given(ANY)
def test_a_signal_is_the_same_after_a_trip_through_json(signal: Signal) -> None:
    again = from_json(json.loads(json.dumps(to_json(signal))))
    assert again == signal and type(again) is type(signal)
    assert again.content_hash() == signal.content_hash()


@given(ANY, ANY)
def test_two_signals_have_one_hash_exactly_when_their_kind_and_content_agree(a: Signal, b: Signal) -> None:
    same = (a.kind, a.content()) == (b.kind, b.content())
    assert (a.content_hash() == b.content_hash()) == same


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(
    st.sampled_from(sorted(KINDS)),
    st.sampled_from(["prompt", "chosen", "text", "score", "messages", "id", "at", "user", "odd"]),
    JSON,
)
def test_whatever_a_field_holds_the_answer_is_a_signal_or_a_signal_error(kind: str, name: str, value: Any) -> None:
    fields = {"comparison": ("prompt", "chosen", "rejected"), "edit": ("prompt", "original", "edited"),
              "rating": ("prompt", "response")}.get(kind, ("text",))  # fmt: skip
    record: dict[str, Any] = {"kind": kind} | dict.fromkeys(fields, "x")
    if kind == "rating":
        record["score"] = 0.5
    if kind == "conversation":
        record = {"kind": kind, "messages": [{"role": "user", "content": "x"}]}
    try:
        made = from_json(record | {name: value})
    except SignalError as e:
        assert str(e) and "\n" not in str(e)
    else:
        assert from_json(to_json(made)) == made


GOOD = {
    "comparison": {"prompt": "a", "chosen": "b", "rejected": "c"},
    "rating": {"prompt": "a", "response": "b", "score": 0.5},
    "edit": {"prompt": "a", "original": "b", "edited": "c"},
    "statement": {"text": "a"},
    "post": {"text": "a"},
    "conversation": {"messages": [{"role": "user", "content": "a"}]},
    "profile": {"text": "a"},
}


@pytest.mark.parametrize(("kind", "field"), [(k, f) for k, fields in GOOD.items() for f in fields])
def test_every_missing_field_is_named(kind: str, field: str) -> None:
    record = {"kind": kind, **GOOD[kind]}
    assert from_json(record).kind == kind
    del record[field]
    with pytest.raises(SignalError, match=field) as e:
        from_json(record)
    assert e.value.field == field


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"kind": "opinion"}, "kind"),
        ({"kind": ["statement"]}, "kind"),
        ({"mood": "good"}, "mood"),
        ({"text": ""}, "text"),
        ({"text": " \n"}, "text"),
        ({"text": 3}, "text"),
        ({"text": None}, "text"),
        ({"text": "a\0b"}, "text"),
        ({"text": "a\ud800b"}, "text"),
        ({"text": "x" * (MAX_TEXT + 1)}, "text"),
        ({"user": ""}, "user"),
        ({"user": "a\nb"}, "user"),
        ({"user": "a\x1b[31mb"}, "user"),
        ({"user": "x" * 201}, "user"),
        ({"source": "a\u2028b"}, "source"),
        ({"id": 7}, "id"),
        ({"at": "yesterday"}, "at"),
        ({"at": "2026-01-01T00:00:00"}, "at"),
        ({"at": "0001-01-01T00:00:00+23:00"}, "at"),
        ({"at": "9999-12-31T23:59:59-01:00"}, "at"),
        ({"at": 1700000000}, "at"),
    ],
)
def test_a_field_that_is_wrong_is_named(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(SignalError) as e:
        from_json({"kind": "statement", "text": "a"} | changes)
    assert e.value.field == field


@pytest.mark.parametrize("score", [-0.01, 1.01, float("nan"), float("inf"), 10**400, True, "1", None])
def test_a_score_outside_0_to_1_or_not_a_number_is_refused(score: Any) -> None:
    with pytest.raises(SignalError) as e:
        from_json({"kind": "rating", "prompt": "a", "response": "b", "score": score})
    assert e.value.field == "score"


@pytest.mark.parametrize(
    "messages",
    [
        [],
        None,
        "hello",
        {"role": "user", "content": "a"},
        [{"role": "user"}],
        [{"role": "user", "content": "a", "name": "x"}],
        [{"role": "robot", "content": "a"}],
        [{"role": 1, "content": "a"}],
        [{"role": ["user"], "content": "a"}],
        [{"role": "user", "content": 3}],
        [{"role": "assistant", "content": "a"}],
        [{"role": "user", "content": "  "}],
        ["hello"],
    ],
)
def test_messages_that_are_no_conversation_are_refused(messages: Any) -> None:
    with pytest.raises(SignalError) as e:
        from_json({"kind": "conversation", "messages": messages})
    assert e.value.field == "messages"


@pytest.mark.parametrize("value", [None, 3, "x", [], [{}], {}])
def test_what_is_no_record_is_refused(value: Any) -> None:
    with pytest.raises(SignalError):
        from_json(value)


def test_times_are_kept_in_utc_and_ids_sort_by_when_they_were_made() -> None:
    assert Statement("a", at="2026-03-01T12:00:00+02:00").at == "2026-03-01T10:00:00.000Z"
    ids = [Statement("a").id for _ in range(200)]
    assert ids == sorted(ids) and len(set(ids)) == 200


def test_a_million_characters_are_accepted() -> None:
    assert len(Statement("é" * 1_000_000).text) == 1_000_000


def test_defaults_fill_only_what_is_missing() -> None:
    assert from_json({"kind": "post", "text": "a"}, source="s").source == "s"
    assert from_json({"kind": "post", "text": "a", "source": "own"}, source="s").source == "own"


def test_minus_zero_is_the_same_rating_as_zero() -> None:
    assert Rating("a", "b", -0.0).content_hash() == Rating("a", "b", 0).content_hash()
