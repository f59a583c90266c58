"""Recipes: one small TOML file a run. Every key is known, every number possible, or the file is refused."""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from popi_edge.errors import ConfigError
from popi_training import limits
from popi_training.evaluate.data import FORMATS
from popi_training.limits import Limits
from popi_training.users import KINDS, Mix

MAX_STEPS = 1_000_000


@dataclass(frozen=True)
class Base:
    """The base model: its name as in ``popi model list``, or a GGUF file or (joint training) a Hugging Face folder,
    relative to the recipe; and the SHA-256 that the file, or what is read of the folder, must have."""

    name: str = "smollm2-135m"
    sha256: str = ""


@dataclass(frozen=True)
class Data:
    """``corpus``: its folder, relative to the recipe (empty: the project's own). ``wide``: with what its part of that
    name adds; ``later``: also with what was added to that after popi-smol 0.5.0. ``dimensions``: those trained on
    (empty: all that the split does not hold out). ``world``: instead of a corpus, the controlled world of popi-micro.
    ``file``: instead of a corpus, a data set by public name or file (``popi_training.datasets``) of a ``format``;
    ``download``: the public name may be downloaded. ``apart``: an evaluation file, of ``apart_format``, whose prompts
    must not be among those trained on (``corpus``: the folder of a corpus, whose held-out prompts must not be)."""

    corpus: str = ""
    wide: bool = False
    later: bool = False
    dimensions: tuple[str, ...] = ()
    world: bool = False
    file: str = ""
    format: str = ""
    download: bool = False
    apart: str = ""
    apart_format: str = "alignx"


@dataclass(frozen=True)
class Scratch:
    """The shape of two llamas that are trained from nothing (``hidden`` 0: there are none, the base is loaded)."""

    hidden: int = 0
    layers: int = 4
    heads: int = 4
    kv_heads: int = 4
    ffn: int = 256
    context: int = 1024


@dataclass(frozen=True)
class Lora:
    """Rank and alpha of the adapters (LoRA, arXiv 2106.09685). ``start``: an adapter (GGUF) of ``infer`` to go on from,
    relative to the recipe, of the same rank and alpha (empty: a fresh one); ``start_generate``: one of ``generate``.
    ``full``: no adapters, both roles are whole models, trained in all their weights."""

    rank: int = 8
    alpha: float = 16.0
    start: str = ""
    start_generate: str = ""
    full: bool = False


@dataclass(frozen=True)
class Schedule:
    """``batch``: users a step. ``phrasings``: summaries behind one signal prefix; ``halfway``: further ones after half
    of the signals. ``warmup``: steps of rising rate; ``decay``: share of the steps, at the end, of falling rate.

    ``easy``: so many steps with users of one pole and one or two clear signals come first. ``sharpness``: how much
    the phrasings that the generator follows best are preferred (0: not at all); ``options``: only so many of a pole,
    the best followed, are taught (0: all). ``contrast``: weight of telling a
    user's summary from what the others of the batch make of it, at ``scale`` (``loss.contrast``); ``mirrored``: the
    share of couples who are opposite in everything, with the same signals the other way round. ``patience``: stop
    after so many looks at the development users without a lower loss (0: never). ``optimizer``: ``adamw``, or, for
    whole models, ``muon`` (``popi_training.optimizers``).
    """

    steps: int = 100
    batch: int = 4
    lr: float = 5e-4
    warmup: int = 10
    decay: float = 0.3
    clip: float = 1.0
    phrasings: int = 3
    halfway: int = 2
    sharpness: float = 0.0
    options: int = 0
    easy: int = 0
    contrast: float = 0.0
    mirrored: float = 0.0
    scale: float = 8.0
    threads: int = 2
    checkpoint_every: int = 20
    dev_every: int = 60
    dev_users: int = 24
    patience: int = 0
    optimizer: str = "adamw"


@dataclass(frozen=True)
class Joint:
    """The joint objective (``popi_training.joint``). ``schedule``: what moves when. ``group``: summaries drawn of a
    user (G); ``pairs``: held-out pairs that reward each (K); ``dpo_pairs``: other pairs that θ learns from under each,
    of which no summary gets another's, or, with ``shared_pairs``, the same. ``anchor``: weight of the chosen replies'
    own likelihood, a token, beside DPO. ``kl``: weight of the KL to the start;
    ``ratio``: PPO's clip. ``empty``: share of summaries that θ learns without. ``budget``: tokens of a summary that
    cost nothing; ``length``: nats a token more; ``truncation``: nats for one without an end; ``leak``: nats for a
    summary whose words all stand in verbatim runs; ``identity``: nats for each by which it is likelier behind its own
    person's signals than behind those of ``alike`` others who want the same.
    ``mask``: summaries are drawn under the closed vocabulary; ``rollout``: by ``transformers`` or by ``vllm``
    (``popi_training.vllm_rollout``). ``shuffled_rewards``: each summary gets another's reward
    (a control that must learn nothing). ``lr_generate``: the rate of θ, as ``train.lr`` is φ's. ``warm``: so many steps
    of ``sft`` come first, at ``lr_warm`` falling to a hundredth, from one signal a person to all; what is learnt then
    is what the KL and π_ref are taken against. ``warm_generate``: θ learns only in the first so many (0: in all);
    ``smoothing``: DPO's label smoothing then; ``dense``: weight of what the signals say, in numbers, at the end of each
    (``popi_training.dense``); ``other_words``: φ is taught all words that mean the same, θ the first of them alone;
    ``unheard_words``: of every other attribute φ is taught only the word that θ is not."""

    schedule: str = "simultaneous"
    group: int = 4
    pairs: int = 2
    dpo_pairs: int = 1
    shared_pairs: bool = False
    beta: float = 0.1
    anchor: float = 0.0
    temperature: float = 1.0
    kl: float = 0.05
    ratio: float = 0.2
    empty: float = 0.1
    budget: int = 32
    length: float = 0.05
    truncation: float = 2.0
    leak: float = 2.0
    identity: float = 0.0
    alike: int = 2
    mask: bool = True
    rollout: str = "transformers"
    shuffled_rewards: bool = False
    lr_generate: float = 1e-4
    warm: int = 0
    warm_generate: int = 0
    lr_warm: float = 1e-3
    smoothing: float = 0.0
    dense: float = 0.0
    other_words: bool = False
    unheard_words: bool = False

    @property
    def taught(self) -> int:
        """The steps of the warm start in which θ learns."""
        return self.warm_generate or self.warm


SCHEDULES = ("sft", "frozen", "sequential", "alternating", "simultaneous")
ROLLOUTS = ("transformers", "vllm")
OPTIMIZERS = ("adamw", "muon")


@dataclass(frozen=True)
class Recipe:
    """A run: what, on which base, from which data, how. ``method``: ``warm_start`` (supervised, of the role ``infer``)
    or ``joint`` (both roles). ``limits``: what an export of it as whole models may lose."""

    name: str
    seed: int = 0
    method: str = "warm_start"
    role: str = "infer"
    about: str = ""
    base: Base = field(default_factory=Base)
    data: Data = field(default_factory=Data)
    scratch: Scratch = field(default_factory=Scratch)
    lora: Lora = field(default_factory=Lora)
    users: Mix = field(default_factory=Mix)
    train: Schedule = field(default_factory=Schedule)
    joint: Joint = field(default_factory=Joint)
    limits: Limits = field(default_factory=Limits)
    text: str = ""


def read(path: Path) -> Recipe:
    """Read a recipe. Raises ConfigError: no such file, not TOML, an unknown key, an impossible number."""
    try:
        text = path.read_text("utf-8")
    except OSError as e:
        raise ConfigError(f"cannot read the recipe {path}: {e.strerror}") from None
    except UnicodeDecodeError as e:
        raise ConfigError(f"{path}: not TOML: {e}") from None
    return parse(text, str(path))


def beside(where: Path, name: str, key: str) -> Path:
    """The file or folder that a recipe's ``key`` names, relative to the recipe; it need not be there. Raises
    ConfigError for what cannot be one: too long a name, a link that leads back to itself."""
    try:
        path = (where.parent / name).resolve()
        path.exists()
    except (OSError, RuntimeError) as e:
        why = e.strerror if isinstance(e, OSError) else "a link that leads back to itself"
        raise ConfigError(f"{where}: {key}: {name:.80}: {why}") from None
    return path


def parse(text: str, where: str) -> Recipe:
    """A recipe from its text; ``where`` names it in errors. Raises ConfigError as ``read`` does."""
    table = limits.tables(text, where)
    if "text" in table:
        raise ConfigError(f"{where}: there is no key text")
    recipe: Recipe = _made(Recipe, table, where, "")
    _check(recipe, where)
    return dataclasses.replace(recipe, text=text)


def _made(kind: Any, table: Any, where: str, prefix: str) -> Any:
    hints = typing.get_type_hints(kind)
    values = {}
    for key, value in table.items():
        if key not in hints:
            near = difflib.get_close_matches(key, hints, 1)
            hint = f"; did you mean {prefix}{near[0]}?" if near else ""
            raise ConfigError(f"{where}: there is no key {prefix}{key}{hint}")
        values[key] = _value(hints[key], value, where, prefix + key)
    if kind is Recipe and "name" not in values:
        raise ConfigError(f"{where}: name is missing")
    return kind(**values)


def _value(hint: Any, value: Any, where: str, key: str) -> Any:
    """``value`` as the field's type; whole numbers will do for floats. Raises ConfigError naming the key."""
    limits.refuse_large(value, key, where)
    if isinstance(value, str) and "\0" in value:
        raise ConfigError(f"{where}: {key} has a null character")
    if hint is Limits:
        return limits.parse(value, where)
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: {key} must be a table")
        return _made(hint, value, where, key + ".")
    origin, arguments = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin is tuple and isinstance(value, list):
        return tuple(_value(arguments[0], v, where, key) for v in value)
    if origin in (dict, typing.Mapping) or getattr(origin, "__name__", "") == "Mapping":
        if isinstance(value, dict):
            return {k: _value(arguments[1], v, where, f"{key}.{k}") for k, v in value.items()}
    elif origin is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    elif isinstance(origin, type) and not isinstance(origin, types.GenericAlias) and type(value) is origin:
        return value
    names = {str: "text", int: "a whole number", float: "a number", bool: "true or false", tuple: "a list"}
    name = names.get(origin, "a table")
    raise ConfigError(f"{where}: {key} must be {name}, not {value!r:.40}")


def _bounds(r: Recipe) -> list[tuple[str, float, float, float]]:
    """(key, value, least, most) of every number."""
    t, u, j, s = r.train, r.users, r.joint, r.scratch
    return [
        ("train.steps", t.steps, 1, MAX_STEPS), ("train.batch", t.batch, 1, 1024), ("train.lr", t.lr, 1e-9, 1),
        ("train.warmup", t.warmup, 0, t.steps), ("train.decay", t.decay, 0, 1), ("train.clip", t.clip, 1e-6, 1e6),
        ("train.phrasings", t.phrasings, 1, 64), ("train.halfway", t.halfway, 0, 64),
        ("train.sharpness", t.sharpness, 0, 100), ("train.options", t.options, 0, 64),
        ("train.contrast", t.contrast, 0, 1000),
        ("train.mirrored", t.mirrored, 0, 1), ("train.scale", t.scale, 1e-3, 1e3),
        ("train.easy", t.easy, 0, MAX_STEPS), ("train.threads", t.threads, 1, 256),
        ("train.checkpoint_every", t.checkpoint_every, 1, MAX_STEPS), ("train.dev_every", t.dev_every, 1, MAX_STEPS),
        ("train.dev_users", t.dev_users, 0, 10_000), ("train.patience", t.patience, 0, MAX_STEPS),
        ("joint.group", j.group, 2, 256), ("joint.pairs", j.pairs, 1, 64), ("joint.dpo_pairs", j.dpo_pairs, 1, 64),
        ("joint.beta", j.beta, 1e-4, 10), ("joint.anchor", j.anchor, 0, 100),
        ("joint.temperature", j.temperature, 0.05, 10), ("joint.kl", j.kl, 0, 100),
        ("joint.ratio", j.ratio, 1e-3, 10), ("joint.empty", j.empty, 0, 1), ("joint.budget", j.budget, 1, 4096),
        ("joint.length", j.length, 0, 100), ("joint.truncation", j.truncation, 0, 1000),
        ("joint.leak", j.leak, 0, 1000), ("joint.identity", j.identity, 0, 1000), ("joint.alike", j.alike, 1, 64),
        ("joint.lr_generate", j.lr_generate, 1e-9, 1),
        ("joint.warm", j.warm, 0, t.steps), ("joint.lr_warm", j.lr_warm, 1e-9, 1),
        ("joint.warm_generate", j.warm_generate, 0, j.warm), ("joint.smoothing", j.smoothing, 0, 0.49),
        ("joint.dense", j.dense, 0, 1000),
        ("scratch.hidden", s.hidden, 0, 4096), ("scratch.layers", s.layers, 1, 64),
        ("scratch.heads", s.heads, 1, 64), ("scratch.kv_heads", s.kv_heads, 1, s.heads),
        ("scratch.ffn", s.ffn, 8, 16384), ("scratch.context", s.context, 64, 8192),
        ("lora.rank", r.lora.rank, 1, 256), ("lora.alpha", r.lora.alpha, 1e-3, 1e4), ("seed", r.seed, 0, 2**31 - 1),
        ("users.most", u.most, 2, 64),
        ("users.least", u.least, 0, u.most), ("users.silent", u.silent, 0, 0.95),
        *((f"users.{k}", getattr(u, k), 0, 1) for k in ("noise", "change", "cancel", "distractors")),
        *(("users.wants", w, 0, 1e9) for w in u.wants), *(("users.signals", w, 0, 1e9) for w in u.signals),
        *((f"users.kinds.{k}", w, 0, 1e9) for k, w in u.kinds.items()),
    ]  # fmt: skip


def _check(r: Recipe, where: str) -> None:
    u, j, s = r.users, r.joint, r.scratch
    for key, value, low, high in _bounds(r):
        if not low <= value <= high:  # also NaN
            raise ConfigError(f"{where}: {key} is {value:g}; it must lie between {low:g} and {high:g}")
    for key, weights in (("wants", u.wants), ("signals", u.signals), ("kinds", tuple(u.kinds.values()))):
        if not sum(weights) > 0:
            raise ConfigError(f"{where}: users.{key}: the weights sum to nothing")
    if unknown := sorted(set(u.kinds) - set(KINDS)):
        raise ConfigError(f"{where}: users.kinds: there is no kind {unknown[0]!r}; there are {', '.join(KINDS)}")
    if u.change + u.cancel > 1:
        raise ConfigError(f"{where}: users.change and users.cancel sum to more than 1")
    if not r.name or not all(c.isalnum() or c in "-_." for c in r.name) or r.name.startswith("."):
        raise ConfigError(f"{where}: name must be letters, digits, - _ and ., not {r.name!r:.40}")
    if (r.method, r.role) not in (("warm_start", "infer"), ("joint", "both")):
        raise ConfigError(
            f"{where}: method and role must be \"warm_start\" of \"infer\" or \"joint\" of \"both\", "
            f"not {r.method!r:.40} of {r.role!r:.40}"
        )
    if not r.base.name:
        raise ConfigError(f"{where}: base.name is empty")
    if r.base.sha256 and not re.fullmatch("[0-9a-fA-F]{64}", r.base.sha256):
        raise ConfigError(f"{where}: base.sha256 must be 64 hexadecimal digits, not {r.base.sha256!r:.80}")
    if s.hidden and (s.hidden % s.heads or s.hidden // s.heads % 2 or s.heads % s.kv_heads):
        raise ConfigError(f"{where}: scratch.hidden must be an even multiple of heads, and heads one of kv_heads")
    if bool(s.hidden) != r.data.world or (r.data.world and r.method != "joint"):
        raise ConfigError(f"{where}: data.world, scratch.hidden and method \"joint\" go together")
    if r.data.world:
        _check_world(r, where)
    if r.data.file and (r.method != "joint" or r.data.world or r.data.corpus):
        raise ConfigError(f"{where}: data.file is for method \"joint\", and instead of a corpus or the world")
    if r.data.file and (odd := next((k for k in ("wide", "later", "dimensions") if getattr(r.data, k)), None)):
        raise ConfigError(f"{where}: data.{odd} means nothing with data.file")
    if r.data.later and not r.data.wide:
        raise ConfigError(f"{where}: data.later adds to data.wide, which is false")
    if odd := next((k for k in ("apart", "format", "download") if getattr(r.data, k) and not r.data.file), None):
        raise ConfigError(f"{where}: data.{odd} is for data.file, which is missing")
    if r.data.apart_format not in FORMATS:
        raise ConfigError(
            f"{where}: data.apart_format is {r.data.apart_format!r:.40}; it must be one of {', '.join(FORMATS)}"
        )
    if j.identity and r.data.file:
        raise ConfigError(f"{where}: joint.identity needs others who want the same: our own corpus, or the world")
    if r.lora.full and (r.method != "joint" or r.lora.start or r.lora.start_generate):
        raise ConfigError(f"{where}: lora.full is for method \"joint\", and starts from no adapter")
    if r.train.patience and not r.train.dev_users:
        raise ConfigError(f"{where}: train.patience looks at development users; train.dev_users is 0")
    if r.train.optimizer not in OPTIMIZERS:
        raise ConfigError(
            f"{where}: train.optimizer is {r.train.optimizer!r:.40}; it must be one of {', '.join(OPTIMIZERS)}"
        )
    if r.train.optimizer == "muon" and not (s.hidden or r.lora.full):
        raise ConfigError(f"{where}: train.optimizer \"muon\" needs whole models (scratch or lora.full), no adapters")
    if j.dense and not r.data.world:
        raise ConfigError(f"{where}: joint.dense needs data.world, where it is known what the signals say")
    for key in ("other_words", "unheard_words"):
        if getattr(j, key) and not (r.data.world and j.warm):
            raise ConfigError(f"{where}: joint.{key} needs data.world and joint.warm, in which words are taught")
    if j.other_words and j.unheard_words:
        raise ConfigError(f"{where}: joint.other_words teaches the words that joint.unheard_words leaves out: set one")
    if j.schedule not in SCHEDULES:
        raise ConfigError(f"{where}: joint.schedule is {j.schedule!r:.40}; it must be one of {', '.join(SCHEDULES)}")
    if j.rollout not in ROLLOUTS:
        raise ConfigError(f"{where}: joint.rollout is {j.rollout!r:.40}; it must be one of {', '.join(ROLLOUTS)}")
    if j.rollout == "vllm" and (r.data.world or r.lora.full):
        raise ConfigError(f"{where}: joint.rollout \"vllm\" needs LoRA adapters: not with data.world or lora.full")
    if j.rollout == "vllm" and j.temperature > 2:
        raise ConfigError(f"{where}: joint.temperature is {j.temperature:g}; with joint.rollout \"vllm\" at most 2")
    if r.method == "joint" and u.silent:
        raise ConfigError(f"{where}: users.silent must be 0 for method \"joint\": who wants nothing rewards nothing")


def _check_world(r: Recipe, where: str) -> None:
    """Raises ConfigError for more targets than people of the world have, and for a key that means nothing there."""
    from popi_training.world import ATTRIBUTES, TARGETS

    users = Mix(silent=r.users.silent)
    for table, plain in (("data", Data(world=True)), ("base", Base()), ("lora", Lora()), ("users", users)):
        own = getattr(r, table)
        if odd := next((f.name for f in dataclasses.fields(own) if getattr(own, f.name) != getattr(plain, f.name)), ""):
            raise ConfigError(f"{where}: {table}.{odd} means nothing with data.world")
    j = r.joint
    learnt = 0 if j.shared_pairs or j.schedule == "frozen" else j.dpo_pairs
    if j.pairs + learnt > TARGETS:
        besides = f" and {learnt} to learn from (joint.dpo_pairs)" if learnt else ""
        raise ConfigError(f"{where}: joint.pairs is {j.pairs}{besides}; people of the world have {TARGETS} pairs")
    if j.dense and r.scratch.hidden < 2 * len(ATTRIBUTES):
        needed = f"joint.dense reads {2 * len(ATTRIBUTES)} numbers from a state"
        raise ConfigError(f"{where}: scratch.hidden is {r.scratch.hidden}, but {needed}")
