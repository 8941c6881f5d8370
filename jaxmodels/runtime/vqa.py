"""Accuracy of answers to visual questions, as VQA's evaluation computes it.

Ten people answer each question. An answer is right by min(n / 3, 1), where n of nine of the people
gave it, averaged over which of the ten is left out. Answers are compared after punctuation,
articles, number words and missing apostrophes are brought into one form.

Source: Antol et al. 2015; `vqaEval.py` of github.com/GT-Vision-Lab/VQA, whose numbers these are,
its peculiarities included: answers are compared as they are where all people gave the same one.
"""

import re
from collections import defaultdict
from collections.abc import Sequence

ENOUGH = 3
"""People who must agree with an answer for it to count in full."""

_NUMBERS = {"none": "0"} | {
    word: str(i)
    for i, word in enumerate("zero one two three four five six seven eight nine ten".split())
}
_ARTICLES = ("a", "an", "the")
_PUNCTUATION = tuple(';/[]"{}()=+\\_-><@`,?!')
_DIGITS_AND_COMMA = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_MOST_PERIODS = 32  # the published code passes a flag, 32, where re.sub takes a count

_APOSTROPHES = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've
might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're
what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're
why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're
you've
"""
# A word that lacks one of its apostrophes → the word. The last is a slip of the published list.
_CONTRACTIONS = {
    word[:i] + word[i + 1 :]: word
    for word in _APOSTROPHES.split()
    for i, letter in enumerate(word)
    if letter == "'"
} | {"somebody'd": "somebodyd"}


def accuracy(answer: str, answers: Sequence[str]) -> float:
    """How right an answer is, in [0, 1].

    Args:
        answer: the model's.
        answers: what people answered, at least one; VQA has ten. Of fewer than four, all but the
            one that is left out must agree; a single one must be met.
    """
    given, known = comparable(answer, answers)
    matches = sum(one == given for one in known)
    needed = min(ENOUGH, max(len(known) - 1, 1))
    if len(known) == 1:
        return float(matches)
    # Of the subsets without one person, `matches` lack one that agrees.
    without = min((matches - 1) / needed, 1.0) if matches else 0.0
    complete = min(matches / needed, 1.0)
    return (matches * without + (len(known) - matches) * complete) / len(known)


def comparable(answer: str, answers: Sequence[str]) -> tuple[str, list[str]]:
    """An answer and those of people in the form in which they are compared."""
    given, known = _one_line(answer), [_one_line(one) for one in answers]
    if len(set(known)) == 1 < len(known):
        return given, known
    return normalised(given), [normalised(one) for one in known]


def normalised(answer: str) -> str:
    """An answer in lower case, without punctuation and articles, numbers as digits.

    >>> normalised("The two dogs!")
    '2 dogs'
    """
    joins = bool(_DIGITS_AND_COMMA.search(answer))
    plain = answer
    for mark in _PUNCTUATION:
        beside_space = f"{mark} " in answer or f" {mark}" in answer
        plain = plain.replace(mark, "" if joins or beside_space else " ")
    plain = _PERIOD.sub("", plain, count=_MOST_PERIODS)
    words = (_NUMBERS.get(word, word) for word in plain.lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def chance(questions: Sequence[Sequence[str]]) -> float:
    """The accuracy of the best answer that is the same to all questions, given their answers."""
    totals: dict[str, float] = defaultdict(float)
    for answers in questions:
        best: dict[str, float] = {}
        for answer in set(answers):
            form = normalised(answer)
            best[form] = max(best.get(form, 0.0), accuracy(answer, answers))
        for form, value in best.items():
            totals[form] += value
    return max(totals.values(), default=0.0) / max(len(questions), 1)


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()
