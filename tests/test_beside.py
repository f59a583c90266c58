"""The files beside a model say of it what the model's own folder said: transformers and tokenizers read the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from popi_edge.models.gguf import Gguf
from popi_export import beside, hf, source
from popi_export.to_gguf import write_model
from tests import tiny_hf

TEXTS = ["Zwölf, 1999!\n\n", "it's  12,345   spaces\t\r\n x", "<|im_start|>user\nhi<|im_end|>", "日本 😀 é\u0301", ""]
KINDS = [(a, v) for a in tiny_hf.ARCHITECTURES for v in ("smollm", "qwen2", "llama-bpe")]


@pytest.fixture(scope="module", params=KINDS)
def both(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A Hugging Face folder, and the files written from the GGUF that it became."""
    architecture, kind = request.param
    folder = tmp_path_factory.mktemp("both")
    tiny_hf.folder(folder / "hf", architecture, vocabulary=kind, bos=kind == "llama-bpe", tied=kind != "qwen2")
    write_model(folder / "m.gguf", source.read(folder / "hf"), "F32")
    (folder / "out").mkdir()
    beside.write(source.read(folder / "m.gguf"), folder / "m.gguf", folder / "out")
    return folder / "hf", folder / "out"


def test_the_config_is_the_same_model(both: tuple[Path, Path]) -> None:
    want, got = (hf.read_config(folder) for folder in both)
    assert got.epsilon == pytest.approx(want.epsilon)
    assert {**vars(got), "epsilon": 0} == {**vars(want), "epsilon": 0}


def test_transformers_computes_the_same_under_the_written_config(both: tuple[Path, Path], tmp_path: Path) -> None:
    import torch

    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes(((both[1] if name == "config.json" else both[0]) / name).read_bytes())
    ids = torch.tensor([[7, 80, 200, 13, 299, 45, 120] * 4])
    with torch.no_grad():
        want, got = (tiny_hf.load(folder)(ids).logits for folder in (both[0], tmp_path))
    assert torch.allclose(want, got, rtol=1e-4, atol=1e-4 * float(want.abs().max()))


def test_the_tokenizer_is_the_same(both: tuple[Path, Path]) -> None:
    want, got = (Tokenizer.from_file(str(folder / "tokenizer.json")) for folder in both)
    for text in TEXTS:
        for special in (True, False):
            a, b = (t.encode(text, add_special_tokens=special).ids for t in (want, got))
            assert a == b, (text, special)
            assert want.decode(a) == got.decode(b)


def test_transformers_renders_the_same_chat(both: tuple[Path, Path]) -> None:
    from transformers import AutoTokenizer

    chat = [{"role": "user", "content": "How?"}]
    want, got = (AutoTokenizer.from_pretrained(folder) for folder in both)
    assert want.apply_chat_template(chat, add_generation_prompt=True) == got.apply_chat_template(
        chat, add_generation_prompt=True
    )
    assert (want.eos_token, want.bos_token, want.pad_token) == (got.eos_token, got.bos_token, got.pad_token)


def test_a_folder_s_own_files_are_kept_less_code_and_places(tmp_path: Path) -> None:
    folder = tiny_hf.folder(tmp_path / "hf", "qwen3")
    tiny_hf.edit(folder / "tokenizer_config.json", name_or_path="/home/me", own="kept")
    write_model(tmp_path / "m.gguf", source.read(folder), "F32")
    made = beside.files(source.read(folder), Gguf(tmp_path / "m.gguf"))
    assert made["tokenizer.json"] == (folder / "tokenizer.json").read_bytes()
    settings = json.loads(made["tokenizer_config.json"])
    assert settings["own"] == "kept" and "name_or_path" not in settings
    assert settings["chat_template"] and json.loads(made["config.json"])["eos_token_id"] == [2]
