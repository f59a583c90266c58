"""The importance matrix: which inputs of each matrix carry most, from running calibration text through the model.

For a matrix with rows of K values it is E[x²] over the tokens' inputs x, shape [K] (llama.cpp's own definition, its
``tools/imatrix``); the quantizer then weighs rounding errors by it. Collected without torch (``activations``). As in
llama.cpp, the head and the embedding have none.
"""

from __future__ import annotations

import random
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from popi_edge.errors import ConfigError, ModelError
from popi_edge.models.gguf import Gguf

MAX_TEXT = 64 << 20
MEMBER = "popi.imatrix.of"


@dataclass(frozen=True)
class ImportanceMatrix:
    """``values``: a tensor's name → E[x²] of its inputs, float32 [K]; over ``tokens`` tokens of the calibration text
    whose SHA-256 (hex) is ``text``."""

    values: Mapping[str, NDArray[np.float32]]
    tokens: int
    text: str

    def check(self, gguf: Gguf) -> None:
        """Raises ModelError where it is not of this model or holds what is no finite number of at least 0."""
        for name, value in self.values.items():
            tensor = gguf.tensors.get(name)
            if tensor is None or value.shape != tensor.shape[-1:] or value.dtype != np.float32:
                raise ModelError(f"the importance matrix is not of {gguf.path}: {name!r:.80} does not fit")
            if not np.isfinite(value).all() or (value < 0).any():
                raise ModelError(f"the importance matrix holds what is no importance ({name!r:.80})")

    def save(self, path: Path) -> None:
        """Write it as an .npz file. Raises OSError."""
        np.savez(path, **{MEMBER: np.array([str(self.tokens), self.text])}, **self.values)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: Path) -> ImportanceMatrix:
        """Read what ``save`` wrote; nothing is unpickled. Raises ModelError."""
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as data:
                values = {n: np.ascontiguousarray(data[n], np.float32) for n in data.files if n != MEMBER}
                tokens, text = (str(x) for x in data[MEMBER])
                return cls(values, int(tokens), text)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as e:
            raise ModelError(f"{path}: not an importance matrix: {' '.join(str(e).split())[:120]}") from None


def calibration_text(seed: int, file: Path | None = None) -> str:
    """Text to calibrate on: the user's ``file`` (UTF-8), else prompts and replies of the project's own corpus in an
    order drawn by ``seed``. Raises ConfigError: no such file, not text, too large, or no corpus here."""
    if file is not None:
        try:
            size = file.stat().st_size
            if size > MAX_TEXT:
                raise ConfigError(f"{file}: {size:,} bytes of calibration text; at most {MAX_TEXT:,}")
            text = file.read_text("utf-8")
        except OSError as e:
            raise ConfigError(f"cannot read the calibration text {file}: {e.strerror}") from None
        except UnicodeDecodeError as e:
            raise ConfigError(f"{file}: the calibration text is not UTF-8: {e.reason} at byte {e.start}") from None
        if not text.strip():
            raise ConfigError(f"{file}: the calibration text is empty")
        return text
    from popi_training import corpus

    if not corpus.FOLDER.is_dir():
        raise ConfigError("the project's corpus is not in this install; name a file of calibration text")
    whole = corpus.load()
    pairs = sorted(whole.pairs, key=lambda p: p.id)
    random.Random(f"calibration:{seed}").shuffle(pairs)
    return "\n\n".join(part for p in pairs for part in (whole.prompts[p.prompt], *p.replies.values()))
