"""A folder or PEFT adapter that would be exported wrongly is refused, in one line that says what and where."""

from __future__ import annotations

import json
import random
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from popi_edge.errors import ConfigError, ModelError, PopiError
from popi_edge.models.gguf import Gguf
from popi_export import beside, source, vocabulary
from popi_export.to_gguf import write_model
from tests import raw_gguf, tiny_hf

Change = Callable[[Path], None]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of each architecture, and ``adapter`` for the llama."""
    root = tmp_path_factory.mktemp("made")
    for architecture in tiny_hf.ARCHITECTURES:
        tiny_hf.folder(root / architecture, architecture, vocabulary="qwen2")
    tiny_hf.peft_adapter(root / "adapter", root / "llama")
    return root


def config(**changes: Any) -> Change:
    return lambda path: void(tiny_hf.edit(path / "config.json", **changes))


def settings(**changes: Any) -> Change:
    return lambda path: void(tiny_hf.edit(path / "tokenizer_config.json", **changes))


def void(_: object) -> None:
    return None


def tokenizer(change: Callable[[dict[str, Any]], None]) -> Change:
    def apply(path: Path) -> None:
        value = json.loads((path / "tokenizer.json").read_text("utf-8"))
        change(value)
        (path / "tokenizer.json").write_text(json.dumps(value), "utf-8")

    return apply


def model(**changes: Any) -> Change:
    return tokenizer(lambda value: value["model"].update(changes))


def weights(change: Callable[[dict[str, np.ndarray]], None], file: str = "model.safetensors") -> Change:
    def apply(path: Path) -> None:
        arrays = load_file(path / file)
        change(arrays)
        save_file(arrays, path / file)

    return apply


def put(name: str, value: np.ndarray) -> Change:
    return weights(lambda arrays: arrays.update({name: value}))


def drop(name: str) -> Change:
    return weights(lambda arrays: void(arrays.pop(name)))


def pickled(path: Path) -> None:
    (path / "model.safetensors").unlink()
    (path / "pytorch_model.bin").write_bytes(b"\x80\x04.")


def added(**changes: Any) -> Change:
    return tokenizer(lambda value: value["added_tokens"][1].update(changes))


SPLIT = {"type": "Split", "pattern": {"Regex": r"\w+|\W+"}, "behavior": "Isolated", "invert": False}
LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
ONE = np.ones((64,), np.float32)
EMBEDDING, DOWN = "model.embed_tokens.weight", "model.layers.1.mlp.down_proj.weight"
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}

REFUSED: list[tuple[str, Change, str]] = [
    # the config
    ("llama", config(model_type="mistral"), "model_type 'mistral' is not one of"),
    ("gemma3", config(model_type="gemma3"), "a gemma3 with pictures"),
    ("llama", config(auto_map={"AutoConfig": "x.Y"}), "it wants code from its own repository"),
    ("llama", config(quantization_config={"bits": 4}), "its weights are quantized"),
    ("llama", config(architectures=["LlamaForSequenceClassification"]), "is not one for causal language modelling"),
    ("llama", config(hidden_act="gelu"), "its activation is 'gelu', not silu"),
    ("gemma3", config(hidden_activation="silu"), "its activation is 'silu', not gelu_pytorch_tanh"),
    ("llama", config(attention_bias=True), "attention_bias is True"),
    ("llama", config(mlp_bias=True), "mlp_bias is True"),
    ("qwen3", config(attention_bias=1), "attention_bias is 1"),
    ("gemma3", config(final_logit_softcapping=30.0), "final_logit_softcapping is 30.0"),
    ("gemma3", config(attn_logit_softcapping=50.0), "attn_logit_softcapping is 50.0"),
    ("gemma3", config(use_bidirectional_attention=True), "use_bidirectional_attention is True"),
    ("gemma3", config(query_pre_attn_scalar=64), "query_pre_attn_scalar is 64"),
    ("gemma3", config(num_hidden_layers=62, layer_types=None), "every gemma3 of 62 layers for the one of 27B"),
    ("gemma3", config(layer_types=["chunked_attention"] * 7), "a kind that is not known"),
    ("gemma3", config(layer_types=["full_attention"] * 6), "the kind of each of the 7 layers"),
    ("qwen2", config(use_sliding_window=True), "sliding-window attention is not supported for qwen2"),
    ("qwen3", config(layer_types=["sliding_attention"] * 3), "sliding-window attention is not supported for qwen3"),
    ("llama", config(sliding_window=32), "sliding-window attention is not supported for llama"),
    ("llama", config(logit_scale=2.0), "the key 'logit_scale' is not known"),
    ("llama", config(num_attention_heads=3), "3 heads, 2 key-value heads"),
    ("llama", config(head_dim=15), "key-value heads of 15 do not fit"),
    ("qwen3", config(head_dim=...), "it lacks head_dim"),
    ("llama", config(hidden_size="64"), "hidden_size must be a whole number"),
    ("llama", config(hidden_size=True), "hidden_size must be a whole number"),
    ("llama", config(num_hidden_layers=1 << 20), "1,048,576 layers"),
    ("llama", config(vocab_size=...), "vocab_size must be a whole number above 0, not None"),
    ("llama", config(rms_norm_eps=0), "rms_norm_eps must be a number above 0"),
    ("llama", config(tie_word_embeddings="yes"), "tie_word_embeddings must be true or false"),
    ("llama", lambda p: void((p / "config.json").write_text("{" * 50_000)), "not JSON"),
    ("llama", lambda p: void((p / "config.json").write_text('{"a":' * 50_000)), "nested too deeply"),
    ("llama", lambda p: void((p / "config.json").write_text('{"a": 1, "a": 1}')), "the name 'a' stands twice"),
    ("llama", lambda p: void((p / "config.json").write_text('{"rope_theta": NaN}')), "NaN is no number"),
    ("llama", lambda p: void((p / "config.json").write_text("[]")), "an object is needed, not list"),
    # the rope
    ("llama", config(rope_theta=...), "its rope base is not known"),
    ("llama", config(rope_theta=-1), "rope_theta must be a number above 0"),
    ("llama", config(rope_theta=float("inf")), "Infinity is no number"),
    ("llama", lambda p: void((p / "config.json").write_text(
        (p / "config.json").read_text("utf-8").replace("50000.0", "1e999"))), "rope_theta must be a number above 0"),
    ("gemma3", config(rope_local_base_freq=...), "rope_local_base_freq must be a number above 0"),
    ("llama", config(rope_scaling=YARN), "rope scaling .*yarn.* is not supported"),
    ("qwen2", config(rope_scaling={"type": "dynamic", "factor": 2.0}), "rope scaling .*dynamic.* is not supported"),
    ("qwen2", config(rope_scaling=YARN | {"rope_type": "llama3"}), "rope scaling .*llama3.* is not supported"),
    ("llama", config(rope_scaling={"type": "linear", "factor": 0}), "factor must be a number above 0"),
    ("llama", config(rope_parameters={"rope_type": "default", "rope_theta": 1e6}),
     "rope_theta is 50000.0, but rope_parameters says 1000000.0"),
    ("llama", config(rope_parameters={"rope_type": "default"}, rope_theta=...), "rope_theta must be a number"),
    ("llama", config(rope_parameters={"rope_theta": 5e4, **YARN}), "rope scaling .*yarn.* is not supported"),
    ("gemma3", config(rope_parameters={"rope_type": "default", "rope_theta": 1e6}),
     "must hold full_attention and sliding_attention"),
    # the weights
    ("llama", pickled, r"has no model.safetensors \('pytorch_model.bin' is a pickle"),
    ("llama", lambda p: (p / "model.safetensors").unlink(), "has no model.safetensors$"),
    ("llama", lambda p: void((p / "model.safetensors.index.json").write_text("{}")), "which is meant?"),
    ("llama", drop(DOWN), f"the tensor {DOWN} is missing"),
    ("llama", put("model.layers.3.mlp.down_proj.weight", ONE), "is not one of a llama model"),
    ("llama", put("model.layers.0.self_attn.rotary_emb.inv_freq", ONE), "is not one of a llama model"),
    ("llama", put(DOWN, np.ones((64, 64), np.float32)), r"has the shape \[64, 64\], not \[64, 128\]"),
    ("llama", put(DOWN, np.ones((64 * 128,), np.float32)), r"has the shape \[8192\], not \[64, 128\]"),
    ("llama", put(DOWN, np.ones((64, 128), np.int32)), "is I32; known: F32, F16, BF16"),
    ("qwen2", drop("model.layers.0.self_attn.k_proj.bias"), "k_proj.bias is missing"),
    ("qwen3", drop("model.layers.0.self_attn.k_norm.weight"), "k_norm.weight is missing"),
    ("gemma3", drop("model.layers.4.pre_feedforward_layernorm.weight"), "pre_feedforward_layernorm.weight is missing"),
    ("llama", config(num_key_value_heads=4), r"k_proj.weight has the shape \[32, 64\], not \[64, 64\]"),
    ("llama", config(tie_word_embeddings=False), r"lm_head.weight is missing \(tie_word_embeddings is false\)"),
    ("llama", config(tie_word_embeddings=...), "lm_head.weight is missing"),
    ("llama", put("lm_head.weight", np.ones((480, 64), np.float32)), "tie_word_embeddings is true, but lm_head.weight"),
    ("llama", config(vocab_size=479), r"embed_tokens.weight has the shape \[480, 64\], not \[479, 64\]"),
    # the tokenizer
    ("llama", lambda p: (p / "tokenizer.json").unlink(), "tokenizer.json: there is no such file"),
    ("llama", settings(chat_template=...), "it has no chat template"),
    ("llama", settings(chat_template=[{"name": "tools", "template": "x"}]), "it has no chat template"),
    ("llama", lambda p: void((p / "chat_template.jinja").write_text("  ")), "it has no chat template"),
    ("llama", settings(auto_map={"AutoTokenizer": ["x.Y", None]}), "it wants code from its own repository"),
    ("llama", settings(add_bos_token=True), "add_bos_token is True"),
    ("llama", model(type="Unigram"), "its model is not a BPE"),
    ("llama", model(ignore_merges=True), r"\(Split \+ ByteLevel, ignore_merges\) is not one that is known"),
    ("llama", model(byte_fallback=True), "byte_fallback does not go with"),
    ("llama", model(end_of_word_suffix="</w>"), "end_of_word_suffix is not supported"),
    ("llama", model(merges=["a b c"]), "is not two tokens"),
    ("llama", model(merges=["a b", 5]), "the merge 5 is not two tokens"),
    ("llama", model(merges=[["a", "b"], ["a", 5]]), r"the merge \['a', 5\] is not two tokens"),
    ("llama", model(merges=[["q", "qqq"]]), "is of or to no token"),
    ("llama", model(merges=[["", "q"]]), "is of or to no token"),
    ("llama", tokenizer(lambda t: t.update(pre_tokenizer={"type": "Whitespace"})), r"\(Whitespace\) is not one"),
    ("llama", tokenizer(lambda t: t.update(pre_tokenizer=None)), "its pre-tokenizer is not one that is known"),
    ("llama", tokenizer(lambda t: t["pre_tokenizer"].update(pretokenizers=[SPLIT, LEVEL])), r"\(Split \+ ByteLevel\)"),
    ("llama", tokenizer(lambda t: t["pre_tokenizer"]["pretokenizers"][0].update(invert=True)), "is not one that is"),
    ("llama", tokenizer(lambda t: t["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True)), "is not one"),
    ("llama", tokenizer(lambda t: t.update(normalizer={"type": "NFKC"})), r"its normalizer \('NFKC'\)"),
    ("llama", tokenizer(lambda t: t.update(post_processor={"type": "RobertaProcessing"})), "more than put one token"),
    ("llama", tokenizer(lambda t: t["model"]["vocab"].update(new=3)), "token 'new' has the id 3"),
    ("llama", tokenizer(lambda t: t["model"]["vocab"].update(new=1 << 40)), "token 'new' has the id"),
    ("llama", tokenizer(lambda t: t["model"]["vocab"].update(new=99_999)), "token ids are full of holes"),
    ("llama", tokenizer(lambda t: t["model"]["vocab"].update(new=480)), "481 tokens, but the embedding only 480 rows"),
    ("llama", added(lstrip=True), r"the added token '<\|im_start\|>' has lstrip"),
    ("llama", added(single_word=True), "has single_word"),
    ("llama", added(id=7), "has the id of another token"),
    ("llama", added(content=""), "the added token '' has the id 1"),
]  # fmt: skip


@pytest.mark.parametrize(("architecture", "change", "words"), REFUSED)
def test_it_is_refused_in_one_line(architecture: str, change: Change, words: str, made: Path, tmp_path: Path) -> None:
    path = tmp_path / architecture
    shutil.copytree(made / architecture, path)
    source.read(path)
    change(path)
    with pytest.raises(ModelError, match=words) as refused:
        source.read(path)
    assert str(tmp_path) in str(refused.value) and "\n" not in str(refused.value) and len(str(refused.value)) < 500


def test_names_that_change_nothing_are_left_out(made: Path, tmp_path: Path) -> None:
    """transformers writes _model_name_or_path where it read a GGUF file."""
    path = tmp_path / "m"
    shutil.copytree(made / "llama", path)
    tiny_hf.edit(path / "config.json", _model_name_or_path="Some model", _name_or_path="/home/me/model")
    found = source.read(path)
    write_model(tmp_path / "m.gguf", found, "F32")
    written = beside.files(found, Gguf(tmp_path / "m.gguf"))
    assert b"name_or_path" not in b"".join(written.values())


def test_a_missing_chat_template_can_be_given(made: Path, tmp_path: Path) -> None:
    path = shutil.copytree(made / "llama", tmp_path / "m")
    settings(chat_template=...)(path)
    write_model(tmp_path / "m.gguf", source.read(path, chat_template="{{ messages }}"), "F16")
    assert Gguf(tmp_path / "m.gguf").fields["tokenizer.chat_template"] == "{{ messages }}"
    write_model(tmp_path / "n.gguf", source.read(tmp_path / "m.gguf", chat_template="{{ other }}"), "F16")
    assert Gguf(tmp_path / "n.gguf").fields["tokenizer.chat_template"] == "{{ other }}"


def test_a_chat_template_in_its_own_file_or_among_several(made: Path, tmp_path: Path) -> None:
    path = shutil.copytree(made / "llama", tmp_path / "m")
    several = [{"name": "tools", "template": "t"}, {"name": "default", "template": "d"}]
    settings(chat_template=several)(path)
    assert source.read(path).vocabulary.chat_template == "d"  # type: ignore[union-attr]
    (path / "chat_template.jinja").write_text("own", "utf-8")
    assert source.read(path).vocabulary.chat_template == "own"  # type: ignore[union-attr]


def test_a_tied_head_may_be_saved_too(made: Path, tmp_path: Path) -> None:
    path = shutil.copytree(made / "llama", tmp_path / "m")
    write_model(tmp_path / "a.gguf", source.read(path), "F16")
    weights(lambda arrays: arrays.update({"lm_head.weight": arrays[EMBEDDING].copy()}))(path)
    write_model(tmp_path / "b.gguf", source.read(path), "F16")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_what_ends_a_reply_comes_from_tokenizer_and_configs(made: Path, tmp_path: Path) -> None:
    path = shutil.copytree(made / "llama", tmp_path / "m")
    config(eos_token_id=[2, 0])(path)
    found = source.read(path).vocabulary
    assert found is not None and (found.eos, found.end) == (2, 0)
    settings(eos_token=None)(path)
    found = source.read(path).vocabulary
    assert found is not None and (found.eos, found.end) == (0, 2)
    config(eos_token_id=None)(path)
    (path / "generation_config.json").unlink()
    with pytest.raises(ModelError, match="nothing says where a reply ends"):
        source.read(path)


def test_tokens_that_llama_cpp_makes_control_tokens_are_written_as_such(made: Path, tmp_path: Path) -> None:
    path = shutil.copytree(made / "llama", tmp_path / "m")
    added(content="<|fim_prefix|>", special=False)(path)
    tokenizer(lambda t: t["model"]["vocab"].update({"<|fim_prefix|>": t["model"]["vocab"].pop("<|im_start|>")}))(path)
    write_model(tmp_path / "m.gguf", source.read(path), "F16")
    assert list(Gguf(tmp_path / "m.gguf").fields["tokenizer.ggml.token_type"][:4]) == [3, 3, 3, 1]


def tensors(change: Callable[[dict[str, np.ndarray]], None]) -> Change:
    return weights(change, "adapter_model.safetensors")


def adapter(**changes: Any) -> Change:
    return lambda path: void(tiny_hf.edit(path / "adapter_config.json", **changes))


Q = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
BAD_ADAPTERS: list[tuple[Change, str]] = [
    (adapter(peft_type="IA3"), "peft_type 'IA3' is not LORA"),
    (adapter(use_dora=True), "use_dora is True"),
    (adapter(bias="all"), "bias is 'all'"),
    (adapter(modules_to_save=["lm_head"]), "modules_to_save is"),
    (adapter(rank_pattern={"q_proj": 8}), "rank_pattern is"),
    (adapter(alpha_pattern={"q_proj": 8}), "alpha_pattern is"),
    (adapter(fan_in_fan_out=True), "fan_in_fan_out is True"),
    (adapter(anything=1), "anything is 1"),
    (adapter(init_lora_weights="pissa"), "it began as 'pissa', which changed its base"),
    (adapter(r=5), "has no A and B of rank 5"),
    (adapter(r=0), "r must be a whole number"),
    (adapter(lora_alpha="8"), "lora_alpha must be a number"),
    (tensors(lambda t: void(t.pop(Q))), "has no A and B of rank 4"),
    (tensors(lambda t: t.update({Q: np.full_like(t[Q], np.nan)})), "holds a value that is not finite"),
    (tensors(lambda t: t.update({Q: np.ones((4, 65), np.float32)})), "q_proj is 64 x 65, but"),
    (tensors(lambda t: t.update({"base_model.model.lm_head.weight": ONE})), "is no part of a LoRA on a linear layer"),
    (tensors(lambda t: t.update({k.replace("layers.0", "layers.9"): v for k, v in t.items()})), "has no linear layer"),
    (tensors(lambda t: t.update({k.replace("q_proj", "r_proj"): v for k, v in t.items()})), "has no linear layer"),
    (lambda p: void((p / "adapter_model.safetensors").rename(p / "adapter_model.bin")), "is a pickle"),
]


@pytest.mark.parametrize(("change", "words"), BAD_ADAPTERS)
def test_an_adapter_is_refused_in_one_line(change: Change, words: str, made: Path, tmp_path: Path) -> None:
    path = shutil.copytree(made / "adapter", tmp_path / "a")
    source.read(path, base=made / "llama")
    change(path)
    with pytest.raises(ModelError, match=words) as refused:
        source.read(path, base=made / "llama")
    assert str(path) in str(refused.value) and "\n" not in str(refused.value)


def test_an_adapter_of_another_architecture_is_refused(made: Path) -> None:
    for other in ("qwen3", "gemma3"):
        with pytest.raises(ModelError, match=r"_proj is \d+ x 64, but"):
            source.read(made / "adapter", base=made / other)


def test_a_rank_stabilised_adapter_has_its_own_scale(made: Path, tmp_path: Path) -> None:
    path = shutil.copytree(made / "adapter", tmp_path / "a")
    adapter(use_rslora=True)(path)
    lora = source.read(path, base=made / "llama").adapters["adapter"]
    assert lora.alpha / lora.rank == pytest.approx(8 / 4**0.5)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no such file or folder"):
        source.read(tmp_path / "x")
    with pytest.raises(ConfigError, match="neither a model's folder nor a GGUF file"):
        source.read(tmp_path)


@pytest.mark.parametrize(("head", "unit", "tail", "words"), [
    (b'{"model": [', b"[],", b"1]}", "more than 71,"), (b'{"model": {"a": [', b'"ab",', b"1]}}", "more than 71,"),
    (b'{"model": ', b'{"a":', b"1}", "more than 71,"), (b'{"model": "', b"a", b'"}', "its model is not a BPE"),
    (b'{"model": "', b" ,[", b'"}', "more than 71,"), (b" ", b" ", b"{}", "its model is not a BPE"),
])  # fmt: skip
def test_a_tokenizer_of_more_than_the_model_can_need_is_refused_in_little_memory(
    head: bytes, unit: bytes, tail: bytes, words: str, made: Path, tmp_path: Path
) -> None:
    """Not parsed: what is made of ``[],`` takes thirty times its bytes. By size where it is larger still."""
    folder = shutil.copytree(made / "llama", tmp_path / "x")
    rows = json.loads((folder / "config.json").read_text())["vocab_size"]
    assert (1 << 16) + vocabulary.VALUES * rows in range(71_000, 72_000)
    for size, why in ((1_000_000, words), (30_000_000, "more than 1,")):
        (folder / "tokenizer.json").write_bytes(head + unit * (size // len(unit)) + tail)
        tracemalloc.start()
        with pytest.raises(ModelError, match=why):
            source.read(folder)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 5_000_000


def test_the_largest_real_tokenizer_is_within_the_bounds() -> None:
    """Gemma's, made from its GGUF and indented as it is published: 33,249,960 bytes, 1,858,751 values."""
    assert vocabulary.VALUES * 262_144 > 1_858_751 * 1.5
    assert min(vocabulary.MAX_TOKENIZER, vocabulary.BYTES * 262_144) > 33_249_960 * 1.2


@pytest.mark.parametrize(("key", "code", "value", "words"), [
    ("llama.rope.dimension_count", 4, 8, "it rotates 8 of the 16 numbers of a head"),
    ("llama.attention.value_length", 4, 8, r"attn_v.weight has the shape \[32, 64\], its metadata gives \[16, 64\]"),
    ("llama.rope.scaling.type", 8, "yarn", r"rope scaling \('yarn'\)"),
    ("llama.block_count", 4, 4, "it lacks the tensor blk.3.attn_q.weight"),
    ("llama.block_count", 4, 2, "it has a layer 2, but its metadata says 2 layers"),
    ("llama.feed_forward_length", 4, 64, r"blk.0.ffn_gate.weight has the shape \[128, 64\]"),
    ("general.architecture", 8, "mamba", "'mamba' is not one of llama, qwen2, qwen3, gemma3"),
])  # fmt: skip
def test_a_gguf_is_refused_in_one_line(
    key: str, code: int, value: Any, words: str, made: Path, tmp_path: Path
) -> None:
    write_model(tmp_path / "m.gguf", source.read(made / "llama"), "F16")
    fields, heads, data = raw_gguf.parts(tmp_path / "m.gguf")
    fields[key] = (code, value)
    path = tmp_path / "bad.gguf"
    path.write_bytes(raw_gguf.build(fields, [raw_gguf.tensor(*head) for head in heads], data))
    with pytest.raises(ModelError, match=words) as refused:
        source.read(path)
    assert str(path) in str(refused.value) and "\n" not in str(refused.value)


ODD: tuple[Any, ...] = (None, True, 0, -1, 3, 1 << 70, 0.5, -1e300, "", "x", "a\0", [], [1], [[]], {}, {"type": "x"})


def altered(value: Any, rng: random.Random) -> Any:
    """The value with one place in it, at any depth, replaced, taken away or doubled."""
    if isinstance(value, (dict, list)) and value and rng.random() < 0.9:
        key = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
        out = value.copy()
        match rng.random():
            case x if x < 0.1:
                del out[key]
            case x if x < 0.15 and isinstance(out, list):
                out.insert(key, out[key])
            case _:
                out[key] = altered(out[key], rng)
        return out
    return rng.choice(ODD)


@pytest.mark.parametrize(("name", "file"), [
    ("llama", "config.json"), ("gemma3", "config.json"), ("llama", "tokenizer.json"),
    ("spaces", "tokenizer.json"), ("llama", "tokenizer_config.json"), ("adapter", "adapter_config.json"),
])  # fmt: skip
def test_no_odd_value_anywhere_ends_in_anything_but_a_line(name: str, file: str, made: Path, tmp_path: Path) -> None:
    """200 alterations of each file; what is not refused can be written."""
    path = tmp_path / "m"
    if name == "spaces":
        tiny_hf.folder(path, "gemma3", vocabulary="gemma", extra=3)
    else:
        shutil.copytree(made / name, path)
    rng, refused, whole = random.Random(f"{name}/{file}"), 0, json.loads((path / file).read_text("utf-8"))
    for _ in range(200):
        (path / file).write_text(json.dumps(altered(whole, rng)), "utf-8")
        try:
            found = source.read(path, base=made / "llama" if name == "adapter" else None)
            write_model(tmp_path / "m.gguf", found, "F16")
        except PopiError as e:
            refused += 1
            assert "\n" not in str(e) and len(str(e)) < 600
    assert refused > 20
