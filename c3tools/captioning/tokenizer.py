"""Captions as tokens: cleaning, the tokenizer, and batches of captions of similar length.

The built-in decoder has a byte-level BPE tokenizer that is learned from the training captions:
byte-level, so that any script can be encoded and decoded; small, because captions use few words and
the output layer is a large part of a small decoder. Padding and end-of-text are tokens of their
own, so no real token is ever ignored by the loss. A language model brings its own tokenizer, which
is used in the same way with its own end-of-text token.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from ..arrays import Indices
from ..seeds import generator

PAD_ID = 0
END_ID = 1
_BATCHES_PER_BUCKET = 32
_ENCODED = 8192  # captions at a time
_SPACE = re.compile(r"\s+")
_SPACE_BEFORE_PUNCTUATION = re.compile(r"\s+([.,;:!?%)])")


def clean_caption(caption: str) -> str:
    """Bring a caption to one line with single spaces, no space before punctuation and no full stop
    at the end.

    Corpora differ in these (Flickr8k writes ``A dog runs .``, COCO both ``A dog runs.`` and ``a dog
    runs``), and a decoder should not have to learn the difference.
    """
    one_line = _SPACE.sub(" ", caption).strip()
    line = _SPACE_BEFORE_PUNCTUATION.sub(r"\1", one_line)
    if line.endswith("..."):
        return line
    return line.rstrip(". ")


class CaptionTokenizer:
    """Translator of captions to token ids and back.

    Attributes:
        pad_id: fills captions on the right.
        end_id: the end-of-text token.
    """

    def __init__(self, tokenizer: Tokenizer, pad_id: int = PAD_ID, end_id: int = END_ID) -> None:
        self._tokenizer = tokenizer
        self.pad_id = pad_id
        self.end_id = end_id

    @classmethod
    def train(cls, captions: Iterable[str], vocab_size: int = 4096) -> CaptionTokenizer:
        """Learn a vocabulary of at most ``vocab_size`` tokens; the same captions give the same
        vocabulary.

        Case is folded, as caption corpora are scored.

        Args:
            captions: the training captions.
            vocab_size: upper limit; at least 258 are needed for the 256 bytes and the two special
                tokens.
        """
        tokenizer = Tokenizer(models.BPE())
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            special_tokens=["<pad>", "<end>"],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        tokenizer.train_from_iterator((clean_caption(caption) for caption in captions), trainer)
        return cls(tokenizer)

    def to_json(self) -> str:
        """Return the content of tokenizer.json."""
        return str(self._tokenizer.to_str(pretty=True))

    @property
    def vocab_size(self) -> int:
        """Number of tokens, the special ones included."""
        return int(self._tokenizer.get_vocab_size())

    def encode(self, captions: Sequence[str], max_tokens: int) -> list[list[int]]:
        """Return the token ids of each caption, at most ``max_tokens``, the last one
        end-of-text.
        """
        encoded = self._tokenizer.encode_batch_fast(
            [clean_caption(caption) for caption in captions], add_special_tokens=False
        )
        return [[*item.ids[: max_tokens - 1], self.end_id] for item in encoded]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the caption of token ids, up to the first end-of-text token."""
        word_ids = []
        for token in ids:
            if token == self.end_id:
                break
            if token != self.pad_id:
                word_ids.append(token)
        return str(self._tokenizer.decode(word_ids, skip_special_tokens=False)).strip()


class TokenRows:
    """Token ids of many captions.

    Args:
        tokenizer: of the captions.
        captions: n of them; a few thousand are encoded at a time.
        max_tokens: longest caption, end-of-text included.

    Attributes:
        lengths: of the captions in tokens, int64 (n,).
    """

    def __init__(
        self, tokenizer: CaptionTokenizer, captions: Sequence[str], max_tokens: int
    ) -> None:
        self._rows: list[npt.NDArray[np.uint32]] = []
        for start in range(0, len(captions), _ENCODED):
            encoded = tokenizer.encode(captions[start : start + _ENCODED], max_tokens)
            self._rows += [np.array(ids, np.uint32) for ids in encoded]
        self.lengths = np.array([len(ids) for ids in self._rows], dtype=np.int64)

    def batch(self, rows: Indices, pad_id: int) -> Indices:
        """Return the token ids of some rows, right-padded with ``pad_id``: int64 (B, T)."""
        longest = self.lengths[rows].max()
        batch = np.full((len(rows), longest), pad_id, dtype=np.int64)
        for line, row in zip(batch, rows, strict=True):
            line[: self.lengths[row]] = self._rows[row]
        return batch

    def batches(self, batch_size: int, seed: int, epoch: int) -> list[Indices]:
        """Split rows into batches of like length, so that little is spent on padding; order depends
        on (seed, epoch).

        Rows are shuffled, sorted by length within buckets of 32 batches, cut, and the batches are
        shuffled: every epoch mixes rows again, and each row occurs exactly once.

        Args:
            batch_size: rows per batch; the last batch of a bucket may be smaller.
            seed: seed of the run.
            epoch: number of the epoch.

        Returns:
            int64 arrays of row numbers, one per batch.
        """
        rng = generator(seed, "batches", epoch)
        order = rng.permutation(len(self.lengths))
        bucket_size = batch_size * _BATCHES_PER_BUCKET
        batches: list[Indices] = []
        for start in range(0, len(order), bucket_size):
            bucket = order[start : start + bucket_size]
            by_length = bucket[np.argsort(self.lengths[bucket], kind="stable")]
            for first in range(0, len(by_length), batch_size):
                batches.append(by_length[first : first + batch_size])
        return [batches[number] for number in rng.permutation(len(batches))]
