"""Warns of text that is not in a vocabulary."""

from typing import Any

from jaxmodels.cli import say


def warn_unknown(text: str, tokenizer: Any, what: str) -> None:
    """Prints which parts of a text are not in the vocabulary, and whether any of it is.

    Args:
        text: the user's text.
        tokenizer: the tokeniser that encodes it.
        what: names the text, such as "the prompt".
    """
    from data_pipelines.tokenizers import count_unknown, unknown_name

    if not (unknown := tokenizer.unknown(text)):
        return
    name, more = unknown_name(tokenizer), " …" if len(unknown) > 10 else ""
    shown = " ".join(repr(part) for part in unknown[:10])
    say(f"not in the vocabulary, read as {name}: {shown}{more}")
    ids = tokenizer.encode(text)
    if count_unknown(tokenizer, text, ids) == len(ids):
        say(f"nothing of {what} is in the vocabulary: the model sees only {name}")
