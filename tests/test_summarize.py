"""What a model wrote becomes a summary: nothing twice, and nothing where it says that nothing is clear."""

from __future__ import annotations

import pytest

from popi_edge import prompts
from popi_edge.summarize import spoken

SILENCE = prompts.spec()["silence"]


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("Keep it brief.", "Keep it brief."),
        ("Keep it brief. Keep it brief.", "Keep it brief."),
        ("Keep it brief. Likes jokes! Keep it brief.  Likes jokes!", "Keep it brief. Likes jokes!"),
        ("Likes i.e. and e.g. in replies.", "Likes i.e. and e.g. in replies."),
        (SILENCE, ""),
        (f"{SILENCE} Keep it brief. {SILENCE}", "Keep it brief."),
        ("", ""),
    ],
)
def test_no_sentence_twice_and_silence_is_no_summary(written: str, said: str) -> None:
    assert spoken(written) == said
