"""From trained checkpoints to what a device loads.

source.py     what a checkpoint is: a Hugging Face folder (hf.py, bounded.py, safetensors_header.py, vocabulary.py,
              spm.py), a PEFT adapter on one (peft_adapter.py), a run of ours, a GGUF
to_gguf.py    any of them → GGUF (extra ``export``); architectures.py says how llama, qwen2, qwen3, gemma3 look there
quantize.py   GGUF → GGUF by llama.cpp's quantizer, in a process of its own (quantize_child.py); what fell back
imatrix.py    the importance matrix, collected through llama.cpp's callback (activations.py, native.py), no torch
runners.py    one model on torch, llama.cpp, ONNX Runtime or popi's engines, from outside
verify.py     every written file against a reference: parity.py fuzz.py tasks.py measure.py, and popi_training's
              limits.py → verdict
to_onnx.py    GGUF → ONNX, nothing requantized (onnx_file.py, genai.py); optimum_way.py: from a folder, by optimum
pipeline.py   popi export of whole models (cli.py): plan.py, what is asked; stages.py, resumable; checks.py, compared;
              beside.py licences.py card.py, the texts that go with it
bundle.py     popi export of a run's adapters on a base that devices know
"""
