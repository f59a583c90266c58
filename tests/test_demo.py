"""What the demo shows of a long reply."""

from __future__ import annotations

from popi_edge.cli.demo import EXCERPT, excerpt


def test_an_excerpt_is_whole_sentences_where_it_can_be() -> None:
    assert excerpt("Short. Done.") == "Short. Done."
    long = "One sentence. " * 60
    shown = excerpt(long)
    assert shown == ("One sentence. " * 30).rstrip() + " […]" and len(shown) <= EXCERPT + 4
    assert excerpt("word " * 200) == ("word " * 84).rstrip() + " […]"
    assert excerpt("a" * EXCERPT) == "a" * EXCERPT
