"""What is said of a text that a vocabulary cannot write."""

from typing import Any

from jaxmodels.cli import say


def warn_unknown(text: str, tokenizer: Any, what: str) -> None:
    """Says which parts of a text are not in the vocabulary, and whether anything of it is.

    Args:
        text: what a user gave.
        tokenizer: what reads it.
        what: what the text is, "the prompt".
    """
    from data_pipelines.tokenizers import count_unknown, unknown_name

    if not (unknown := tokenizer.unknown(text)):
        return
    name, more = unknown_name(tokenizer), " …" if len(unknown) > 10 else ""
    shown = " ".join(repr(part) for part in unknown[:10])
    say(f"not in the vocabulary, read as {name}: {shown}{more}")
    ids = tokenizer.encode(text)
    if count_unknown(tokenizer, text, ids) == len(ids):
        say(f"nothing of {what} is in the vocabulary: all that the model sees of it is {name}")
