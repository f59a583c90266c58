"""What a bundle writes when asked, not only what it prefers: sampled replies, judged by probes that no training saw.

    python -m popi_training.replies [--bundles NAME=PATH ...] [--replies N] [--seed S] [--set SET] [--engine E]
        [--out FILE.json] [--listing FILE.jsonl]

Users want one pole of a dimension that ``probes`` can tell, N in all; two opposite ones ask the same held-out prompt.
Each bundle's generate role answers under

``none``       the bare prompt
``own``        the bundle's own summary of the user's signals (none, where it stays silent)
``oracle``     the sentence of somebody who knows what the user wants
``opposite``   the sentence of the opposite pole

with the runtime's own local generator and its rule against repeating, at temperature 0.7, at most 96 tokens. One seed a
prompt is shared by contexts and bundles, so that the same context gives the same reply. A *win*: of two replies to one
prompt the first leans more towards the wanted pole (ties ½); intervals are over prompts. *Nats*: −log p a token of a
reply under the untouched base and the bare prompt; where it rises far above the base's own, the writing has come apart.

With --out every finished summary and reply is kept beside it, in FILE.units, and a run that was cut off goes on. It
does NOT say whether a reply is good, or true: a probe counts markers.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from popi_edge import config, prompts
from popi_edge.cli.common import at_least, launch
from popi_edge.errors import ConfigError, PopiError
from popi_edge.generators import IN_PROCESS, Request
from popi_edge.generators.local import NO_REPEAT, LocalGenerator
from popi_training import corpus as corpora
from popi_training import markers, probes, testsets
from popi_training.cli import Meter
from popi_training.corpus import Pair
from popi_training.evaluate import run
from popi_training.evaluate.data import Dataset, Row
from popi_training.evaluate.journal import Journal, write_json, write_whole
from popi_training.evaluate.metrics import interval, mean, wins
from popi_training.evaluate.report import aligned, bounds, number
from popi_training.users import Material, Mix, Want, draw
from popi_training.warm import FOLLOW, read_follow

CONTEXTS = ("none", "own", "oracle", "opposite")
COMPARED = (("own", "none"), ("oracle", "none"), ("own", "opposite"))
MOST_TOKENS = 96
TEMPERATURE = 0.7
NAME = re.compile(r"\w[\w.+-]*")


@dataclass(frozen=True)
class Item:
    """Somebody who wants one pole (``row``: their signals, the prompt, both oracles) and the seed of the replies."""

    row: Row
    want: Want
    seed: int


def items(count: int, seed: int, part: str = "prompts", folder: Path = corpora.FOLDER) -> list[Item]:
    """``count`` items of a test set, dimensions in turn, both poles of a pair one after the other; a pair comes again
    (with other people, under another seed) when all of its dimension have come.

    Raises ConfigError for a set that does not exist or has no dimension that a probe tells.
    """
    material, mix, _ = testsets.source(folder, part)
    follow = read_follow(folder / FOLLOW)
    rng = random.Random(f"replies:{part}:{seed}")
    told = [d for d in material.dimensions if d in probes.DIMENSIONS]
    if not told:
        raise ConfigError(f"no probe tells a dimension of the set {part}")
    rng.shuffle(told)
    pairs = {d: rng.sample(material.pairs[d], len(material.pairs[d])) for d in told}
    out: list[Item] = []
    for k in range((count + 1) // 2):
        dimension, turn = told[k % len(told)], k // len(told)
        round_, place = divmod(turn, len(pairs[dimension]))
        out += _couple(f"replies:{part}:{seed}:{k}", pairs[dimension][place], round_, seed, material, mix, follow)
    return out[:count]


def _couple(
    name: str, pair: Pair, round_: int, seed: int, material: Material, mix: Mix, follow: dict[str, float]
) -> list[Item]:
    """One who wants either pole of a pair, on its prompt."""
    digest = hashlib.sha256(f"replies:{seed}:{pair.id}:{round_}".encode()).digest()
    out = []
    for pole, other in (sorted(pair.replies), sorted(pair.replies, reverse=True)):
        want = Want(pair.dimension, pole)
        user = draw(f"{name}:{pole}", material, mix, wants=[want], avoid=[pair.prompt])
        row = Row(
            user.id, pole, material.corpus.prompts[pair.prompt], pair.replies[pole], pair.replies[other], user.signals,
            None, testsets.oracle([want], material, follow),
            testsets.oracle([material.opposite(want)], material, follow), block=name,
        )  # fmt: skip
        out.append(Item(row, want, int.from_bytes(digest[:4], "big")))
    return out


def dataset(asked: Sequence[Item], part: str) -> Dataset:
    """The items' rows with a hash of all that a reply depends on."""
    blob = json.dumps([
        [i.row.id, i.row.prompt, i.row.oracle, i.row.opposite_oracle, i.seed, [s.content_hash() for s in i.row.signals]]
        for i in asked
    ])  # fmt: skip
    digest = hashlib.sha256(blob.encode()).hexdigest()
    return Dataset(tuple(i.row for i in asked), {}, digest, f"replies:{part}", ("", ""))


def settings(pair: run.Pair, asked: Sequence[Item], part: str, seed: int) -> dict[str, Any]:
    """What must agree for a run to go on."""
    sampling = f"temperature {TEMPERATURE}, {MOST_TOKENS} tokens, no repeat of {NO_REPEAT}"
    return pair.settings(dataset(asked, part), seed) | {"sampling": sampling}


def request(prompt: str, summary: str) -> Request:
    """What the local generator is given: the prompt under a summary, or bare where that is empty.

    Nothing leaves the process, so nothing is sealed: a summary is judged as it is, blocked by the guard or not.
    """
    messages = [("system", prompts.generate_system(summary)), ("user", prompt)]
    return Request(IN_PROCESS, {}, json.dumps([{"role": r, "content": t} for r, t in messages]).encode())


def reply(pair: run.Pair, prompt: str, summary: str, seed: int) -> dict[str, Any]:
    """One sampled reply: its ``text``, ``tokens``, whether it was ``truncated``, and ``nats`` a token under the
    untouched base, the end token included. Raises EngineError."""
    generator = LocalGenerator(
        pair.engine, pair.generate_adapter, max_tokens=MOST_TOKENS, temperature=TEMPERATURE, seed=seed,
        no_repeat=NO_REPEAT,
    )  # fmt: skip
    made, tokenizer = generator.send(request(prompt, summary)), pair.engine.tokenizer
    ids = prompts.reply_ids(tokenizer, made.text)
    (likely,) = pair.engine.score(prompts.generate_ids(tokenizer, prompt), [ids])
    return {"text": made.text, "tokens": pair.engine.count(made.text), "truncated": made.finish == "length",
            "nats": -likely.total / len(ids)}  # fmt: skip


def sampled(asked: Sequence[Item], pair: run.Pair, journal: Journal, advance: run.Advance) -> list[dict[str, Any]]:
    """One line an item: who asks what, the contexts, and the reply under each with its score.

    Every finished unit is in the journal before the next is begun. Raises EngineError.
    """
    summaries = run.summarize_all([i.row for i in asked], pair, journal, profile=False, advance=advance)
    told = [
        {"none": "", "own": s["text"], "oracle": i.row.oracle, "opposite": i.row.opposite_oracle}
        for i, s in zip(asked, summaries, strict=True)
    ]
    keys = [{c: _key(i, texts[c]) for c in CONTEXTS} for i, texts in zip(asked, told, strict=True)]
    jobs = {keys[k][c]: (told[k][c], i) for k, i in enumerate(asked) for c in CONTEXTS}
    todo = sorted((text, i.row.prompt, i.seed, key) for key, (text, i) in jobs.items() if key not in journal)
    for text, prompt, seed, key in todo:  # those that begin alike one after the other
        journal.add(key, reply(pair, prompt, text, seed))
        advance("replies", 1, len(todo))
    return [
        {
            "user": i.row.id, "dimension": i.want.dimension, "pole": i.want.pole, "prompt": i.row.prompt,
            "summary": texts["own"], "oracle": texts["oracle"], "opposite": texts["opposite"],
            "replies": {c: _scored(journal[mine[c]], i.want) for c in CONTEXTS},
        }
        for i, texts, mine in zip(asked, told, keys, strict=True)
    ]  # fmt: skip


def _key(item: Item, summary: str) -> str:
    content = json.dumps([item.row.prompt, summary, item.seed])
    return f"reply:{hashlib.sha256(content.encode()).hexdigest()}"


def _scored(made: Mapping[str, Any], want: Want) -> dict[str, Any]:
    return {**made, "score": probes.score(made["text"], want.dimension, want.pole) + 0.0}  # no -0.0


def figures(lines: Sequence[Mapping[str, Any]], seed: int) -> dict[str, Any]:
    """``wins`` by comparison, over ``all`` and by dimension: rate, 95% interval over prompts (None below two), pairs.
    ``replies`` by context: mean words, tokens and nats, the share truncated. ``silent``: users without a summary."""
    dimensions = sorted({str(x["dimension"]) for x in lines})
    groups = {"all": lines, **{d: [x for x in lines if x["dimension"] == d] for d in dimensions}}
    return {
        "wins": {
            f"{a}_over_{b}": {name: _rate(some, a, b, seed) for name, some in groups.items()} for a, b in COMPARED
        },
        "replies": {c: _about([x["replies"][c] for x in lines]) for c in CONTEXTS},
        "silent": mean(np.array([not x["summary"] for x in lines], np.float64)),
        "users": len(lines),
        "prompts": len({x["prompt"] for x in lines}),
    }


def _rate(lines: Sequence[Mapping[str, Any]], a: str, b: str, seed: int) -> dict[str, Any]:
    first, second = (np.array([x["replies"][c]["score"] for x in lines], np.float64) for c in (a, b))
    won = wins(first, second)
    low, high = interval(won, [x["prompt"] for x in lines], seed=seed) or (None, None)
    return {"rate": mean(won), "low": low, "high": high, "pairs": len(lines)}


def _about(made: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    return {
        "words": mean(np.array([markers.length(r["text"]) for r in made], np.float64)),
        "tokens": mean(np.array([r["tokens"] for r in made], np.float64)),
        "truncated": mean(np.array([r["truncated"] for r in made], np.float64)),
        "nats": mean(np.array([r["nats"] for r in made], np.float64)),
    }


def text(result: Mapping[str, Any]) -> str:
    """The result for people: a table of all bundles, and one of dimensions for each."""
    compared = [f"{a}_over_{b}" for a, b in COMPARED]

    def cells(won: Mapping[str, Any], name: str) -> list[str]:
        some = [won[c][name] for c in compared]
        return [f"{number(w['rate'], 2)} ({bounds(w['low'], w['high'], 2)})" for w in some]

    heads = [c.replace("_", " ") for c in compared]
    rows = [["bundle", *heads, "words (own)", "truncated (own)", "nats (own)"]]
    for name, found in result["conditions"].items():
        own = found["replies"]["own"]
        about = [number(own["words"], 0), number(own["truncated"], 2), number(own["nats"], 2)]
        rows.append([name, *cells(found["wins"], "all"), *about])
    parts = [aligned(rows)]
    for name, found in result["conditions"].items():
        by = [d for d in found["wins"][compared[0]] if d != "all"]
        parts += ["", f"{name}: {found['model']}, {found['users']} users, {found['prompts']} prompts"]
        parts += [aligned([["dimension", *heads], *([d, *cells(found["wins"], d)] for d in by)])]
    return "\n".join(parts)


def named(words: Sequence[str]) -> dict[str, str]:
    """``NAME=PATH`` or ``NAME`` alone → bundle by name. Raises ConfigError for a name that is none or comes twice."""
    out: dict[str, str] = {}
    for word in words:
        name, sign, path = word.partition("=")
        if not NAME.fullmatch(name) or (sign and not path):
            raise ConfigError(f"--bundles: {word!r:.80} is not NAME=PATH, with a name of letters, digits and . + - _")
        if name in out:
            raise ConfigError(f"--bundles: there are two called {name}")
        out[name] = path or name
    return out


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundles", nargs="+", default=["popi-smol"], metavar="NAME=PATH")
    parser.add_argument("--replies", type=at_least(1), default=300, help="under each context")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", default="prompts", help="of popi_training.testsets")
    parser.add_argument("--engine", choices=["onnx", "llama_cpp"])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--listing", type=Path)
    return parser.parse_args()


def of_bundle(
    bundle: str, asked: Sequence[Item], options: argparse.Namespace, folder: Path | None
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A bundle's figures and its lines."""
    pair = run.open_pair(bundle, options.engine, config.load())
    known = settings(pair, asked, options.set, options.seed)
    with closing(pair.engine), closing(Meter()) as meter, Journal(folder, known) as journal:
        lines = sampled(asked, pair, journal, meter)
    about = {"model": pair.model, "identity": pair.identity, "engine": pair.engine.name,
             "adapter": pair.generate_adapter is not None}  # fmt: skip
    return about | figures(lines, options.seed), lines


def main() -> None:
    options = _arguments()
    try:
        bundles, asked = named(options.bundles), items(options.replies, options.seed, options.set)
        conditions, listing = {}, []
        for name, bundle in bundles.items():
            folder = options.out.with_suffix(".units") / name if options.out else None
            conditions[name], lines = of_bundle(bundle, asked, options, folder)
            listing += [{"bundle": name, **x} for x in lines]
        result = {
            "conditions": conditions, "seed": options.seed, "set": options.set, "temperature": TEMPERATURE,
            "max_tokens": MOST_TOKENS, "no_repeat": NO_REPEAT,
        }  # fmt: skip
        if options.listing:
            write_whole(options.listing, "".join(json.dumps(x, ensure_ascii=False) + "\n" for x in listing))
        if options.out:
            write_json(options.out, result)
    except (PopiError, OSError) as e:
        sys.exit(f"replies: {e}")
    print(text(result))


if __name__ == "__main__":
    launch(main)
