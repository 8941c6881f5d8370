"""Which tokeniser a model gets: the one beside its tensors, or the convention's, or none."""

from pathlib import Path
from typing import Any, NamedTuple

from bridge.formats.raw import RawCheckpoint
from bridge.formats.tokenizer import NO_TOKENIZER, check_fits, check_size, tokenizer_by_convention
from data_pipelines.tokenizers import Tokenizer
from jaxmodels.sizes import vocab_used


class Beside(NamedTuple):
    """The tokeniser that comes with the tensors."""

    tokenizer: Tokenizer | None = None
    unread: str = ""
    """Why one that is there is not taken: then no convention stands in for it."""


def beside(contents: RawCheckpoint, rows: Any) -> Beside:
    """The tokeniser of a checkpoint whose embedding has this number of rows.

    One beside a single file may be another model's.

    Raises:
        Problem: (mismatch) the embedding has fewer rows than it has tokens.
    """
    tokenizer = contents.tokenizer
    if tokenizer is None:
        return Beside(None, contents.unread)
    own = contents.tokenizer_inside or not contents.path.is_file()
    if not own and isinstance(rows, int) and tokenizer.vocab_size > rows:
        why = f"it has {tokenizer.vocab_size} tokens, and the model {rows} rows for them"
        return Beside(None, why)
    check_fits(tokenizer, rows, contents.path)
    return Beside(tokenizer)


def choose(config: Any, found: Beside, where: Path) -> tuple[Tokenizer | None, list[str]]:
    """The model's tokeniser, and notes.

    Raises:
        Problem: (mismatch) the one that comes with the tensors has not as many ids as the model.
    """
    if not vocab_used(config):
        return None, []
    if found.tokenizer is not None:
        check_size(found.tokenizer, config, where)
        return found.tokenizer, []
    if found.unread:
        return None, [f"the tokeniser beside the tensors is not used: {found.unread}"]
    by_convention = tokenizer_by_convention(config)
    return by_convention, ["assumed: the tokeniser is GPT-2's"] if by_convention else []


def with_reason(
    origin: dict[str, Any], config: Any, found: Beside, chosen: Tokenizer | None
) -> dict[str, Any]:
    """The origin, with the reason why a tokeniser that is there is not used, if that is so."""
    origin = {key: value for key, value in origin.items() if key != NO_TOKENIZER}
    lacking = found.unread and chosen is None and vocab_used(config)
    return origin | ({NO_TOKENIZER: found.unread} if lacking else {})
