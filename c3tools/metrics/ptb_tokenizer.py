"""A caption tokenizer in the manner of the Penn Treebank, without Java.

Caption scores are computed on the tokens of Stanford's PTBTokenizer with lower case and punctuation
removed, as pycocoevalcap runs it in Java. This module has the part of its rules that captions use.
Of 145,755 captions of Flickr30k, 10 have other tokens than in Java. The Java tokenizer reads all
captions as one text, so the first word of the next caption decides whether an initial or an
abbreviation at the end of a caption keeps its full stop. Here each caption is read alone, and keeps
it. Years with an apostrophe ('93) keep it here, where Java may read a quotation mark, and a colon
before a number (:11) is dropped. Rarer forms such as ’tis and &#39; differ too.
"""

from __future__ import annotations

import re
import unicodedata

# what pycocoevalcap removes after tokenising, and quotes; brackets are not in it once they are
# lower-cased
_PUNCTUATION = frozenset(
    ['"', "''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"]
)
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_PLAIN = str.maketrans(
    {"“": '"', "”": '"', "–": " - ", "—": " - ", "…": "...", "\u00a0": " "}
    | {
        "½": " 1/2 ",
        "⅓": " 1/3 ",
        "⅔": " 2/3 ",
        "¼": " 1/4 ",
        "¾": " 3/4 ",
        "£": "# ",
        "€": "$ ",
        "¢": " cents ",
    }
    | {"\u00ad": ""}  # a soft hyphen
)
_ENTITIES = {
    "&amp;": "&",
    "&lt;": "<",
    "&gt;": ">",
    "&quot;": '"',
    "&apos;": "'",
    "&nbsp;": " ",
}
_ENTITY = re.compile("|".join(_ENTITIES), re.IGNORECASE)
# AT&T is one word in capitals; its ampersand has a private character until the words are found
_CAPITALS_WITH_AMPERSAND = re.compile(r"[A-Z]+(?:&[A-Z]+)+")
_AMPERSAND = "\ue000"
# a typographic apostrophe stays within a word (o’clock), and is a plain one elsewhere (it’s)
_APOSTROPHE = re.compile(
    r"(?<![^\W\d_])[’‘]|[’‘](?![^\W\d_])|[’‘](?=(?:s|m|d|re|ve|ll|t)\b)", re.IGNORECASE
)
# characters that end a word and are dropped: all beyond 16 bits, such as emoji, and those without
# width
_DROPPED = re.compile(
    "[\U00010000-\U0010ffff\u200b-\u200f\u202a-\u202e\u2060-\u2064\u20e3\ufe00-\ufe0f\ufeff]+"
)

# the vowel signs and accents that follow letters in other scripts, which \w does not match
_MARKS = "".join(c for c in map(chr, range(0x300, 0x10000)) if unicodedata.category(c)[0] == "M")
_LETTER, _WORD = rf"(?:[^\W\d_][{_MARKS}]*)", rf"[\w{_MARKS}]"

# words that keep their full stop: titles, companies, places, months, days, states
_ABBREVIATIONS = (
    "mr|mrs|ms|messrs|drs?|profs?|jr|sr|hon|esq|pres|supt|insp|det"
    "|gen|col|sgt|capt|cmdr|cpl|lt|lieut|maj|adm|pvt|spc|gov|sens?|reps?|rev"
    "|inc|cos?|corp|ltd|bros|cie|mfg|plc|pty|intl|natl|elec|dept|div|univ|assn"
    "|st|ste|ave|blvd|rd|mt|ft|sq|bldg|jan|feb|mar|apr|jun|jul|aug|sep|sept|oct|nov|dec|mon|tues?|wed|thu|thurs|fri"
    "|ariz|calif|colo|conn|ct|dak|fla|ga|ind|kans?|ky|mass|md|mich|minn|mo|mont|neb|nev|okla|penn|tenn|va|vt|wis|wyo"
    "|vs|etc|ph\\.d|al|ed|est|cf|adj|adv|ext|seq|tel"
)
_BEFORE_NUMBERS = "nos?|figs?|op|pp|art|ca|prop"
# an initial keeps its full stop, except where one of these begins the next sentence
_INITIAL_AT_END = re.compile(
    r"(?<!\w)(?<!\w\.)([^\W\d_])\.(?=\s+(?:A|About|According|Additionally|After|An|As|At|But|Earlier|He|Her|Here|However"
    r"|If|In|It|Last|Many|More|M[rs]\.|Now|Once|One|Other|Our|She|Since|So|Some|Such|That|The|Their|Then|There|These"
    r"|They|This|We|When|While|What|Yet|You)\s)"
)

_TOKEN = re.compile(
    rf"""
      https?://\S+ | [\w.+-]+@[\w-]+\.[\w.]+                          # addresses
    | <[a-z/][^\s>]*>                                                 # tags
    | (?:{_ABBREVIATIONS})\.(?!{_WORD})                               # abbreviations
    | (?:{_BEFORE_NUMBERS})\.(?=\s*\d)
    | (?:{_LETTER}\.){{2,}}(?:{_LETTER}\b)?                           # u.s., p.m., d.v.d
    | (?<!{_WORD}){_LETTER}\.(?!{_WORD})                              # initials
    | \d+(?:[.,:/]\d+)+(?=(?:am|pm)\b)                                # 10:30 of 10:30am
    | can(?=not\b) | gon(?=na\b) | wan(?=na\b) | got(?=ta\b) | gim(?=me\b) | lem(?=me\b)
    | '(?:s|m|d|re|ve|ll|em)\b | 'n\b'? | n't\b                       # clitics
    | 't(?=(?:is|was)\b)
    | (?<!{_WORD})(?:'(?:til|cause|\d\ds?)\b | (?:ol|dunkin|somethin)' | c\+\+)
    | [a-z]+(?:{_AMPERSAND}[a-z]+)+                                   # at&t
    | (?<!{_WORD})(?:[jy]'(?={_LETTER}) | [gt](?='{_LETTER}{{2}}))    # y'all, g'day
    | [!?]{{2,}} | \#{{2,}} | \*{{2,}}
    | \#{_LETTER}+ | (?<!{_WORD})[cf]\#                               # hashtags, notes
    | {_LETTER}+[!?]{_LETTER}+                                        # wow!great
    | \d*[.,]?\d+(?:[.,:/]\d+)*(?:(?:[-/]\w+)+|{_WORD}*)              # numbers
    | {_LETTER}{_WORD}*?(?=n't\b)                                     # do of don't
    | {_WORD}+(?=-?'(?:s|m|d|re|ve|ll)\b)                             # man of man's
    | \w+[{_MARKS}]{_WORD}*                                           # decomposed: no hyphen
    | @?\w+(?:['’‘]\w+)?(?:[-./]\w+)*                                # words
    | [{_MARKS}]+
    | [()\[\]{{}}]
    | [^\s\w{_MARKS}]
    """,
    re.VERBOSE,
)


def tokenize(caption: str) -> str:
    """Return the lower-case tokens of a caption, joined by spaces as the scorers read them.

    Punctuation is dropped, clitics are split (``does n't``, ``man 's``).
    """
    line = _ENTITY.sub(lambda match: _ENTITIES[match[0].lower()], caption)
    line = _CAPITALS_WITH_AMPERSAND.sub(lambda name: f" {name[0].replace('&', _AMPERSAND)} ", line)
    line = _APOSTROPHE.sub("'", _DROPPED.sub(" ", line)).translate(_PLAIN)
    line = _INITIAL_AT_END.sub(r"\1 .", line).lower()
    tokens = [_BRACKETS.get(token, token) for token in _TOKEN.findall(line)]
    words = " ".join(token for token in tokens if token not in _PUNCTUATION)
    return words.replace(_AMPERSAND, "&")
