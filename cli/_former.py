"""Spellings of earlier versions, which are refused with the present one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

FORMER_FLAGS = {
    "--meteor": "--metrics BLEU,ROUGE-L,CIDEr,METEOR",
    "--spice": "--metrics BLEU,ROUGE-L,CIDEr,SPICE",
    "--clip-score": "--metrics BLEU,ROUGE-L,CIDEr,CLIPScore",
}


@dataclass(frozen=True)
class _FormerSpelling:
    """A command line of an earlier version.

    Attributes:
        command: whose it was.
        word: of the error that it makes now.
        remedy: what to write instead.
    """

    command: str
    word: str
    remedy: str


_FORMER = (
    _FormerSpelling(
        "means",
        "--",
        "Use one of c3 means show, c3 means save FILE, c3 means load FILE, c3 means unload and "
        "c3 means merge FILES -o FILE.",
    ),
    _FormerSpelling("evaluate", "--images", "Generated images are scored by c3 evaluate-images."),
    _FormerSpelling("export", "faiss", "An index is made by c3 index."),
    _FormerSpelling("index", "argument", "Use c3 index --factory FACTORY, or --store STORE."),
)


def add_present_spelling(error: Any) -> None:
    """Add to the message of a usage error how its command line is spelled now, if it was right
    once.
    """
    command = error.ctx.command.name if error.ctx else None
    for former in _FORMER:
        if former.command == command and former.word in error.message:
            error.message = f"{error.message.removesuffix('.')}. {former.remedy}"
