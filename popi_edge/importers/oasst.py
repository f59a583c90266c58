"""OpenAssistant trees, one a line: ranked replies under one prompt, two by two, and the best conversation.

A prompt with n ranked replies gives n(n−1)/2 comparisons: each better reply over each worse one, the prompt
being the text they answer (not what was said before it). The path goes from the root to a leaf over the
best-ranked reply, or the first where none is ranked. The trees have no users: all goes to ``oasst`` unless
one is given. The rank is the crowd's view of quality, not one person's taste.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Any

from popi_edge.errors import SignalError
from popi_edge.importers.jsonl import Item, LineError, Record, Skipped
from popi_edge.signals import Comparison, Conversation, Message

ROLES = {"prompter": "user", "assistant": "assistant"}


def _node(value: Any, where: str) -> dict[str, Any]:
    """One message of the tree with its fields checked; ``replies`` still raw. Raises SignalError."""
    if not isinstance(value, Mapping):
        raise SignalError(f"{where}: not a JSON object", field=where)
    text, role, rank = value.get("text"), value.get("role"), value.get("rank")
    replies = [] if value.get("replies") is None else value["replies"]
    if not isinstance(text, str):
        raise SignalError(f"{where}: text must be text", field=f"{where}.text")
    if not isinstance(role, str) or role not in ROLES:
        raise SignalError(f"{where}: role must be prompter or assistant", field=f"{where}.role")
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int)):
        raise SignalError(f"{where}: rank must be a whole number", field=f"{where}.rank")
    if not isinstance(replies, list):
        raise SignalError(f"{where}: replies must be a list", field=f"{where}.replies")
    return {"text": text, "role": role, "rank": rank, "replies": replies, "where": where}


def _replies(node: dict[str, Any]) -> list[dict[str, Any]]:
    """The replies to a message that were not deleted, the best-ranked first, unranked ones last."""
    found = [_node(reply, f"{node['where']}.replies[{i}]") for i, reply in enumerate(node["replies"])]
    kept = [r for r, raw in zip(found, node["replies"], strict=True) if raw.get("deleted") is not True]
    return sorted(kept, key=lambda r: (r["rank"] is None, r["rank"] or 0))


def _pairs(
    node: dict[str, Any], ranked: list[dict[str, Any]], line: int, who: dict[str, str]
) -> Iterator[Item]:
    for better, worse in combinations([r for r in ranked if r["rank"] is not None], 2):
        if better["rank"] == worse["rank"] or better["text"] == worse["text"]:
            yield Skipped(line, "two replies of the same rank or text")
            continue
        try:
            yield Comparison(prompt=node["text"], chosen=better["text"], rejected=worse["text"], **who)
        except SignalError as e:
            yield LineError(line, f"{worse['where']}: {e}", e.field)


def items(record: Record, user: str | None, source: str | None) -> Iterator[Item]:
    """The signals in one tree. A tree with a message that is wrong is refused whole."""
    line = record.line
    who = {"user": user or "oasst", "source": source or "oasst"}
    found: list[Item] = []
    path: list[Message] = []
    try:
        root = _node(record.value.get("prompt"), "prompt")
        todo = [(root, True)]
        while todo:
            node, best = todo.pop()
            ranked = _replies(node)
            if best:
                path.append(Message(role=ROLES[node["role"]], content=node["text"]))
            if node["role"] == "prompter":
                found.extend(_pairs(node, ranked, line, who))
            todo.extend((reply, best and i == 0) for i, reply in reversed(list(enumerate(ranked))))
        if len(path) >= 2:
            found.append(Conversation(messages=tuple(path), **who))
        else:
            found.append(Skipped(line, "a prompt without a reply"))
    except SignalError as e:
        yield LineError(line, str(e), e.field)
        return
    yield from found
