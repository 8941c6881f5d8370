"""A model with its tokeniser, from anything that the bridge can open."""

from pathlib import Path
from typing import Any

import jaxmodels
from jaxmodels.cli import say


def open_model(
    path: Path, vocab: Path | None, settings: tuple[str, ...], weights: str | None = None
) -> tuple[Any, Any]:
    """The module of a model that works with text, and its tokeniser (None when there is none).

    Args:
        path: any source of `bridge.load`.
        vocab: a tokeniser's file to use instead of the checkpoint's.
        settings: config values that the file lacks, as "name=value".
        weights: of a run, "ema" or "raw" (`bridge.load`).

    Raises:
        Problem: as `bridge.load`; (usage) it is a part of other models;
            (corrupt) `vocab` is no tokeniser; (mismatch) it has another size than the model's.
    """
    from bridge.checkpoint.config import parse_settings
    from bridge.checkpoint.loading import model_of
    from bridge.checkpoint.opening import open_checkpoint
    from bridge.formats.tokenizer import given_tokenizer

    source = open_checkpoint(path, config=parse_settings(settings), weights=weights)
    jaxmodels.learner(source.arch)
    for note in source.notes:
        say(note)
    if vocab is not None:
        source = given_tokenizer(source, vocab)
    return model_of(source), source.tokenizer
