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
from typing import TYPE_CHECKING

import numpy as np

from ..arrays import Indices
from ..errors import EncoderError, explain_missing

if TYPE_CHECKING:
    from tokenizers.models import BPE

_VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"
_MERGES = 49152 - 256 - 2
_SPECIALS = {"<start_of_text>": 49406, "<end_of_text>": 49407}
VOCABULARY = 49408
_MOST_KNOWN = 1 << 18  # words whose ids are kept
_WORDS = rf"{'|'.join(_SPECIALS)}|'s|'t|'re|'ve|'m|'ll|'d|[\p{{L}}]+|[\p{{N}}]|[^\s\p{{L}}\p{{N}}]+"


class ClipTokenizer:
    """From texts to token ids, as open_clip's ``SimpleTokenizer`` does.

    Args:
        context_length: tokens of a row; longer texts are cut, and keep their end token.
    """

    def __init__(self, context_length: int) -> None:
        self.context_length = context_length
        self._known: dict[str, list[int]] = {}  # ids by what is between white space

    def __call__(self, texts: Sequence[str], context_length: int | None = None) -> Indices:
        """Return token ids, int64 (n, context length): start, text, end, zeros."""
        length = context_length or self.context_length
        start, end = _SPECIALS.values()
        tokens: list[int] = []
        lengths = []
        for text in texts:
            of_text = [start, *self.encode(text)[: length - 2], end]
            tokens += of_text
            lengths.append(len(of_text))
        rows = np.zeros((len(texts), length), np.int64)
        is_token = np.arange(length) < np.array(lengths, np.int64)[:, None]
        rows[is_token] = tokens
        return rows

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text of any length, without start and end."""
        cleaned = text.strip(" \t\r\n")
        # Plain texts are in order, and ftfy takes most of the time
        if not (cleaned.isascii() and cleaned.isprintable() and "&" not in cleaned):
            import ftfy

            cleaned = html.unescape(html.unescape(ftfy.fix_text(text)))
        ids: list[int] = []
        for chunk in cleaned.lower().split():
            if chunk not in self._known:
                if len(self._known) >= _MOST_KNOWN:
                    self._known.clear()
                self._known[chunk] = self._encode_chunk(chunk)
            ids += self._known[chunk]
        return ids

    def _encode_chunk(self, chunk: str) -> list[int]:
        """Return the ids of a text in lower case without white space."""
        import regex

        ids: list[int] = []
        for word in regex.findall(_WORDS, chunk, regex.IGNORECASE):
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
        # Not at the top: what shows embeddings needs no tokenizer
        with explain_missing("The tokenizer of CLIP"):
            from tokenizers.models import BPE

        # The merges are in the package open_clip, which is not imported for them
        package = importlib.util.find_spec("open_clip")
        folders = package.submodule_search_locations if package else None
        files = [Path(folder) / _VOCABULARY for folder in folders or ()]
        files = [path for path in files if path.is_file()]
        if not files:
            raise EncoderError(
                f"The file {_VOCABULARY} of open_clip is missing.",
                remedy="Reinstall open_clip_torch.",
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
