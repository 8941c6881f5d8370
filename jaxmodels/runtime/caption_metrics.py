"""How like a reader's captions a model's are: BLEU-4, ROUGE-L and CIDEr-D, as COCO's code has them.

Sources: Papineni et al. 2002; Lin 2004; Vedantam et al. 2015; their forms in `pycocoevalcap`, whose
numbers these are for the same words (checked on its own examples). COCO splits text by Stanford's
tokeniser, a Java program; here a word is a run of letters and digits, with an apostrophe inside,
lower-cased, and punctuation is left out.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence

Words = list[str]
ORDER = 4
_SIGMA, _BETA = 6.0, 1.2
_TINY, _SMALL = 1e-15, 1e-9


def caption_metrics(
    captions: Sequence[str], references: Sequence[Sequence[str]]
) -> dict[str, float]:
    """`bleu_4` and `rouge_l`, from 0 to 1, and `cider`, from 0 to 10.

    Args:
        captions: one for each image.
        references: one or more captions by people for each. CIDEr weighs words by how many images
            have them, so that it means little for a few images, and is 0 for one.
    """
    written = [words(caption) for caption in captions]
    known = [[words(caption) for caption in group] for group in references]
    return {
        "bleu_4": bleu(written, known),
        "rouge_l": _mean([rouge_l(a, b) for a, b in zip(written, known, strict=True)]),
        "cider": cider(written, known),
    }


def words(text: str) -> Words:
    """The words of a text."""
    return re.findall(r"\w+(?:'\w+)*", text.lower())


def bleu(captions: Sequence[Words], references: Sequence[Sequence[Words]]) -> float:
    """BLEU-4 of all captions together, against the reference of the closest length."""
    right, guessed = [0] * ORDER, [0] * ORDER
    length = closest = 0
    for caption, group in zip(captions, references, strict=True):
        length += len(caption)
        closest += min((abs(len(r) - len(caption)), len(r)) for r in group)[1]
        counts = _counts(caption)
        most = Counter[tuple[str, ...]]()
        for reference in group:
            most |= _counts(reference)
        for gram, count in counts.items():
            right[len(gram) - 1] += min(count, most[gram])
        for n in range(ORDER):
            guessed[n] += max(len(caption) - n, 0)
    product = math.prod((a + _TINY) / (b + _SMALL) for a, b in zip(right, guessed, strict=True))
    ratio = (length + _TINY) / (closest + _SMALL)
    return product ** (1 / ORDER) * (math.exp(1 - 1 / ratio) if ratio < 1 else 1.0)


def rouge_l(caption: Words, references: Sequence[Words]) -> float:
    """The F-measure of the longest common subsequence, with recall counting 1.2 times as much."""
    if not caption or not any(references):
        return 0.0
    common = [_longest_common(caption, reference) for reference in references]
    precision = max(common) / len(caption)
    recall = max(n / len(r) for n, r in zip(common, references, strict=True) if r)
    if not precision or not recall:
        return 0.0
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


def cider(captions: Sequence[Words], references: Sequence[Sequence[Words]]) -> float:
    """CIDEr-D: the likeness of n-grams that are weighed by how few images have them."""
    images = Counter[tuple[str, ...]]()
    for group in references:
        images.update({gram for reference in group for gram in _counts(reference)})
    scores = []
    for caption, group in zip(captions, references, strict=True):
        alike = [_alike(caption, reference, images, len(references)) for reference in group]
        scores.append(10 * _mean(alike))
    return _mean(scores)


def _alike(caption: Words, reference: Words, images: Counter, count: int) -> float:
    """Mean over the orders of the clipped cosine of both, less where their lengths differ."""
    one, other = (_weighed(text, images, count) for text in (caption, reference))
    apart = max(len(caption) - 1, 0) - max(len(reference) - 1, 0)  # in pairs of words
    penalty = math.exp(-(apart**2) / (2 * _SIGMA**2))
    total = 0.0
    for n in range(1, ORDER + 1):
        a, b = ({g: w for g, w in side.items() if len(g) == n} for side in (one, other))
        lengths = math.sqrt(sum(w * w for w in a.values()) * sum(w * w for w in b.values()))
        product = sum(min(w, b.get(gram, 0.0)) * b.get(gram, 0.0) for gram, w in a.items())
        total += product / lengths if lengths else 0.0
    return penalty * total / ORDER


def _weighed(text: Words, images: Counter, count: int) -> dict[tuple[str, ...], float]:
    return {
        gram: times * (math.log(count) - math.log(max(1, images[gram])))
        for gram, times in _counts(text).items()
    }


def _counts(text: Words) -> Counter[tuple[str, ...]]:
    """How often each n-gram of up to four words occurs."""
    return Counter(
        tuple(text[i : i + n]) for n in range(1, ORDER + 1) for i in range(len(text) - n + 1)
    )


def _longest_common(a: Words, b: Words) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for x in a:
        before = 0
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], before + 1 if x == y else max(row[j], row[j - 1])
    return row[-1]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
