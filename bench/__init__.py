"""Every figure the README quotes, each from one command: ``python -m bench.NAME [--json]``.

startup.py         what ``import popi_edge`` costs over bare Python, against the limit of 100 ms
engine.py          prefill, decode, memory of an engine against bare llama.cpp on the same tokens, in one run
training.py        one joint training step against TRL doing the same job: time of its parts, peak memory
guard_attacks.py   made-up secrets in summaries that an attacker made: how many get past the guard
guard_false_alarms.py   how many summaries that say nothing but a preference are blocked
guard_pii.py       made-up personal data of 20 countries and look-alikes: recall and false alarms by kind
mask_speed.py      what the closed vocabulary costs a token while decoding, against decoding without it
guard_speed.py     what a check costs, by number of signals
first_summary.py   cold process → first summary of 30 signals, against a bare llama.cpp process on the same tokens
bundles.py         bundles tampered with in every way: how many are refused, and how fast
export_hostile.py  hostile files and tampered bundles: refusals, time, memory, readers of libraries reached
export.py          our exports against the usual tools: time and peak memory on the same folder
export_matrix.py   every architecture, format and way with adapters: what is lost, and the tokenizer
export_table.py    popi-smol's base and generator in every format and engine
onnx_javascript.py, onnx_browser.py   the exported ONNX files in Node and in a browser against Python
closed_vocabulary.py    what the closed vocabulary costs in accuracy
hostile_posts.py   what a post that commands the model changes in a summary
privacy.py         the privacy report: canaries against a packet capture, PUPA's private units, figures of the others
tells.py           what a summary still tells, of the summaries that tells_write.py made
tells_coding.py, tells_count.py, tells_smuggle.py   how many bits go through mask and guard: coder, bound, smuggler
"""
