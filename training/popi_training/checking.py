"""What a recipe would be trained on, how much of it and under which licences, and what is held out: ``popi train
--check``. No model is loaded, and torch is not needed.
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from popi_edge.config import Settings
from popi_edge.errors import ConfigError

if TYPE_CHECKING:
    from popi_training.recipe import Recipe
    from popi_training.warm import Set

SAMPLED = 8
"""Steps whose tokens are counted, about, to say how many a whole run will take."""
UNKNOWN = "not known to popi"
"""What is said of the licence of a corpus or a base that is not the project's own."""


def checked(recipe: Recipe, where: Path, settings: Settings) -> dict[str, Any]:
    """What a recipe would be trained on and what is held out, without loading a model.

    Raises ConfigError where something held out would be trained on, ModelError for another base.
    """
    from popi_training import warm

    if recipe.data.world or recipe.data.file:
        return _people(recipe, where, settings)
    data = warm.load(recipe, where)
    base = _base(recipe, where, settings)
    kinds = {k: v for k, v in recipe.users.kinds.items() if v}
    return {
        "name": recipe.name,
        "method": recipe.method,
        "role": recipe.role,
        "dimensions": data.train.dimensions,
        "prompts": len({p.prompt for pairs in data.train.pairs.values() for p in pairs}),
        "pairs": sum(len(pairs) for pairs in data.train.pairs.values()),
        "phrasings": _phrasings(data.corpus, data.train.dimensions),
        "kinds": sorted(kinds),
        "steps": recipe.train.steps,
        "batch": recipe.train.batch,
        "users": recipe.train.steps * recipe.train.batch,
        "joint": _joint(recipe) if recipe.method == "joint" else None,
        "tokens": _tokens(recipe, where, data, base) if base is not None else None,
        "held_out": {
            "dimensions": sorted(data.splits.dimensions),
            "combinations": len(data.splits.combinations),
            "development_prompts": len(data.splits.dev_prompts),
            "prompts": len(data.heldout.prompts),
            "pairs": len(data.heldout.pairs) + sum(p.dimension in data.splits.dimensions for p in data.corpus.pairs),
            "phrasings": _phrasings(data.heldout, data.heldout.dimensions)
            + _phrasings(data.corpus, [d for d in data.corpus.dimensions if d in data.splits.dimensions]),
        },
        **_begun(recipe, where, base, {"corpus": "CC0-1.0" if not recipe.data.corpus else UNKNOWN}),
    }


def _begun(recipe: Recipe, where: Path, base: Path | None, licences: dict[str, str]) -> dict[str, Any]:
    """The base, the adapters that the roles start from, and the licences of data and base."""
    from popi_edge.models.bases import BASES
    from popi_training import warm

    roles = ("infer", "generate") if recipe.method == "joint" else ("infer",)
    starts = {r: warm.read_start(recipe, where, base, r) for r in roles} if base is not None else {}
    named = {"infer": recipe.lora.start, "generate": recipe.lora.start_generate}
    licence = BASES[recipe.base.name].licence if recipe.base.name in BASES else UNKNOWN
    return {
        "base": {"name": recipe.base.name, "sha256": recipe.base.sha256, "here": base is not None},
        "start": {r: s.sha256 if (s := starts.get(r)) else UNKNOWN for r in roles if named[r]},
        "licences": licences | {"base": licence},
    }


def _people(recipe: Recipe, where: Path, settings: Settings) -> dict[str, Any]:
    """The same of a run that is not made from the corpus: who is trained on, from where, under which licence."""
    from popi_training import filed, popi_micro, warm, world

    t, users = recipe.train, recipe.train.steps * recipe.train.batch
    base = None if recipe.data.world else _base(recipe, where, settings)
    sampled = range(0, t.steps, max(1, t.steps // SAMPLED))
    if recipe.data.world:
        people = [p for step in sampled for p in popi_micro.people(recipe, step)]
        users = sum(popi_micro.count(recipe, step) for step in range(t.steps))
        source: dict[str, Any] = {"from": "the controlled world", "people": users, "licence": "CC0-1.0", "dropped": {}}
        parts = [p for p in world.SEEDS if p not in ("train", "dev")]
        held: dict[str, Any] = {"parts": parts, "prompts": None, "people": None}
        reader: warm.Reader | None = popi_micro.reader()
    else:
        found = filed.load(recipe, where)
        people, loaded = list(found.train), found.loaded
        source = {
            "from": f"{recipe.data.file} ({loaded.format})", "people": len(people), "licence": loaded.licence,
            "signals": sum(len(p.signals) for p in people), "pairs": sum(len(p.targets) for p in people),
            "dropped": {k: v for k, v in loaded.dropped.items() if v}, "sha256": loaded.sha256,
        }  # fmt: skip
        kept = {x.prompt for p in found.dev for x in p.targets}
        held = {"parts": [], "prompts": len(kept), "people": len(found.dev), "corpus": filed.corpus_here(),
                "apart": recipe.data.apart}  # fmt: skip
        reader = warm.Reader.of(base) if base is not None else None
    some = people[:: max(1, len(people) // SAMPLED // t.batch)]
    sizes = [len(reader.prompt(p.signals)) for p in some] if reader is not None else []
    mean = round(sum(sizes) / len(sizes)) if sizes else None
    return {
        "name": recipe.name, "method": recipe.method, "role": recipe.role, "source": source, "held_out": held,
        "steps": t.steps, "batch": t.batch, "users": users, "joint": _joint(recipe),
        "tokens": {"a_user": mean, "longest": max(sizes)} if sizes else None,
        **({} if recipe.data.world else _begun(recipe, where, base, {"data": str(source["licence"])})),
    }  # fmt: skip


def text(found: dict[str, Any]) -> str:
    """What ``checked`` found, for reading."""
    return _people_text(found) if "source" in found else _corpus_text(found)


def _people_text(c: dict[str, Any]) -> str:
    source, held, joint = c["source"], c["held_out"], c["joint"]
    dropped = ", ".join(f"{v} {k}" for k, v in source["dropped"].items())
    kept = ", ".join(held["parts"]) or f"{held['prompts']} prompts for development, {held['people']} people"
    many = f"{source['people']:,} people"
    if "pairs" in source:
        many += f" with {source['signals']:,} signals, {source['pairs']:,} pairs"
    tokens, steady = c["tokens"], c["batch"] * c["steps"] == c["users"]  # a warm start may have more people a step
    spread = f"{c['batch']} a step x {c['steps']} steps = {c['users']:,}" if steady else f"{c['users']:,} in all steps"
    return "\n".join([
        f"{c['name']}: {c['method']} of {c['role']}{_on_base(c) if 'base' in c else ''}",
        f"trained on   {source['from']}: {many} (licence: {source['licence']})",
        *_starts(c.get("start", {})),
        *([f"left out     {dropped}"] if dropped else []),
        f"users        {spread}",
        f"{joint['schedule']:12} {joint['summaries']:,} summaries, {joint['dpo_pairs']:,} pairs for the generator",
        *([f"tokens       {tokens['a_user']:,} of signals a user; longest {tokens['longest']:,}"] if tokens else []),
        f"held out     {kept}",
        _compared(held),
    ])  # fmt: skip


def _compared(held: dict[str, Any]) -> str:
    """What is known of an overlap between what is trained on and what is for measuring."""
    if "apart" not in held:
        return "nothing that is held out is trained on"
    if held["apart"]:
        own = "nothing that our own corpus holds out and " if held["corpus"] else ""
        return f"{own}no evaluation prompt of {held['apart']} is trained on"
    only = "only with what our own corpus holds out" if held["corpus"] else "with nothing"
    return f"no evaluation file was named (data.apart): what is trained on was compared {only}"


def _on_base(c: dict[str, Any]) -> str:
    here = "" if c["base"]["here"] else ", not on this device yet: tokens are not counted"
    return f" on {c['base']['name']} ({c['licences']['base']}{here})"


def _starts(start: dict[str, str]) -> list[str]:
    return [f"starts from  the {role} adapter {found[:12]}" for role, found in start.items()]


def _joint(recipe: Recipe) -> dict[str, Any]:
    """The schedule, and how much a whole run draws, scores and learns from."""
    j, t = recipe.joint, recipe.train
    sampled = (t.steps - j.warm) * t.batch * (1 if j.schedule == "sft" else j.group)
    moves = {"frozen": 0.0, "alternating": 0.5, "sequential": 0.5}.get(j.schedule, 1.0)
    return {"schedule": j.schedule, "summaries": sampled, "dpo_pairs": round(sampled * moves * j.dpo_pairs)}


def _phrasings(corpus: Any, dimensions: Any) -> int:
    poles = [pole for name in dimensions for pole in corpus.dimensions[name].poles.values()]
    return sum(len(texts) for pole in poles for texts in pole.phrasings.values())


def _base(recipe: Recipe, where: Path, settings: Settings) -> Path | None:
    """The base's file or folder, if it is on this device. Raises ModelError for an unknown name or another hash,
    ConfigError for a folder that is missing where there are others: its name is wrong."""
    from popi_edge.models.bases import BASES, file_sha256, find
    from popi_training import folder, warm
    from popi_training.recipe import beside

    name = recipe.base.name
    if name in BASES:
        path, digest = find(BASES[name], settings.models), BASES[name].sha256
        warm.refuse_base(recipe, name, digest)
        return path
    named = beside(where, name, "base.name")
    if "/" in name and not name.endswith(".gguf") and not named.exists():
        if named.parent.is_dir():
            raise ConfigError(f"{where}: base.name: there is no folder {named}")
        return None
    path = warm.find_base(recipe, where, settings)
    if path.is_dir():
        folder.read_config(path)
    digest = folder.folder_sha256(path) if path.is_dir() else file_sha256(path)
    warm.refuse_base(recipe, name, digest)
    return path


def _tokens(recipe: Recipe, where: Path, data: Set, path: Path) -> dict[str, int]:
    """Tokens of packed users (each shared token once), or of the signals alone for the joint method: mean and most over
    some steps, and of a whole run. Raises ConfigError where these people have too few pairs."""
    from popi_training import targets, warm

    reader, t = warm.Reader.of(path), recipe.train
    sampled = range(0, t.steps, max(1, t.steps // SAMPLED))
    if recipe.method == "joint":
        people = [p for step in sampled for p in targets.batch(recipe, data, reader, step)]
        _refuse_few(recipe, where, max(len(p.targets) for p in people))
        sizes = [len(reader.prompt(p.signals)) for p in people]
    else:
        sizes = [len(packed.ids) for step in sampled for _, packed in warm.batch(recipe, data, reader, step)]
    mean = sum(sizes) / len(sizes)
    whole = round(mean * t.steps * t.batch)
    return {"a_user": round(mean), "longest": max(sizes), "sampled_users": len(sizes), "run": whole}


def _refuse_few(recipe: Recipe, where: Path, most: int) -> None:
    """Raises ConfigError where ``most`` pairs a person leave the generator nothing to learn from."""
    j = recipe.joint
    needed = {"frozen": 0, "sft": 1}.get(j.schedule, 1 if j.shared_pairs else j.pairs + 1)
    if most < needed:
        besides = "" if needed == 1 else " and some to learn from"
        raise ConfigError(f"{where}: joint.pairs is {j.pairs}{besides}; people have {most} pairs at most")


def _corpus_text(c: dict[str, Any]) -> str:
    held, tokens = c["held_out"], c["tokens"]
    lines = [
        f"{c['name']}: {c['method']} of {c['role']}{_on_base(c)}",
        *textwrap.wrap(f"trained on   {len(c['dimensions'])} dimensions: {', '.join(c['dimensions'])}", 100,
                       subsequent_indent=" " * 13),
        f"             {c['prompts']} prompts, {c['pairs']} pairs, {c['phrasings']} phrasings "
        f"(corpus: {c['licences']['corpus']})",
        f"             signals: {', '.join(c['kinds'])}",
        *_starts(c["start"]),
        f"users        {c['batch']} a step x {c['steps']} steps = {c['users']:,}",
    ]  # fmt: skip
    if joint := c["joint"]:
        lines.append(
            f"{joint['schedule']:12} {joint['summaries']:,} summaries, {joint['dpo_pairs']:,} pairs for the generator"
        )
    if tokens:
        lines.append(
            f"tokens       {tokens['a_user']:,} a user, about {tokens['run']:,} in all; longest {tokens['longest']:,} "
            f"(of {tokens['sampled_users']} users drawn)"
        )
    return "\n".join([
        *lines,
        f"held out     {len(held['dimensions'])} dimensions: {', '.join(held['dimensions'])}",
        f"             {held['combinations']} combinations of dimensions",
        f"             {held['development_prompts']} prompts of the corpus, whose pairs are for development",
        f"             {held['prompts']} prompts written apart, {held['pairs']} pairs, {held['phrasings']} phrasings",
        "nothing that is held out is trained on",
    ])  # fmt: skip
