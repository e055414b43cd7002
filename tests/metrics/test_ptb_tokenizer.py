from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from c3tools.metrics.ptb_tokenizer import tokenize

# what pycocoevalcap's Java tokenizer printed for these captions
PRINTED = {
    "A man's dog doesn't bark!": "a man 's dog does n't bark",
    "The dogs' toys; it's big.": "the dogs toys it 's big",
    "They're, we've, I'd, she'll, can't, won't": "they 're we 've i 'd she 'll ca n't wo n't",
    "I'm gonna wanna cannot gotta": "i 'm gon na wan na can not got ta",
    "He said \"hello\" and 'bye' ...": "he said hello and bye",
    "U.S. flag at 5 p.m. on St. John's road.": "u.s. flag at 5 p.m. on st. john 's road",
    "a 1,000 m/s w/ & 50% off $5.00 #1": "a 1,000 m/s w / & 50 % off $ 5.00 # 1",
    "well-known T-shirt - dash -- double": "well-known t-shirt dash double",
    "it is (very) big": "it is -lrb- very -rrb- big",
    "café “quoted” it’s … here": "café quoted it 's here",
    "wait...what e.g. this": "wait what e.g. this",
    "one,two three.Four": "one two three.four",
    "10:30am 5-year-old 1/2": "10:30 am 5-year-old 1/2",
    "A sign on Mass. Ave. in Ky. for John F. Kennedy": (
        "a sign on mass. ave. in ky. for john f. kennedy"
    ),
    "vitamin c. A pill, me and I. The end": "vitamin c a pill me and i the end",
    "vitamin c. a pill at 5 p.m. The end": "vitamin c. a pill at 5 p.m. the end",
    "no. 5, figs. 2 to 3, op. 12b; there is no.": "no. 5 figs. 2 to 3 op. 12b there is no",
    "a dog!!! runs, really?!? yes!": "a dog !!! runs really ?!? yes",
    "two 😀😀 dogs👍🏽 play": "two dogs play",
    "a #tag, #dog1 and #1": "a #tag #dog 1 and # 1",
    "½ of 1½-inch pizza, 3 ¾": "1/2 of 1 1/2 inch pizza 3 3/4",
    "a zero\u200bwidth \ufeffspace, soft\u00adhyphen": "a zero width space softhyphen",
    "y'all come, Y'know": "y' all come y' know",
    "g'day c++ 'til the '90s, ol' dog": "g day c++ 'til the '90s ol' dog",
    "wow!great ** £5 €5": "wow!great ** # 5 $ 5",
    "कुत्ता घास पर दौड़ता है": "कुत्ता घास पर दौड़ता है",
    "a cafe\u0301, 🐕–red and sea—blue": "a cafe\u0301 red and sea blue",
    "red &amp; white, &quot;M&amp;Ms&quot; &lt;3&nbsp;x": "red & white m&m s < 3 x",
    "AT&T's sign, Q&A, R&B-style, at&t": "at&t 's sign q&a r&b style at & t",
    "l’homme at ten o’clock, isn’t O’Brien’s": "l’homme at ten o’clock is n't o’brien 's",
    "a cafe\u0301-bar, mid-cafe\u0301 and jalapen\u0303o-hot": (
        "a cafe\u0301 bar mid-cafe \u0301 and jalapen\u0303o hot"
    ),
    "at a Dunkin' Donuts": "at a dunkin' donuts",
    "": "",
}


def test_tokens_are_those_of_the_java_tokenizer() -> None:
    assert {caption: tokenize(caption) for caption in PRINTED} == PRINTED


@given(st.text(max_size=80))
def test_any_text_gives_tokens_without_spaces(text: str) -> None:
    assert tokenize(text).split() == list(filter(None, tokenize(text).split(" ")))
