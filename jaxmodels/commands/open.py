"""A model with its tokeniser, from anything that the bridge can open."""

import json
from pathlib import Path
from typing import Any

from jaxmodels.cli import say
from jaxmodels.errors import MISMATCH, Problem


def open_model(path: Path, vocab: Path | None, settings: tuple[str, ...]) -> tuple[Any, Any]:
    """The module, and the tokeniser of its vocabulary (None when there is none).

    Args:
        path: any source of `bridge.load`.
        vocab: a vocabulary file that stands in for the checkpoint's own.
        settings: config values that the file cannot say, as "name=value".

    Raises:
        Problem: what `bridge.load` raises; (mismatch) the vocabulary is not of the model's size.
    """
    from bridge.loading import model_of
    from bridge.sources import open_source, parse_settings
    from data_pipelines.tokenizers import tokenizer_from_json

    source = open_source(path, config=parse_settings(settings))
    for note in source.notes:
        say(note)
    model = model_of(source)
    content = json.loads(vocab.read_text(encoding="utf-8")) if vocab else source.vocabulary
    if content is None:
        return model, None
    tokenizer = tokenizer_from_json(content, str(vocab or path))
    if tokenizer.vocab_size != model.config.vocab:
        raise Problem(
            f"the vocabulary has {tokenizer.vocab_size} entries, the model {model.config.vocab}",
            where=str(vocab or path),
            fix="give the vocabulary that the model was trained with",
            exit_code=MISMATCH,
        )
    return model, tokenizer
