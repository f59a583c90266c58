"""Engines: one Protocol, two ways to run the same GGUF and the same adapters.

onnx.py        ONNX Runtime, the default: wheels only, nothing requantized
llama_cpp.py   llama.cpp through llama-cpp-python (extra ``llama``)
base.py        what both share: lanes, prefix reuse, sampling under a mask, scoring
"""

from popi_edge.engines.base import Completion, Constraint, Engine, Score, open_engine
from popi_edge.quiet import quiet

quiet()  # before a module of this room loads ONNX Runtime

__all__ = ["Completion", "Constraint", "Engine", "Score", "open_engine"]
