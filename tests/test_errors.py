"""What is told of errors of all kinds."""

from __future__ import annotations

from c3tools.errors import reason_of


def test_the_reason_is_one_line_of_at_most_500_letters() -> None:
    for error, said in (
        (ValueError("a\n\n b"), "a b"),
        (KeyError(), "KeyError"),
        (OSError(2, "No such file", "x.png"), "No such file"),
        (ValueError("ab " * 300), "ab " * 166 + "ab"),
    ):
        assert reason_of(error) == said
