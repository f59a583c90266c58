"""What a CHECKPOINT is, told by what is in it: a Hugging Face folder, a PEFT adapter's folder, one of our runs, a GGUF.

Whichever it is, a Source gives GGUF metadata, GGUF tensors one by one, and LoRA adapters by name. Nothing of the
weights is kept in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from popi_edge.config import Settings
from popi_edge.errors import ConfigError, ModelError
from popi_edge.models import precheck
from popi_edge.models.gguf import STRING, Gguf, Tensor
from popi_edge.models.names import gguf_name
from popi_export import architectures, hf, peft_adapter, vocabulary
from popi_export.architectures import Config, Field
from popi_export.bounded import read_json
from popi_export.peft_adapter import Lora
from popi_export.vocabulary import Vocabulary

Array = NDArray[np.float32]
Part = tuple[str, tuple[int, ...], Callable[[], Array]]
"""A tensor: GGUF's name, its shape (rows first), and what reads its numbers in GGUF's order."""
TEMPLATE = "tokenizer.chat_template"
COPIED_NOT = ("general.file_type", "general.quantization_version", "general.alignment")


@dataclass(frozen=True)
class Source:
    """A checkpoint. ``kind`` is ``hf``, ``peft``, ``run`` or ``gguf``; ``file`` the GGUF that holds the base's weights,
    where one does; ``folder`` the Hugging Face folder that does otherwise; ``run`` what bundle.read gave."""

    kind: str
    path: Path
    config: Config
    fields: list[Field]
    file: Gguf | None = None
    folder: Path | None = None
    weights: hf.Weights | None = None
    vocabulary: Vocabulary | None = None
    adapters: Mapping[str, Lora] = field(default_factory=dict)
    run: Any = None
    notes: tuple[str, ...] = ()

    def tensors(self) -> Iterator[Part]:
        """Every tensor of the base, in the order in which a file holds them."""
        if self.file is not None:
            for name, tensor in self.file.tensors.items():
                yield name, tensor.shape, lambda t=tensor: dequantize(t)  # type: ignore[misc]
            return
        weights, c = self.weights, self.config
        assert weights is not None
        for name, shape in architectures.tensors(c):
            yield gguf_name(name, c.architecture), shape, lambda n=name: architectures.to_gguf(n, weights.load(n), c)  # type: ignore[misc]
        if (factors := architectures.rope_factors(c)) is not None:
            yield architectures.ROPE_FACTORS, factors.shape, lambda: factors


def dequantize(tensor: Tensor) -> Array:
    """A tensor of a GGUF in float32. Raises ModelError for a value that is not finite."""
    if tensor.type in ("F32", "F16", "Q4_0", "Q4_1", "Q8_0"):
        value = tensor.dequantize()
    else:
        import gguf

        kind = gguf.GGMLQuantizationType[tensor.type]
        rows = tensor.data.reshape(*tensor.shape[:-1], -1)
        value = np.asarray(gguf.dequantize(rows, kind), np.float32).reshape(tensor.shape)
    if not np.isfinite(value).all():
        raise ModelError(f"tensor {tensor.name!r:.80} holds a value that is not finite (NaN or infinite)")
    return value


def read(
    path: Path, settings: Settings | None = None, *, base: Path | None = None, chat_template: str | None = None
) -> Source:
    """What is at ``path``; ``base`` is where a PEFT adapter's base is; ``chat_template`` one to use instead of the
    model's own.

    Raises ConfigError (a base where none is needed or none where one is, settings lacking for a run), ModelError.
    """
    if path.is_file() and path.suffix == ".gguf":
        found = _gguf(path, chat_template)
    elif (path / peft_adapter.CONFIG).is_file():
        if base is None:
            named = read_json(path / peft_adapter.CONFIG, peft_adapter.MAX_CONFIG).get("base_model_name_or_path")
            raise ConfigError(f"{path} is an adapter; say with --base where its base ({named!r:.80}) is")
        return _peft(path, read(base, chat_template=chat_template))
    elif (path / hf.CONFIG).is_file():
        found = _folder(path, chat_template)
    elif path.exists():
        if settings is None:
            raise ConfigError(f"{path} is neither a model's folder nor a GGUF file")
        found = _run(path, settings)
    else:
        raise ModelError(f"{path}: there is no such file or folder")
    if base is not None:
        raise ConfigError(f"{path} is no adapter, so it needs no base")
    return found


def _folder(path: Path, chat_template: str | None) -> Source:
    value = read_json(path / hf.CONFIG, hf.MAX_CONFIG)
    config = hf.parse_config(value, path / hf.CONFIG)
    weights = hf.Weights(path)
    hf.check(config, weights)
    ends = _ends(value)
    if (path / "generation_config.json").is_file():
        ends |= _ends(read_json(path / "generation_config.json", hf.MAX_CONFIG))
    try:
        found = vocabulary.read(path, ends, chat_template=chat_template, rows=config.vocabulary)
        words = found.padded(config.vocabulary)
    except ModelError as e:
        raise ModelError(str(e) if str(path) in str(e) else f"{path}: {e}") from None
    fields = [*architectures.metadata(config), *words.fields()]
    return Source("hf", path, config, fields, folder=path, weights=weights, vocabulary=words, notes=words.notes)


def _ends(value: Mapping[str, Any]) -> set[int]:
    found = value.get("eos_token_id")
    return {i for i in (found if isinstance(found, list) else [found]) if type(i) is int}


def _gguf(path: Path, chat_template: str | None = None) -> Source:
    file = precheck.model(path)
    config = architectures.config_of(file)
    shapes = {gguf_name(name, config.architecture): shape for name, shape in architectures.tensors(config)}
    for name, shape in shapes.items():
        if name not in file.tensors or file.tensors[name].shape != shape:
            raise ModelError(f"{path}: it has no {name} of the shape {list(shape)}")
    if odd := sorted(set(file.tensors) - set(shapes) - {architectures.ROPE_FACTORS}):
        raise ModelError(f"{path}: the tensor {odd[0]!r:.80} is not one of a {config.architecture} model")
    fields = [(key, file.types[key], value) for key, value in file.fields.items() if key not in COPIED_NOT]
    if chat_template is not None:
        fields = [f for f in fields if f[0] != TEMPLATE] + [(TEMPLATE, STRING, chat_template)]
    elif not file.fields.get(TEMPLATE):
        raise ModelError(f"{path}: it has no chat template; give one with an option")
    return Source("gguf", path, config, fields, file=file)


def _peft(path: Path, base: Source) -> Source:
    if base.adapters:
        raise ConfigError(f"{base.path} has adapters of its own; an adapter's base must be a model")
    lora = peft_adapter.read(path)
    peft_adapter.check(lora, base.config, path)
    return replace(base, kind="peft", path=path, adapters={"adapter": lora})


def _run(path: Path, settings: Settings) -> Source:
    from popi_export import bundle

    return of_checkpoint(path, bundle.read(path, settings))


def of_checkpoint(path: Path, checkpoint: Any) -> Source:
    """A run's checkpoint (``bundle.read``) at ``path``. Raises ModelError."""
    found = _gguf(checkpoint.file)
    lora = checkpoint.recipe.lora
    adapters = {}
    for role, layers in checkpoint.layers.items():
        adapters[role] = Lora(dict(layers), float(lora.alpha), lora.rank)
        peft_adapter.check(adapters[role], found.config, path)
    return replace(found, kind="run", path=path, adapters=adapters, run=checkpoint)
