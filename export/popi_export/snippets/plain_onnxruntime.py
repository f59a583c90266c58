"""Continue a text with a model of this folder: ``pip install onnxruntime tokenizers``, nothing else.

python plain_onnxruntime.py MODEL.onnx "TEXT" [NAME.onnx_adapter]

TEXT is used as it is, control tokens included; ``tokenizer.json`` and ``config.json`` lie beside the model.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
from tokenizers import Tokenizer

NEW_TOKENS = 64


def main(model: Path, text: str, adapter: Path | None = None) -> None:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    tokenizer = Tokenizer.from_file(str(model.parent / "tokenizer.json"))
    ends = json.loads((model.parent / "config.json").read_text("utf-8"))["eos_token_id"]
    run = ort.RunOptions()
    if adapter is not None:
        lora = ort.LoraAdapter()
        lora.Load(str(adapter))
        run.add_active_adapter(lora)
    inputs = {i.name: i.shape for i in session.get_inputs()}
    past = {name: np.zeros((1, shape[1], 0, shape[3]), np.float32)
            for name, shape in inputs.items() if name.startswith("past_key_values.")}  # fmt: skip
    outputs = [o.name for o in session.get_outputs()]
    new = tokenizer.encode(text, add_special_tokens=False).ids
    length = 0
    made: list[int] = []
    while len(made) < NEW_TOKENS:
        positions = np.arange(length, length + len(new), dtype=np.int64)[None]
        length += len(new)
        feeds = {"input_ids": np.array([new], np.int64), "position_ids": positions,
                 "attention_mask": np.ones((1, length), np.int64)}  # fmt: skip
        feeds = {name: value for name, value in feeds.items() if name in inputs}
        found = dict(zip(outputs, session.run(outputs, {**feeds, **past}, run), strict=True))
        past = {name: found[name.replace("past_key_values", "present")] for name in past}
        token = int(found["logits"][0, -1].argmax())
        if token in (ends if isinstance(ends, list) else [ends]):
            break
        new = [token]
        made.append(token)
    print(tokenizer.decode(made))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]) if len(sys.argv) > 3 else None)
