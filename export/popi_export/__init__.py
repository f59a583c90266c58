"""From trained checkpoints to what a device loads.

to_gguf.py    llama checkpoints and LoRA adapters → GGUF (extra ``export``)
quantize.py   GGUF → GGUF by llama.cpp's quantizer, in a process of its own (quantize_child.py); what fell back
imatrix.py    the importance matrix, collected through llama.cpp's callback (activations.py, native.py), no torch
runners.py    one model on torch, llama.cpp, ONNX Runtime or popi's engines, from outside
verify.py     every written file against a reference: parity.py fuzz.py tasks.py measure.py, limits.py → verdict
"""
