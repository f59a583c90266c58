"""What is held out is fixed, exists, and shares no text with what is trained on."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from popi_edge.errors import ConfigError
from popi_training import corpus, splits, warm
from popi_training.recipe import Data, Recipe
from tests import tiny_training as small

TRAIN, HELD = corpus.load(), corpus.load(heldout=True)


def plain(text: str) -> str:
    """Without case, marks and white space: what two texts must differ in beyond these."""
    return " ".join(re.findall(r"\w+", text.lower()))


def phrasings(part: corpus.Corpus) -> list[str]:
    poles = [p for d in part.dimensions.values() for p in d.poles.values()]
    return [text for pole in poles for texts in pole.phrasings.values() for text in texts]


def overlap(a: str, b: str) -> float:
    """Shared words over all words of two texts."""
    x, y = set(plain(a).split()), set(plain(b).split())
    return len(x & y) / len(x | y)


def test_the_committed_split_is_what_the_seed_makes() -> None:
    assert splits.FILE.read_text("utf-8") == json.dumps(splits.make(TRAIN), indent=1) + "\n"


def test_what_the_split_names_exists() -> None:
    split = splits.read()
    assert len(split.dimensions) == 4 and split.dimensions <= set(TRAIN.dimensions)
    assert len(split.combinations) == splits.COMBINATIONS
    for combination in split.combinations:
        assert len(combination) == 2 and combination <= set(TRAIN.dimensions) - split.dimensions
    assert split.dev_prompts <= set(TRAIN.prompts)
    families = [prompt.rsplit("-", 1)[0] for prompt in split.dev_prompts]
    assert {families.count(d.family) for d in TRAIN.dimensions.values()} == {splits.DEV_PROMPTS_A_FAMILY}


def test_held_out_dimensions_come_from_different_families() -> None:
    assert len({TRAIN.dimensions[d].family for d in splits.read().dimensions}) == 4


def test_every_dimension_keeps_pairs_to_train_on() -> None:
    split = splits.read()
    for name in set(TRAIN.dimensions) - split.dimensions:
        assert sum(p.dimension == name and p.prompt not in split.dev_prompts for p in TRAIN.pairs) >= 30


def test_a_training_user_has_nothing_that_is_held_out() -> None:
    split = splits.read()
    one, other = sorted(sorted(split.combinations, key=sorted)[0])
    assert split.allows([one]) and split.allows([other])
    assert not split.allows([one, other]) and not split.allows([other, one])
    assert not split.allows([sorted(split.dimensions)[0]])


def test_the_held_out_part_covers_every_dimension_with_the_same_poles() -> None:
    assert {d.id: set(d.poles) for d in HELD.dimensions.values()} == {
        d.id: set(d.poles) for d in TRAIN.dimensions.values()
    }
    assert {p.dimension for p in HELD.pairs} == set(HELD.dimensions)
    assert set(TRAIN.facts["held"]) == set(TRAIN.facts["train"]) == set(corpus.VOICES[1:])
    assert set(TRAIN.reactions["held"]) == set(TRAIN.reactions["train"]) == set(corpus.REACTIONS)


def test_the_held_out_part_is_balanced_in_length_too() -> None:
    assert corpus.unbalanced(HELD) == []


def test_no_held_out_prompt_is_trained_on() -> None:
    assert not set(HELD.prompts) & set(TRAIN.prompts)
    assert max(overlap(a, b) for a in HELD.prompts.values() for b in TRAIN.prompts.values()) < 0.5


def test_no_held_out_reply_or_phrasing_is_trained_on() -> None:
    replies, held = ({plain(t) for p in part.pairs for t in p.replies.values()} for part in (TRAIN, HELD))
    said, unsaid = ({plain(t) for t in phrasings(part)} for part in (TRAIN, HELD))
    assert not held & replies and not unsaid & said


def test_no_held_out_phrasing_is_a_training_one_with_a_word_changed() -> None:
    """Of the same pole and voice; four words in five the same would be a copy."""
    for dimension in HELD.dimensions.values():
        for pole in dimension.poles.values():
            for voice, texts in pole.phrasings.items():
                trained = TRAIN.dimensions[dimension.id].poles[pole.id].phrasings[voice]
                close = [(a, b) for a in texts for b in trained if overlap(a, b) >= 0.8]
                assert close == [], f"{dimension.id}, {pole.id}, {voice}"


def test_no_held_out_fact_or_reaction_is_trained_on() -> None:
    for kinds in (TRAIN.facts, TRAIN.reactions):
        held, trained = ({plain(t) for texts in kinds[s].values() for t in texts} for s in ("held", "train"))
        assert held and trained and not held & trained


@pytest.mark.parametrize(
    ("text", "why"),
    [("{", "not a split"), ("[]", "not a split"), ('{"seed": 4}', "not a split"), (None, "cannot read")],
)
def test_a_damaged_split_is_one_clear_line(text: str | None, why: str, tmp_path: Path) -> None:
    path = tmp_path / "splits.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=f"{why}.*") as error:
        splits.read(path)
    assert "splits.json" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ('["order"]', '"order"', "dimensions must hold lists of ids, not 'order'"),
        ('["order"]', "[3]", r"dimensions must hold lists of ids, not \[3\]"),
        ('["order"]', '["ordr"]', "dimensions: the corpus has no 'ordr'"),
        ('[["size", "tone"]]', '["size"]', "combinations must hold lists of ids, not 'size'"),
        ('[["size", "tone"]]', '{"size": 1}', "combinations must be a list"),
        ('[["size", "tone"]]', '[["size"]]', r"combinations are of two dimensions each, not \['size'\]"),
        ('[["size", "tone"]]', '[["size", "tone"], []]', r"combinations are of two dimensions each, not \[\]"),
        ('"seed": 1', '"seed": 1e400', "not a split: cannot convert float infinity to integer"),
        ('[["size", "tone"]]', '[["size", "tnoe"]]', "combinations: the corpus has no 'tnoe'"),
        ('["form-3"]', '"form-3"', "dev_prompts must hold lists of ids, not 'form-3'"),
        ('["form-3"]', '["form-3", "form-33"]', "dev_prompts: the corpus has no 'form-33'"),
    ],
)
def test_an_id_that_the_corpus_does_not_have_holds_nothing_out_and_is_refused(
    old: str, new: str, why: str, tmp_path: Path
) -> None:
    path = small.corpus(tmp_path / "corpus") / "splits.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    recipe = Recipe("a", data=Data(corpus="corpus"))
    with pytest.raises(ConfigError, match=f"splits.json: {why}") as error:
        warm.load(recipe, tmp_path / "recipe.toml")
    assert "\n" not in str(error.value)


def test_a_split_may_name_what_is_in_the_wide_part_alone(tmp_path: Path) -> None:
    folder = small.corpus(tmp_path / "corpus")
    rows = [json.loads(line) for line in (folder / "form.jsonl").read_text().splitlines()]
    (folder / "wide").mkdir()
    (folder / "wide" / "more.jsonl").write_text(json.dumps(rows[0] | {"id": "depth"}) + "\n")
    path = folder / "splits.json"
    path.write_text(path.read_text().replace('["order"]', '["order", "depth"]'))
    data = warm.load(Recipe("a", data=Data(corpus="corpus")), tmp_path / "recipe.toml")
    assert data.train.dimensions == ["size", "tone"]
