"""Dense supervision: what the signals say in numbers, where it is read, and that it reaches the weights; and the tokens
of popi-micro, some of which are whole phrases."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from popi_edge import prompts
from popi_edge.errors import ConfigError
from popi_training import dense, popi_micro, world
from popi_training import recipe as recipes
from popi_training.loss import scored
from popi_training.micro import SHAPE, untrained
from popi_training.pack import Sample, pack

RECIPE = (Path(__file__).parent.parent / "training" / "recipes" / "popi-micro.toml").read_text()


def test_what_the_first_signals_say_is_the_mean_of_the_posterior() -> None:
    bayes = world.bayes()
    for i in range(5):
        person, _ = world.draw(str(i), "train", 8)
        means = bayes.posteriors(person.signals) @ bayes.types
        for k, line in enumerate(means, 1):
            posterior = bayes.posterior(person.signals[:k], "any")
            plain = [sum(p * t[a] for p, t in zip(posterior, bayes.types, strict=True)) for a in range(6)]
            assert line == pytest.approx(plain, abs=1e-9)
    told = [p for p in popi_micro.people(recipes.parse(RECIPE, "it"), 990) if len(p.signals) == 8]
    assert told and all(np.allclose(np.array(p.known)[:, :6], bayes.posteriors(p.signals) @ bayes.types) for p in told)
    assert all(p.known == () for p in popi_micro.people(recipes.parse(RECIPE, "it"), 1010))  # nothing is imitated there


def test_the_loss_is_that_of_each_person_alone() -> None:
    torch.manual_seed(0)
    read, model = popi_micro.reader(), untrained(len(popi_micro.reader().tokenizer), 0, SHAPE)
    end, bayes = read.tokenizer.encode(popi_micro.END)[0], world.bayes()
    people = [world.draw(str(i), "train", n)[0] for i, n in enumerate((1, 3, 8))]
    known = [tuple(map(tuple, (bayes.posteriors(p.signals) @ bayes.types).tolist())) for p in people]
    packs, apart = [], []
    for person, lines in zip(people, known, strict=True):
        samples = [
            Sample(read.prompt(person.signals[:k]), read.completion(z)[0])
            for k in range(1, len(person.signals) + 1) for z in ("Wants brief replies.", "Wants warm replies.")
        ]  # fmt: skip
        packs.append(pack(samples))
        for k, line in enumerate(lines, 1):  # the prompt of the first k signals alone, at its last signal's end
            ids = list(read.prompt(person.signals[:k]))
            at = max(i for i, token in enumerate(ids) if token == end)
            assert ids.count(end) == k
            with torch.no_grad():
                states = model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[dense.DEPTH]
            shown = states[0, at].double() @ dense.projection(states.shape[-1], 6)
            apart += ((shown - torch.tensor(line)) ** 2).tolist()
    found = scored(model, packs, dense.DEPTH)
    assert found.states is not None
    loss = dense.Dense(1.0, end).loss(found.states, packs, known)
    assert float(loss.detach()) == pytest.approx(np.mean(apart), rel=1e-4)
    loss.backward()  # type: ignore[no-untyped-call]
    moved = [p.grad is not None and bool(p.grad.abs().sum()) for p in model.model.layers[0].parameters()]
    assert all(moved) and all(p.grad is None or not p.grad.abs().sum() for p in model.model.layers[-1].parameters())
    square = dense.projection(32, 6).T @ dense.projection(32, 6)
    assert torch.allclose(square, torch.eye(6, dtype=torch.float64))


def test_phrases_are_single_tokens_that_texts_split_into_in_one_way() -> None:
    read, phrases = popi_micro.reader(), popi_micro.phrases()
    for phrase in phrases:
        assert len(read.tokenizer.encode(phrase)) == 1
        assert read.tokenizer.decode(read.tokenizer.encode(phrase)) == phrase
    shared = {(a, b) for a, b in itertools.product(phrases, repeat=2) for n in range(1, len(b)) if a[-n:] == b[:n]}
    odd = {(asked, "out of 10:\n> ") for asked in ("Tell me about", "What is good about")}  # nobody says "about of 10"
    assert shared == {(popi_micro.END,) * 2, *odd}
    for part, i in itertools.product(("train", "phrasings"), range(20)):
        person, _ = world.draw(str(i), part, 8)
        ids = read.prompt(person.signals)
        texts = [prompts.signal_text(s, read.tokenizer) for s in person.signals]
        (_, system), (_, user) = prompts.infer_messages(texts)
        assert len(ids) < 200 and read.tokenizer.decode(list(ids)) == f"system\n{system}\nuser\n{user}\nassistant\n"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"muon"', '"muonn"', "train.optimizer is 'muonn'; it must be one of adamw, muon"),
        ("dense = 5.0", "dense = -1", "joint.dense is -1; it must lie between 0 and 1000"),
        ("dense = 5.0", "densse = 1.0", "there is no key joint.densse; did you mean joint.dense?"),
    ],
)
def test_impossible_settings_are_refused_in_one_line(old: str, new: str, said: str) -> None:
    with pytest.raises(ConfigError, match=f"it: {said}".replace("?", r"\?").replace(".", r"\.")):
        recipes.parse(RECIPE.replace(old, new), "it")


def test_muon_and_dense_supervision_need_what_they_move_and_know() -> None:
    plain = 'name = "x"\nmethod = "joint"\nrole = "both"\n[users]\nsilent = 0.0\n'
    with pytest.raises(ConfigError, match=r"whole models \(scratch or lora.full\), no adapters"):
        recipes.parse(f'{plain}[train]\noptimizer = "muon"\n', "it")
    assert recipes.parse(f'{plain}[lora]\nfull = true\n[train]\noptimizer = "muon"\n', "it").train.optimizer == "muon"
    with pytest.raises(ConfigError, match=r"joint\.dense needs data\.world"):
        recipes.parse(f"{plain}[joint]\ndense = 5.0\n", "it")
    assert recipes.parse(plain, "it").train.optimizer == "adamw"
