"""What libraries around us would send home, switched off before any of them is imported.

ONNX Runtime's official builds for Linux and macOS (1.29 and later) look up and call a server of Microsoft's, and keep a
database under ``~/.cache/Microsoft``, unless ``ORT_DISABLE_TELEMETRY`` is set before it is loaded; its function
``disable_telemetry_events`` comes too late for the first events.

It does NOT help where a program has loaded ONNX Runtime before popi: set the variable there. ``popi doctor --offline``
watches for what else might call.
"""

from __future__ import annotations

import os

TELEMETRY = {
    "ORT_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DATAFOG_NO_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
}
"""Environment variable → its value: of onnxruntime, huggingface_hub, datafog, and of whoever honours DO_NOT_TRACK."""
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
"""The same for what would be fetched from a hub: set for our own commands, not for programs that embed us."""


def quiet(*, hub: bool = True) -> None:
    """Switch telemetry off, and with ``hub=False`` also the hubs."""
    os.environ.update(TELEMETRY)
    if not hub:
        os.environ.update(OFFLINE)
