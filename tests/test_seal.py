"""Nothing becomes Sealed but what the guard has seen, and nothing is in it but the contract's system message and what
the person typed."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import pickle
import typing
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast
from unittest import mock

import pytest

from popi_edge.egress import EgressLog
from popi_edge.errors import ConfigError, GeneratorError, GuardBlocked, PopiError
from popi_edge.generators import deliver
from popi_edge.generators.local import LocalGenerator
from popi_edge.generators.openai import OpenAIGenerator
from popi_edge.guard import Verdict, verdict
from popi_edge.prompts import generate_system
from popi_edge.seal import NotSealed, Sealed, require_sealed, seal
from popi_edge.signals import Message
from popi_edge.store import Store
from popi_edge.vocabulary import Lexicon
from tests import hostile_server as hostile
from tests.hostile_server import HostileServer

LEXICON = Lexicon.load()
GOOD = "Prefers short, direct answers."
TYPED = [("user", "My PIN is 1234, mail ann@example.org")]


def sealed(summary: str | None = GOOD) -> Sealed:
    return seal(summary, TYPED, system=generate_system(summary), verdict=verdict(summary or "", [], LEXICON))


def test_it_holds_the_contracts_system_message_and_what_was_typed_as_it_was() -> None:
    made = sealed()
    assert require_sealed(made) is made
    assert made.summary == GOOD
    assert made.messages == (Message("system", generate_system(GOOD)), Message(*TYPED[0]))
    assert "1234" not in repr(made)


@pytest.mark.parametrize("summary", [None, ""])
def test_without_a_summary_it_is_the_bare_prompt(summary: str | None) -> None:
    made = sealed(summary)
    assert made.summary is None and made.messages[0].content == generate_system(None)
    require_sealed(made)


def test_a_conversation_goes_in_order() -> None:
    turns = [Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "Again?")]
    made = seal(None, turns, system=generate_system(None), verdict=verdict("", [], LEXICON))
    assert list(made.messages[1:]) == turns


def test_a_summary_that_the_guard_blocks_is_not_sealed_and_every_finding_is_told() -> None:
    text = "Call 555 now, Rosemary."
    found = verdict(text, [], LEXICON)
    with pytest.raises(GuardBlocked, match="555") as error:
        seal(text, TYPED, system=generate_system(text), verdict=found)
    assert error.value.findings == found.findings and len(found.findings) >= 2


def test_a_verdict_on_another_text_or_by_another_hand_seals_nothing() -> None:
    other, system = verdict("Likes tea.", [], LEXICON), generate_system(GOOD)
    tampered = verdict("Call 5.", [], LEXICON)
    object.__setattr__(tampered, "ok", True)
    object.__setattr__(tampered, "text", GOOD)
    for bad in (other, tampered, Verdict(True, (), GOOD), copy.copy(verdict(GOOD, [], LEXICON)), None, True):
        with pytest.raises(GuardBlocked, match="not the guard's own"):
            seal(GOOD, TYPED, system=system, verdict=bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("more", [" And my name is Ann.", ""])
def test_a_system_message_that_says_anything_else_is_refused(more: str) -> None:
    system = generate_system(GOOD) + more if more else generate_system(None)
    with pytest.raises(GuardBlocked, match="prompt contract"):
        seal(GOOD, TYPED, system=system, verdict=verdict(GOOD, [], LEXICON))
    with pytest.raises(GuardBlocked, match="prompt contract"):
        seal(None, TYPED, system=generate_system(GOOD), verdict=verdict("", [], LEXICON))


@pytest.mark.parametrize("messages", [[], [("system", "x"), ("user", "y")], [("assistant", "x")]])
def test_messages_that_are_no_conversation_of_the_person_are_refused(messages: list[tuple[str, str]]) -> None:
    with pytest.raises(ConfigError, match="conversation"):
        seal(None, messages, system=generate_system(None), verdict=verdict("", [], LEXICON))


# ways around the guard --------------------------------------------------------------------------------------
def with_fields(thing: Any, summary: Any, messages: Any) -> Any:
    object.__setattr__(thing, "summary", summary)
    object.__setattr__(thing, "messages", messages)
    return thing


def changed(field: str, value: Any) -> Any:
    made = sealed()
    object.__setattr__(made, field, value)
    return made


def changed_inside(name: str, value: Any) -> Any:
    made = sealed()
    object.__setattr__(made.messages[1], name, value)
    return made


class Alike:
    """Looks like one: the same attributes, and claims the class."""

    summary = GOOD
    messages = (Message("user", "x"),)
    __class__ = Sealed  # type: ignore[assignment]


class Liar(str):
    """Text that calls itself equal to all other text, and encodes as what it was told to."""

    says = b""

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = str.__hash__

    def encode(self, *_: Any) -> bytes:
        return self.says


def liar(text: str, says: str) -> Liar:
    made = Liar(text)
    made.says = says.encode()
    return made


def emptied() -> Any:
    made = sealed()
    object.__delattr__(made, "messages")
    return made


def by_class_assignment() -> Any:
    class Empty:
        __slots__ = ("__weakref__", "messages", "summary")

    thing: Any = Empty()
    thing.__class__ = Sealed
    return thing


def without_its_check() -> Any:
    check = Sealed.__post_init__
    try:
        Sealed.__post_init__ = lambda self: None  # type: ignore[method-assign]
        return Sealed(GOOD, (Message("user", "x"),))
    finally:
        Sealed.__post_init__ = check  # type: ignore[method-assign]


def at_a_real_ones_address() -> Any:
    kept = []
    for _ in range(1000):
        made = sealed()
        content, place = (made.summary, made.messages), id(made)
        del made
        forged = object.__new__(Sealed)
        kept.append(forged)
        if id(forged) == place:
            return with_fields(forged, *content)
    raise AssertionError("no address was used again")


def on_a_real_one(method: str, *args: Any) -> Any:
    made: Any = sealed()
    with contextlib.suppress(NotSealed):
        getattr(made, method)(*args)
    return made


def seal_with(found: Any, summary: Any = GOOD, typed: Any = TYPED, system: str | None = None) -> Any:
    return seal(summary, typed, system=generate_system(summary) if system is None else system, verdict=found)


def tampered_verdict(**fields: Any) -> Any:
    found = verdict("Call 5.", [], LEXICON)
    for name, value in fields.items():
        object.__setattr__(found, name, value)
    return found


GUARD = "not the guard's own"
MAKING: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "the constructor": (lambda: Sealed(GOOD, (Message("user", "x"),)), NotSealed, "only popi_edge.seal"),
    "the class of a real one": (lambda: type(sealed())(GOOD, ()), NotSealed, "only popi_edge.seal"),
    "dataclasses.replace": (lambda: dataclasses.replace(sealed(), summary="x"), NotSealed, "only popi_edge.seal"),
    "dataclasses.replace of nothing": (lambda: dataclasses.replace(sealed()), NotSealed, "only popi_edge.seal"),
    "copy": (lambda: copy.copy(sealed()), NotSealed, "neither copied nor pickled"),
    "deepcopy": (lambda: copy.deepcopy(sealed()), NotSealed, "neither copied nor pickled"),
    "deepcopy in a list": (lambda: copy.deepcopy([sealed()]), NotSealed, "neither copied nor pickled"),
    "pickle": (lambda: pickle.loads(pickle.dumps(sealed())), NotSealed, "neither copied nor pickled"),
    "a subclass": (lambda: type("Sub", (Sealed,), {}), NotSealed, "no subclasses"),
    "assigning the class": (by_class_assignment, TypeError, "__class__ assignment"),
    "a verdict made by hand": (lambda: seal_with(Verdict(True, (), GOOD)), GuardBlocked, GUARD),
    "a copied verdict": (lambda: seal_with(copy.copy(verdict(GOOD, [], LEXICON))), GuardBlocked, GUARD),
    "a verdict on another text": (lambda: seal_with(verdict("Likes tea.", [], LEXICON)), GuardBlocked, GUARD),
    "a changed verdict": (lambda: seal_with(tampered_verdict(ok=True, findings=(), text=GOOD)), GuardBlocked, GUARD),
    "a verdict that blocked": (lambda: seal_with(tampered_verdict(), "Call 5."), GuardBlocked, "Call|5"),
    "something true": (lambda: seal_with(True), GuardBlocked, GUARD),
    "a summary that equals anything": (
        lambda: seal_with(verdict(GOOD, [], LEXICON), Liar("Call 5.")), GuardBlocked, "plain text"),
    "a verdict whose text equals anything": (
        lambda: seal_with(verdict(Liar(GOOD), [], LEXICON), "Call 5."), GuardBlocked, GUARD),
    "another system message": (
        lambda: seal_with(verdict(GOOD, [], LEXICON), system="I am Ann."), GuardBlocked, "prompt contract"),
    "a system message that equals anything": (
        lambda: seal_with(verdict(GOOD, [], LEXICON), system=Liar("I am Ann.")), GuardBlocked, "plain text"),
    "a system message among those typed": (
        lambda: seal_with(verdict(GOOD, [], LEXICON), typed=[("system", "I am Ann."), ("user", "x")]),
        ConfigError, "conversation"),
    "a role that equals any other": (
        lambda: seal_with(verdict(GOOD, [], LEXICON), typed=[(Liar("system"), "I am Ann."), ("user", "x")]),
        ConfigError, "conversation"),
}  # fmt: skip
"""Ways to have one made: what is tried, what it raises."""

TAKING: dict[str, Callable[[], Any]] = {
    "object.__new__": lambda: object.__new__(Sealed),
    "object.__new__ filled from a real one": lambda: with_fields(
        object.__new__(Sealed), sealed().summary, sealed().messages),
    "the constructor without its check": without_its_check,
    "the address of one that is gone": at_a_real_ones_address,
    "another class of the same shape": Alike,
    "a mock of the class": lambda: mock.Mock(spec=Sealed, summary=GOOD, messages=(Message("user", "x"),)),
    "a weak proxy of a real one": lambda: weakref.proxy(REAL),
    "a changed summary": lambda: changed("summary", "x"),
    "a removed summary": lambda: changed("summary", None),
    "changed messages": lambda: changed("messages", (Message("user", "x"),)),
    "one message more": lambda: changed("messages", (*sealed().messages, Message("user", "x"))),
    "the same messages in a list": lambda: changed("messages", list(sealed().messages)),
    "messages of another type": lambda: changed("messages", ("x",)),
    "a message changed inside": lambda: changed_inside("content", "my secret"),
    "a role changed inside": lambda: changed_inside("role", "system"),
    "a text that encodes as what was there": lambda: changed_inside("content", liar("my secret", TYPED[0][1])),
    "a removed field": emptied,
    "__init__ on a real one": lambda: on_a_real_one("__init__", "x", ()),
    "__setstate__ on a real one": lambda: on_a_real_one("__setstate__", ["x", ()]),
    "a plain dict": lambda: {"summary": None, "messages": []},
    "text": lambda: "Explain RAID",
    "nothing": lambda: None,
}  # fmt: skip
"""Ways to have something taken that the guard did not make: here it is there, and no generator takes it."""

REAL = sealed()
CLOUD = OpenAIGenerator(name="cloud", url="https://api.example.org/v1", model="m")
GENERATORS = (CLOUD, LocalGenerator(cast(Any, None)))


@pytest.mark.parametrize("way", MAKING)
def test_no_other_way_makes_one(way: str) -> None:
    make, error, words = MAKING[way]
    with pytest.raises(error, match=words):
        make()


@pytest.mark.parametrize("way", TAKING)
def test_nothing_else_is_taken_by_any_generator(way: str) -> None:
    made = TAKING[way]()
    with pytest.raises(NotSealed):
        require_sealed(made)
    for generator in GENERATORS:
        with pytest.raises(GeneratorError, match="takes only what the guard has sealed"):
            generator.prepare(made)


def test_the_ways_are_many_and_the_real_one_is_taken() -> None:
    """What the two tests above refuse is refused for what it is: the real one passes all the same checks."""
    assert len(MAKING) >= 10 and len(TAKING) >= 10
    assert seal_with(verdict(GOOD, [], LEXICON)).summary == GOOD
    for generator in GENERATORS:
        assert b"My PIN is 1234" in generator.prepare(require_sealed(REAL)).body


@pytest.mark.parametrize("generator", GENERATORS)
def test_to_the_type_checker_too_a_generator_takes_sealed_alone(generator: Any) -> None:
    hints = typing.get_type_hints(generator.prepare, localns={"Sealed": Sealed})
    assert hints["sealed"] is Sealed


def test_a_request_that_was_not_prepared_from_something_sealed_is_not_delivered(tmp_path: Path) -> None:
    with HostileServer(hostile.ok("yes")) as server, Store.open(tmp_path / "popi.db") as store:
        cloud, log = OpenAIGenerator(name="cloud", url=server.url, model="m"), EgressLog(store)
        good = cloud.prepare(REAL, stream=True)
        for bad in (
            dataclasses.replace(good, sealed=None),
            dataclasses.replace(good, sealed=TAKING["object.__new__ filled from a real one"]()),
            dataclasses.replace(good, body=good.body.replace(b"1234", b"5678")),
            dataclasses.replace(good, destination=f"{server.url}/elsewhere"),
            dataclasses.replace(good, headers={**good.headers, "X-More": "my secret"}),
            OpenAIGenerator(name="cloud", url=server.url, model="other").prepare(REAL),
        ):
            with pytest.raises(GeneratorError, match="sealed"):
                list(deliver(cloud, bad, log, user="me"))
        assert server.received == [] and log.records() == []
        list(deliver(cloud, good, log, user="me"))
        assert [r.body for r in server.received] == [good.body]


def test_a_refusal_is_both_a_popi_error_and_a_type_error() -> None:
    with pytest.raises(PopiError):
        require_sealed("x")
    with pytest.raises(TypeError):
        Sealed(None, ())


def test_plain_assignment_is_refused() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        sealed().summary = "x"  # type: ignore[misc]


def test_sealing_leaves_nothing_behind() -> None:
    from popi_edge import guard
    from popi_edge import seal as module

    before = len(module._made), len(guard._given)
    for _ in range(50):
        require_sealed(sealed())
    assert (len(module._made), len(guard._given)) <= (before[0] + 1, before[1] + 1)
