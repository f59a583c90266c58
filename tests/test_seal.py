"""Nothing becomes Sealed but what the guard has seen, and nothing is in it but the contract's system message and what
the person typed."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from popi_edge.errors import ConfigError, GuardBlocked, PopiError
from popi_edge.guard import Verdict, verdict
from popi_edge.prompts import generate_system
from popi_edge.seal import NotSealed, Sealed, require_sealed, seal
from popi_edge.signals import Message
from popi_edge.vocabulary import Lexicon

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


def bare_object() -> Any:
    return object.__new__(Sealed)


def filled_object() -> Any:
    made, forged = sealed(), object.__new__(Sealed)
    object.__setattr__(forged, "summary", made.summary)
    object.__setattr__(forged, "messages", made.messages)
    return forged


def changed(field: str, value: Any) -> Any:
    made = sealed()
    object.__setattr__(made, field, value)
    return made


def changed_inside() -> Any:
    made = sealed()
    object.__setattr__(made.messages[0], "content", "my secret")
    return made


class Alike:
    """Looks like one: the same attributes, and claims the class."""

    summary = GOOD
    messages = (Message("user", "x"),)
    __class__ = Sealed  # type: ignore[assignment]


def emptied() -> Any:
    made = sealed()
    object.__delattr__(made, "messages")
    return made


def other_class() -> Any:
    made = Alike()
    return made


def subclass() -> Any:
    return type("Sub", (Sealed,), {})


def by_class_assignment() -> Any:
    class Empty:
        __slots__ = ("__weakref__", "messages", "summary")

    thing: Any = Empty()
    thing.summary, thing.messages = GOOD, (Message("user", "x"),)
    thing.__class__ = Sealed
    return thing


WAYS: dict[str, Callable[[], Any]] = {
    "the constructor": lambda: Sealed(GOOD, (Message("user", "x"),)),
    "the constructor without arguments": lambda: Sealed(),  # type: ignore[call-arg]
    "object.__new__": bare_object,
    "object.__new__ filled from a real one": filled_object,
    "dataclasses.replace": lambda: dataclasses.replace(sealed(), summary="x"),
    "dataclasses.replace of nothing": lambda: dataclasses.replace(sealed()),
    "copy": lambda: copy.copy(sealed()),
    "deepcopy": lambda: copy.deepcopy(sealed()),
    "pickle": lambda: pickle.loads(pickle.dumps(sealed())),
    "a subclass": subclass,
    "another class of the same shape": other_class,
    "assigning the class": by_class_assignment,
    "a changed summary": lambda: changed("summary", "x"),
    "changed messages": lambda: changed("messages", (Message("user", "x"),)),
    "messages of another type": lambda: changed("messages", ("x",)),
    "a message changed inside": changed_inside,
    "a removed field": emptied,
    "__init__ on a real one": lambda: sealed().__init__("x", ()),  # type: ignore[misc]
    "__setstate__ on a real one": lambda: _set_state(),
    "a plain dict": lambda: {"summary": None, "messages": []},
    "nothing": lambda: None,
}


def _set_state() -> Any:
    made: Any = sealed()
    made.__setstate__(["x", ()])
    return made


@pytest.mark.parametrize("way", WAYS)
def test_no_other_way_makes_one_that_is_taken(way: str) -> None:
    try:
        made = WAYS[way]()
    except (NotSealed, TypeError, AttributeError):
        return
    with pytest.raises(NotSealed):
        require_sealed(made)


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
