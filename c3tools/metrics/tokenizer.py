"""A caption tokenizer in the manner of the Penn Treebank, without Java.

Caption scores are computed on the tokens of Stanford's PTBTokenizer with lower case and punctuation removed, as
pycocoevalcap runs it in Java. This is the part of its rules that captions use; on real captions the tokens are
the same (a test compares them wherever Java is there).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

# what pycocoevalcap removes after tokenising; brackets are not in it once they are lower-cased
_PUNCTUATION = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_PLAIN = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "–": "-", "—": "-", "…": "...", "\u00a0": " "})

_ABBREVIATIONS = (
    "mr|mrs|ms|dr|prof|st|jr|sr|vs|etc|ave|blvd|rd|mt|ft|inc|co|corp|ltd|bros|dept|no|gen|col|sgt|capt|lt|gov|sen"
    "|rep|rev|jan|feb|mar|apr|jun|jul|aug|sep|sept|oct|nov|dec|ph\\.d|fig|op|pp|al|ed|est|bldg|div|univ|assn"
)
_TOKEN = re.compile(
    rf"""
      https?://\S+ | [\w.+-]+@[\w-]+\.[\w.]+              # addresses
    | <[a-z/][^\s>]*>                                     # tags
    | (?:{_ABBREVIATIONS})\.(?!\w)                        # abbreviations keep their full stop
    | (?:[^\W\d_]\.){{2,}}(?:[^\W\d_]\b)?                # u.s., p.m., d.v.d
    | (?<!\w)[^\W\d_]\.(?!\w)                            # initials
    | \d+(?:[.,:/]\d+)+(?=(?:am|pm)\b)                    # 10:30 of 10:30am
    | can(?=not\b) | gon(?=na\b) | wan(?=na\b) | got(?=ta\b) | gim(?=me\b) | lem(?=me\b)
    | '(?:s|m|d|re|ve|ll|em)\b | 'n\b'? | n't\b          # clitics
    | 't(?=(?:is|was)\b)
    | \d*[.,]?\d+(?:[.,:/]\d+)*(?:(?:[-/]\w+)+|\w*)       # numbers
    | [^\W\d_]\w*?(?=n't\b)                               # do of don't
    | \w+(?=-?'(?:s|m|d|re|ve|ll)\b)                      # man of man's
    | @?\w+(?:'\w+)?(?:[-./]\w+)*                         # words, with what they hold inside
    | [()\[\]{{}}]
    | [^\s\w]
    """,
    re.VERBOSE,
)


def tokenize(caption: str) -> list[str]:
    """Lower-case tokens of a caption, punctuation dropped, clitics split (``does n't``, ``man 's``)."""
    line = caption.translate(_PLAIN).lower()
    tokens = [_BRACKETS.get(token, token) for token in _TOKEN.findall(line)]
    return [token for token in tokens if token not in _PUNCTUATION and token != '"']


def tokenize_all(captions: Iterable[str]) -> list[str]:
    """Each caption as its tokens joined by single spaces, the form the scorers read."""
    return [" ".join(tokenize(caption)) for caption in captions]
