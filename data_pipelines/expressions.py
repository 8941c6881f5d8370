"""Checks by its form that a regular expression is matched in time bounded by the text's length.

A backtracking engine tries every way to split a nested repetition, exponentially many for `(a+)+b`.
"""

import re

MAX_LENGTH = 10_000  # characters; those of published tokenisers have a few hundred
MAX_OPEN = 3  # unbounded repetitions in an alternative: time grows with this power of the length
MAX_TIMES = 1_000  # of a bounded repetition

_ESCAPE = re.compile(r"\\(?:[pPxuNX]\{[^}]*\}|.)", re.DOTALL)
_BACK = re.compile(r"\\(?:[1-9]|k|g)")
_GROUP = re.compile(r"\((?:\?(?:[imx-]*:|[imx-]+\)|[=!>]|<[=!]|<\w+>))?")
_REPEAT = re.compile(r"(?:[*+?]|\{(?P<low>\d*)(?P<to>,?)(?P<high>\d*)\})")


class _Group:
    """What was parsed of a group so far."""

    def __init__(self) -> None:
        self.open = self.most = 0  # unbounded repetitions: in this alternative; in any
        self.choices = False

    def choose(self) -> None:
        """Starts the next alternative."""
        self.choices, self.most, self.open = True, max(self.most, self.open), 0

    def add(self, count: int) -> None:
        """Counts unbounded repetitions."""
        self.open += count
        self.most = max(self.most, self.open)


def fault(expression: str) -> str:
    """Why an expression (in Oniguruma's syntax) may take forever; empty if it cannot."""
    if len(expression) > MAX_LENGTH:
        return f"it has {len(expression):,} characters"
    groups, last, at = [_Group()], _Group(), 0
    while at < len(expression):
        char, atom = expression[at], True
        if char == "\\":
            if _BACK.match(expression, at):
                return "it has a back-reference"
            found = _ESCAPE.match(expression, at)
            at = found.end() if found else at + 1
        elif char == "[":
            at = _after_class(expression, at)
        elif char == "(":
            if not (found := _GROUP.match(expression, at)) or expression[found.end() :][:1] == "?":
                return "it has a group of an unknown kind"
            at, atom = found.end(), False
            if found[0].endswith(")"):  # (?i): what follows is the same group
                continue
            groups.append(_Group())
            if len(groups) > 50:
                return "its groups are nested too deeply"
        elif char == ")":
            if len(groups) == 1:
                return "it has an unmatched closing parenthesis"
            last, at, atom = groups.pop(), at + 1, False
            why, at = _repeated(expression, at, last, groups[-1])
            if why:
                return why
        elif char == "|":
            groups[-1].choose()
            at, atom = at + 1, False
        else:
            at += 1
        if atom:
            why, at = _repeated(expression, at, _Group(), groups[-1])
            if why:
                return why
        if groups[-1].most > MAX_OPEN:
            return f"it has more than {MAX_OPEN} unbounded repetitions in a row"
    return ""


def _repeated(expression: str, at: int, what: _Group, around: _Group) -> tuple[str, int]:
    """Parses a repetition, if there is one at a position; a fault, and the position after it."""
    times = _REPEAT.match(expression, at)
    if not times:
        around.add(what.most)
        return "", at
    sign = times[0]
    at = times.end()
    if expression[at : at + 1] in ("?", "+") and not sign.startswith("{"):
        at += 1  # lazy or possessive
    elif sign.startswith("{") and expression[at : at + 1] == "?":
        at += 1
    if _REPEAT.match(expression, at):
        return "it repeats a repetition", at
    high = times["high"] if sign.startswith("{") else ""
    low = times["low"] if sign.startswith("{") else ""
    unbounded = sign in "*+" or bool(sign.startswith("{") and times["to"] and not high)
    most = max(int(high[:9] or 0), int(low[:9] or 0))
    if most > MAX_TIMES:
        return f"it repeats something {most:,} times", at
    if (unbounded or most > 1) and (what.most or what.choices):
        return "it repeats what may match in several ways", at
    around.add(1 if unbounded else what.most)
    return "", at


def _after_class(expression: str, at: int) -> int:
    """The position after a character class, `[...]`, which may contain others."""
    depth = 0
    while at < len(expression):
        char = expression[at]
        if char == "\\":
            at += 1
        elif char == "[":
            depth += 1
            if expression[at + 1 : at + 2] == "^":
                at += 1
            if expression[at + 1 : at + 2] == "]":  # the character itself
                at += 1
        elif char == "]":
            depth -= 1
            if not depth:
                return at + 1
        at += 1
    return at
