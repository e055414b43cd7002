"""The tokenizer of CLIP without torch: byte-pair encoding with the vocabulary that open_clip
ships.
"""

from __future__ import annotations

import gzip
import html
import importlib.util
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from tokenizers.models import BPE

from ..arrays import Indices
from ..errors import EncoderError

_VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"
_MERGES = 49152 - 256 - 2
_SPECIALS = {"<start_of_text>": 49406, "<end_of_text>": 49407}
_WORDS = rf"{'|'.join(_SPECIALS)}|'s|'t|'re|'ve|'m|'ll|'d|[\p{{L}}]+|[\p{{N}}]|[^\s\p{{L}}\p{{N}}]+"


class ClipTokenizer:
    """From texts to token ids, as open_clip's ``SimpleTokenizer`` does.

    Args:
        context_length: tokens of a row; longer texts are cut, and keep their end token.
    """

    def __init__(self, context_length: int) -> None:
        self.context_length = context_length

    def __call__(self, texts: Sequence[str], context_length: int | None = None) -> Indices:
        """Return token ids, int64 (n, context length): start, text, end, zeros."""
        rows = np.zeros((len(texts), context_length or self.context_length), np.int64)
        start, end = _SPECIALS.values()
        for row, text in zip(rows, texts, strict=True):
            tokens = [start, *self.encode(text)[: len(row) - 2], end]
            row[: len(tokens)] = tokens
        return rows

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text of any length, without start and end."""
        import ftfy
        import regex

        cleaned = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
        cleaned = " ".join(cleaned.split()).strip().lower()
        ids: list[int] = []
        for word in regex.findall(_WORDS, cleaned, regex.IGNORECASE):
            letters = "".join(self._letters[byte] for byte in word.encode("utf-8"))
            if letters in _SPECIALS:
                ids.append(_SPECIALS[letters])
            else:
                ids += [token.id for token in self._bpe.tokenize(letters)]
        return ids

    @cached_property
    def _letters(self) -> dict[int, str]:
        """A printable letter for each byte: its own, or one from 256 on."""
        printable = [
            *range(ord("!"), ord("~") + 1),
            *range(ord("¡"), ord("¬") + 1),
            *range(ord("®"), ord("ÿ") + 1),
        ]
        letters = {byte: chr(byte) for byte in printable}
        unprintable = [byte for byte in range(256) if byte not in printable]
        for number, byte in enumerate(unprintable):
            letters[byte] = chr(256 + number)
        return letters

    @cached_property
    def _bpe(self) -> BPE:
        """The byte-pair encoding: single letters, letters that end a word, then merged ones."""
        # The merges are in the package open_clip, which is not imported for them
        package = importlib.util.find_spec("open_clip")
        folders = package.submodule_search_locations if package else None
        files = [Path(folder) / _VOCABULARY for folder in folders or ()]
        files = [path for path in files if path.is_file()]
        if not files:
            raise EncoderError(
                f"The file {_VOCABULARY} of open_clip is missing.",
                remedy="Install open_clip_torch again.",
            )
        lines = gzip.decompress(files[0].read_bytes()).decode("utf-8").split("\n")
        merges = []
        for line in lines[1 : _MERGES + 1]:  # the first line is a comment
            left, right = line.split()
            merges.append((left, right))
        letters = list(self._letters.values())
        words = [*letters]
        words += [f"{letter}</w>" for letter in letters]
        words += [left + right for left, right in merges]
        vocabulary = {word: number for number, word in enumerate([*words, *_SPECIALS])}
        return BPE(vocabulary, merges, end_of_word_suffix="</w>")
