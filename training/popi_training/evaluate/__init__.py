"""Evaluation that can fail: which of two held-out replies a person preferred, under each kind of context.

data        files of real pairs → rows: signals, one held-out pair, the persona's sentence, the opposite's
conditions  what stands in front of the prompt: nothing, raw signals, a summary, somebody else's, the oracle's
metrics     accuracy, contrast, intervals clustered by prompt, gap closed (numpy, pure)
journal     every finished summary and score on disk, so that a killed run goes on where it stopped
run         the stages: summaries, scores, tables
choice      instead of scores, a forced choice by any LLM behind a URL, in both orders
report      tables for reading
"""
