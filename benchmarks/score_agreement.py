"""Compare caption scores with those of pycocoevalcap and its Java tokenizer, and BLEU also with
that of sacrebleu.

    python benchmarks/score_agreement.py                                          # bundled COCO
    captions python benchmarks/score_agreement.py captions.json --references captions.jsonl   #
    those of `c3 caption --json`

Needs Java, pycocoevalcap (extra `eval`) and sacrebleu. Without a file, the first caption of each
bundled image is scored against the other captions of this image, with the words of every other one
in another order. It takes about 20 seconds.

It should print differences in the last digits, and the captions whose tokens differ, if any (see
`c3tools.metrics.ptb_tokenizer`): two of the bundled ones, which changes ROUGE-L by 9e-4 and CIDEr
by 8e-5. It exits with 1 if a score differs by 1e-6 or more although no token does.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import sacrebleu
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from c3tools.assets.paths import CAPTIONS
from c3tools.captioning.references import read_predictions, read_references
from c3tools.metrics.caption_scores import score_captions
from c3tools.metrics.ptb_tokenizer import tokenize

LIMIT = 1e-6  # percent


def main() -> None:
    """Score both ways and print the differences."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("captions", nargs="?", type=Path)
    parser.add_argument("--references", type=Path, default=CAPTIONS)
    options = parser.parse_args()
    references = read_references(options.references)
    if options.captions:
        written = {
            key: text
            for key, text in read_predictions(options.captions).items()
            if key in references
        }
    else:
        references = {key: texts for key, texts in references.items() if len(texts) > 1}
        first = {key: texts[0] for key, texts in references.items()}
        written = {
            key: turned(text) if row % 2 else text for row, (key, text) in enumerate(first.items())
        }
        references = {key: texts[1:] for key, texts in references.items()}
    ours = score_captions(written, references).corpus
    peers, different = theirs(written, {key: references[key] for key in written})
    print(f"{len(written):,} captions; tokens differ in: {different or 'none'}")
    print("| score | c3, % | peer | theirs, % | difference |\n|---|---|---|---|---|")
    for (name, peer), value in peers.items():
        print(
            f"| {name} | {ours[name]:.6f} | {peer} | {value:.6f} | {abs(ours[name] - value):.1e} |"
        )
    sys.exit(
        not different and max(abs(ours[name] - value) for (name, _), value in peers.items()) > LIMIT
    )


def turned(text: str) -> str:
    """Return the words in the opposite order."""
    return " ".join(reversed(text.split()))


def theirs(
    written: dict[str, str], references: dict[str, list[str]]
) -> tuple[dict[tuple[str, str], float], list[str]]:
    """Scores in percent by (score, whose), and the captions whose tokens are not ours."""
    tokenizer = PTBTokenizer()
    targets = tokenizer.tokenize(
        {key: [{"caption": text} for text in texts] for key, texts in references.items()}
    )
    results = tokenizer.tokenize({key: [{"caption": text}] for key, text in written.items()})
    scores = {
        f"BLEU-{n + 1}": value
        for n, value in enumerate(Bleu(4).compute_score(targets, results, verbose=0)[0])
    }
    scores["ROUGE-L"] = Rouge().compute_score(targets, results)[0]
    scores["CIDEr"] = Cider().compute_score(targets, results)[0]
    found = {(name, "pycocoevalcap"): 100 * float(value) for name, value in scores.items()}
    pairs = [
        (text, tokens)
        for key in targets
        for text, tokens in zip(references[key], targets[key], strict=True)
    ]
    pairs += [(written[key], results[key][0]) for key in targets]
    different = [text for text, tokens in pairs if tokenize(text) != tokens]
    most = max(len(texts) for texts in targets.values())
    # sacrebleu takes None where a caption has fewer references, though its annotations do not say
    # so
    columns = [
        [texts[i] if i < len(texts) else None for texts in targets.values()] for i in range(most)
    ]
    sentences = [results[key][0] for key in targets]
    for n in (1, 2, 3, 4):
        metric = sacrebleu.BLEU(
            max_ngram_order=n, tokenize="none", smooth_method="none", force=True
        )
        found[f"BLEU-{n}", "sacrebleu"] = metric.corpus_score(sentences, columns).score  # type: ignore[arg-type]
    return found, different


if __name__ == "__main__":
    main()
