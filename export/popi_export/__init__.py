"""From trained checkpoints to what a device loads.

to_gguf.py    llama checkpoints and LoRA adapters → GGUF (extra ``export``)
"""
