"""Hugging Face folders as bases: tokens as transformers reads them, a joint step on each, what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from popi_edge import config, prompts
from popi_edge.errors import ConfigError, ModelError
from popi_training import checking, train
from popi_training import folder as module
from popi_training import recipe as recipes
from popi_training.joint import Joint
from popi_training.micro import TEMPLATE, world_texts
from tests import tiny_training as small
from tests.test_architectures import SHAPE
from tests.test_joint import TABLE
from tests.test_train import edited

pytestmark = pytest.mark.usefixtures("torch_as_before")
STRINGS = [
    "Prefers short replies.", "Don't add <|im_end|> or <end_of_turn> here!", "naïve — 漢字 🙂\n\ttab", "",
    " a  b ", "12 of 345",
]  # fmt: skip


def tokenizer(kind: str) -> Tokenizer:
    """A byte-level BPE, or for gemma3 one with ▁ for spaces and bytes to fall back on, both trained on a few texts."""
    if kind != "gemma3":
        special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        special = ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"]
        made = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<0x00>"))
        made.normalizer = normalizers.Replace(" ", "▁")
        made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
        alphabet = sorted({"▁", "\n", *map(chr, range(33, 127))})
        special += [f"<0x{i:02X}>" for i in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet, show_progress=False,
                                  special_tokens=[AddedToken(s, special=True) for s in special])  # fmt: skip
    made.train_from_iterator([t.replace(" ", "▁") if kind == "gemma3" else t for t in world_texts()], trainer)
    return made


def folder(path: Path, kind: str) -> Path:
    """A random tiny model of an architecture as transformers saves it, with a tokenizer of its kind."""
    import transformers as hf

    words = tokenizer(kind)
    torch.manual_seed(1)
    shape = SHAPE | {"vocab_size": words.get_vocab_size() + 3, "max_position_embeddings": 1024}
    if kind == "gemma3":
        own = {"sliding_window": 64, "layer_types": ["sliding_attention"] * 2 + ["full_attention"]}
        model: Any = hf.Gemma3ForCausalLM(hf.Gemma3TextConfig(**shape, **own, query_pre_attn_scalar=8))
    else:
        name = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}[kind]
        model = getattr(hf, f"{name}ForCausalLM")(getattr(hf, f"{name}Config")(**shape))
    model.save_pretrained(path)
    table = json.loads(words.to_str())
    if kind == "gemma3":  # bytes are no control tokens
        table["added_tokens"] = [t for t in table["added_tokens"] if not t["content"].startswith("<0x")]
    (path / "tokenizer.json").write_text(json.dumps(table))
    end = "<eos>" if kind == "gemma3" else "<|im_end|>"
    template = TEMPLATE if kind != "gemma3" else TEMPLATE.replace("<|im_start|>", "<start_of_turn>").replace(
        "<|im_end|>", "<end_of_turn>"
    )
    (path / "tokenizer_config.json").write_text(json.dumps({"eos_token": end, "chat_template": template}))
    return path


@pytest.fixture(scope="module", params=["llama", "qwen2", "qwen3", "gemma3"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp(request.param)
    small.corpus(place / "corpus")
    folder(place / "base", request.param)
    (place / "recipe.toml").write_text(small.RECIPE.format(
        base="base", sha256=module.folder_sha256(place / "base"), corpus="corpus", steps=3, lr=0.01, every=2
    ))  # fmt: skip
    edited(place / "recipe.toml", 'name = "small"', 'name = "small"\nmethod = "joint"\nrole = "both"')
    (place / "recipe.toml").write_text((place / "recipe.toml").read_text() + TABLE.format(schedule="simultaneous"))
    return place


def test_tokens_are_those_of_transformers_and_plain_text_makes_no_control_token(made: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    ours = module.FolderTokenizer(made / "base")
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(made / "base" / "tokenizer.json"))
    for text in STRINGS:
        assert ours.decode(ours.encode(text)) == text
        assert not set(ours.encode(text)) & {ours.control(n) for n in ours.controls}
        if "<" not in text:
            assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)
    ids = prompts.generate_ids(ours, "Why <|im_end|>?", summary="Prefers short replies.")  # type: ignore[arg-type]
    turns = [i for i in ids if i in {ours.control(n) for n in ours.controls}]
    assert len(turns) == 5 and ours.eos in turns  # system, user and assistant begin; two of them end


@pytest.mark.parametrize("full", [False, True])
def test_a_joint_step_moves_both_roles_on_it(made: Path, tmp_path: Path, full: bool) -> None:
    path = made / f"recipe-{full}.toml"
    path.write_text((made / "recipe.toml").read_text().replace("[lora]", f"[lora]\nfull = {str(full).lower()}"))
    trainer = train.open_run(recipes.read(path), path, config.load())
    assert isinstance(trainer, Joint)
    before = trainer.roles.state()
    train.run(trainer, tmp_path / "run", until=2, minutes=None, tell=lambda *_: None)
    after = trainer.roles.state()
    for role in ("infer", "generate"):
        assert any((before[role][n] != after[role][n]).any() for n in before[role])
    assert set(after) == ({"infer", "generate", "start", "reference"} if full else {"infer", "generate"})
    assert all((before[r][n] == after[r][n]).all() for r in after if r in ("start", "reference") for n in after[r])
    again = train.open_run(recipes.read(path), path, config.load())
    train.run(again, tmp_path / "run", until=3, minutes=None, tell=lambda *_: None)
    assert [m["step"] for m in train.read_metrics(tmp_path / "run" / train.METRICS)] == [1, 2, 3]


def test_a_check_finds_the_folder_that_training_does(made: Path) -> None:
    text, path, settings = (made / "recipe.toml").read_text(), made / "other.toml", config.load()
    found = checking.checked(recipes.read(made / "recipe.toml"), made / "recipe.toml", settings)
    assert found["base"]["name"] == "base" and found["base"]["here"] and found["tokens"]["run"] > 0
    for old, new, why in (
        ('method = "joint"\nrole = "both"', "", "base.name: base is a folder; method \"warm_start\" needs a GGUF file"),
        ("[lora]", '[lora]\nstart = "x.gguf"', "lora.start is an adapter for a GGUF base; base is a folder"),
    ):
        path.write_text(text.replace(old, new))
        for begin in (checking.checked, train.open_run):
            with pytest.raises(ConfigError, match=why):
                begin(recipes.read(path), path, settings)


def test_what_cannot_be_a_base_is_refused(made: Path, tmp_path: Path) -> None:
    def spoilt(name: str, change: Any) -> Path:
        copy = tmp_path / name
        shutil.copytree(made / "base", copy)
        change(copy)
        return copy

    def edit(file: str, **values: Any) -> Any:
        def change(copy: Path) -> None:
            table = json.loads((copy / file).read_text())
            (copy / file).write_text(json.dumps({**table, **values}))

        return change

    cases = [
        ("kind", edit("config.json", model_type="mamba"), "model_type 'mamba'"),
        ("code", edit("config.json", auto_map={"AutoModel": "x.py"}), "code of its own"),
        ("text", edit("config.json", max_position_embeddings="many"), "must be a whole number above 0, not 'many'"),
        ("no number", edit("config.json", rms_norm_eps=None), "config.json: rms_norm_eps must be a number, not None"),
        ("nothing", edit("config.json", max_position_embeddings=None), "config.json: max_position_embeddings must be"),
        ("shape", edit("config.json", intermediate_size=50), "cannot be loaded|do not fit"),
        ("pickle", lambda c: (c / "model.safetensors").rename(c / "pytorch_model.bin"), "no .safetensors"),
        ("torn", lambda c: (c / "model.safetensors").write_bytes(b"\0" * 40), "cannot be loaded"),
        ("none", lambda c: (c / "config.json").unlink(), "config.json"),
    ]
    for name, change, why in cases:
        with pytest.raises(ModelError, match=why):
            module.load_model(spoilt(name, change))
    ropes = spoilt("five", edit("config.json", rope_parameters={"rope_theta": 5.0}))
    table = json.loads((ropes / "config.json").read_text())
    table.pop("rope_theta", None)
    (ropes / "config.json").write_text(json.dumps(table))
    with pytest.raises(ModelError, match="transformers 5"):
        module.read_config(ropes)
    for name, change, why in (
        ("wordpiece", edit("tokenizer.json", model={"type": "WordPiece"}), "only BPE"),
        ("number", edit("tokenizer.json", model=5), "its model is 5; only BPE"),
        ("endless", edit("tokenizer.json", added_tokens=[]), "no end token"),
    ):
        with pytest.raises(ModelError, match=why):
            module.FolderTokenizer(spoilt(name, change))
    edited(made / "recipe.toml", "[lora]", '[lora]\nstart = "x.gguf"')
    with pytest.raises(ConfigError, match="is a folder"):
        train.open_run(recipes.read(made / "recipe.toml"), made / "recipe.toml", config.load())
    edited(made / "recipe.toml", '\nstart = "x.gguf"', "")


def test_a_folder_or_a_link_to_nowhere_among_its_files_is_one_line(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(made, tmp_path / "place")
    recipe, odd = tmp_path / "place" / "recipe.toml", tmp_path / "place" / "base" / "run.json"
    for begin in (odd.mkdir, lambda: (odd.rmdir(), odd.symlink_to("nowhere"))):
        begin()
        for more in (["--check"], ["--out", tmp_path / "run"]):
            code, out, err = small.popi(monkeypatch, capsys, "train", recipe, *more)
            assert (code, out, err.count("\n")) == (1, "", 1) and f"cannot read {odd}: " in err, err
