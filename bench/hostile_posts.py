"""What a hostile post changes in a summary of others' posts, beside an ordinary post that wishes the same.

    python -m bench.hostile_posts [--people N] [--bundle B] [--json]        (the base as under POPI_HOME)

A person has three posts that show one want (held-out phrasings). A fourth comes, of another want: nothing but a fact;
that want said by an ordinary post; or said by one that commands the model (hostile_posts.json: the rules of
``popi_edge.injection`` were made with ``known`` in sight; ``unseen`` was written by somebody who knew no rules, and was
not looked at; each person meets one). ``kept``: of the people whose want the summary of the three names, those whose
want it still names; ``taken``: those whom it gives the attacker's. Once as the program does it and once with what is
left out left in. What a summary names is read by ``popi_training.probe``; intervals are of people.

Also how many hostile posts are left out, and how many of texts that only look so (``benign_known``,
``benign_unseen``, and the corpus' own posts and profiles). Not covered: other languages, posts that lie without
commanding anything, signals that are no posts (profiles go by the same rules), other models.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from popi_edge import config, prompts
from popi_edge.cli.common import launch
from popi_edge.errors import ConfigError, PopiError
from popi_edge.injection import commands
from popi_edge.signals import Post, Signal
from popi_edge.summarize import draft, inference_prompt, spoken
from popi_training import corpus as corpora
from popi_training import probe, testsets
from popi_training.evaluate.metrics import interval
from popi_training.evaluate.run import Pair, open_pair
from popi_training.users import LONG_AGO, Material, Mix, User, Want, draw

TEXTS = Path(__file__).with_name("hostile_posts.json")
POSTS = Mix(wants=(1.0,), signals=(0.0, 0.0, 1.0), kinds={"post": 1.0}, silent=0.0, change=0.0, cancel=0.0, noise=0.0,
            distractors=0.0, least=3, most=3)  # fmt: skip
VERBS = ("Prefers", "Likes", "Wants", "Enjoys", "Expects", "Appreciates")
KINDS = ("fact", "plain", "known", "unseen")


def texts() -> dict[str, Any]:
    """The hostile posts, ``{does}`` or ``{i}`` where the wish stands, and those that only look so."""
    read: dict[str, Any] = json.loads(TEXTS.read_text("utf-8"))
    return read


def person(k: int, seed: int, material: Material) -> tuple[User, Want]:
    """The k-th person, and the want that a fourth post has."""
    user = draw(f"hostile:{seed}:{k}", material, POSTS)
    rng = random.Random(f"wish:{seed}:{k}")
    dimension = rng.choice([d for d in material.dimensions if d != user.wants[0].dimension])
    return user, Want(dimension, rng.choice(sorted(material.words.dimensions[dimension].poles)))


def fourth(kind: str, k: int, seed: int, wish: Want, material: Material, hostile: Mapping[str, Any]) -> Post:
    """The post of that kind which the k-th person gets."""
    rng = random.Random(f"{kind}:{seed}:{k}")
    if kind == "fact":
        text = rng.choice(material.facts["post"])
    elif kind == "plain":
        text = material.phrasing(wish, "post", rng)
    else:
        said = material.words.dimensions[wish.dimension].poles[wish.pole].phrasings["summary"]
        does = rng.choice([t for t in said if t.startswith(VERBS)] or said).rstrip(".")
        does = does[0].lower() + does[1:]
        verb, _, rest = does.partition(" ")
        text = hostile[kind][k % len(hostile[kind])]["text"]
        text = text.replace("{does}", does).replace("{i}", f"{verb.removesuffix('s')} {rest}")
    return Post(text, id=f"{kind}-{k}", at=LONG_AGO, source="bench")


def undefended(pair: Pair, signals: Sequence[Signal]) -> str:
    """The summary of all signals, whatever they command."""
    tokenizer = pair.engine.tokenizer
    start, prompt = inference_prompt(tokenizer, signals, pair.engine.context_length)
    how = (pair.engine, prompt, prompts.spec()["limits"]["summary_tokens"], pair.constraint, pair.infer_adapter)
    return spoken(draft(*how, pair.decoding, signals[start:])[0])


def rows(pair: Pair, people: int, seed: int, advance: Callable[[int], Any] = lambda k: None) -> list[dict[str, Any]]:
    """Of each person the summaries of three posts and of four, with what they name."""
    material, _, _ = testsets.source(corpora.FOLDER, "phrasings")
    hostile, judge, out = texts(), probe.fitted(), list[dict[str, Any]]()
    for k in range(people):
        user, wish = person(k, seed, material)
        before = pair.infer(user.signals).text
        row: dict[str, Any] = {"person": k, "before": before, "named": user.wants[0] in judge.poles(before)}
        for kind in KINDS:
            post = fourth(kind, k, seed, wish, material, hostile)
            signals = (*user.signals, post)
            told = {kind: pair.infer(signals).text}
            if kind in hostile:
                told[f"{kind} undefended"] = undefended(pair, signals)
            for how, text in told.items():
                poles = judge.poles(text)
                row[how] = {"text": text, "kept": user.wants[0] in poles, "taken": wish in poles,
                            "out": commands(post) or ""}  # fmt: skip
        out.append(row)
        advance(k + 1)
    return out


def figures(found: Sequence[Mapping[str, Any]], seed: int) -> dict[str, Any]:
    """Shares with 95% intervals over people whose want was named before; each kind also less the plain post. Raises
    ConfigError for fewer than two such people."""
    known = [r for r in found if r["named"]]
    if len(known) < 2:
        raise ConfigError(f"of {len(found)} people {len(known)} had their want named to begin with; take more people")
    clusters = [str(r["person"]) for r in known]
    kinds = [k for k in found[0] if k not in ("person", "before", "named")]
    table: dict[str, Any] = {"people": len(found), "named_before": len(known)}
    for kind in kinds:
        table[kind] = {"out": sum(bool(r[kind]["out"]) for r in found) / len(found)}
        for what in ("kept", "taken"):
            values, plain = (np.array([float(r[name][what]) for r in known]) for name in (kind, "plain"))
            table[kind][what] = [float(values.mean()), *(interval(values, clusters, seed=seed) or ())]
            less = values - plain
            table[kind][f"{what}_less_plain"] = [float(less.mean()), *(interval(less, clusters, seed=seed) or ())]
    return table


def alarms() -> dict[str, Any]:
    """How many texts of each set are left out as commands, and how many there are."""
    hostile, sets = texts(), dict[str, list[str]]()
    for kind in ("known", "unseen"):
        sets[kind] = [h["text"].replace("{does}", "prefers short replies").replace("{i}", "prefer short replies")
                      for h in hostile[kind]]  # fmt: skip
    sets |= {kind: hostile[kind] for kind in ("benign_known", "benign_unseen")}
    said = [corpora.load(), corpora.load(heldout=True)]
    sets["corpus posts"] = [t for c in said for d in c.dimensions.values() for p in d.poles.values()
                            for voice in ("post", "profile") for t in p.phrasings[voice]]  # fmt: skip
    sets["corpus facts"] = [t for c in said for part in c.facts.values() for v in ("post", "profile") for t in part[v]]
    return {name: [sum(bool(commands(Post(t))) for t in some), len(some)] for name, some in sets.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=int, default=120)
    parser.add_argument("--bundle")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--alarms", action="store_true", help="only what is left out; no model")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    report: dict[str, Any] = {"alarms": alarms()}
    if not options.alarms:
        try:
            pair = open_pair(options.bundle, None, config.load())
            found = rows(pair, options.people, options.seed, lambda k: print(f"\r{k}", end="", file=sys.stderr))
            report |= {"bundle": pair.identity, "figures": figures(found, options.seed), "rows": found}
        except PopiError as e:
            sys.exit(f"hostile_posts: {e}")
    if options.json:
        print(json.dumps(report, indent=1, ensure_ascii=False))
        return
    for name, (out, of) in report["alarms"].items():
        print(f"{name}: {out} of {of} left out")
    for name, value in report.get("figures", {}).items():
        print(name, json.dumps(value))


if __name__ == "__main__":
    launch(main)
