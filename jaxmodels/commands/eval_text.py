"""`jaxmodels eval` of a language model: loss, perplexity, bits per character."""

from itertools import repeat
from math import isfinite
from pathlib import Path
from typing import Any

from jaxmodels.architecture import Architecture
from jaxmodels.errors import UNVERIFIED, USAGE, Problem


def measure_text(
    options: Any, model: Any, tokenizer: Any, data: Any
) -> tuple[dict[str, Any], list[str]]:
    """The result for text, and lines that show it: of a mixture also those of each source.

    `options` are an `Eval`.
    """
    import jaxmodels
    from jaxmodels.runtime.evaluate import evaluate, loss_function, report
    from jaxmodels.runtime.paths import split

    batches = _batches(options, data)
    graphdef, params, model_state = split(model)
    package = jaxmodels.package_of(model)
    loss = evaluate(loss_function(package, graphdef), params, model_state, batches)
    assert loss is not None
    refuse_no_number(options.path, loss["loss"])
    parts = getattr(batches, "parts", ())
    if len(parts) < 2:
        result = report(loss["loss"], *_measured(package, model, batches, tokenizer))
        return result, [_text_line(result)]
    sources: dict[str, Any] = {}
    tokens, per_token = 0, 0.0  # characters a token, by share as the loss
    for name, share, part in parts:
        count, characters = _measured(package, model, part, tokenizer)
        sources[name] = {"share": share} | report(loss[f"loss/{name}"], count, characters)
        tokens += count
        per_token += share * (characters or 0) / count
    result = report(loss["loss"], tokens, tokens * per_token or None)
    lines = [f"{name}: {_text_line(one)}" for name, one in sources.items()]
    return result | {"sources": sources}, [_text_line(result), *lines]


def _text_line(result: dict[str, Any]) -> str:
    per_character = result.get("bits_per_character")
    return (
        f"loss {result['loss']:.4f} nats per token, perplexity {result['perplexity']:.3f}, "
        f"{result['bits_per_token']:.4f} bits per token"
        + (f" and {per_character:.4f} per character" if per_character else "")
        + f", over {result['tokens']:,} tokens"
    )


def refuse_no_number(path: Path, loss: float) -> None:
    """Raises a Problem (verification failed) if the loss is not finite, which JSON cannot write."""
    if not isfinite(loss):
        raise Problem(
            f"the loss is not finite: {loss}",
            where=str(path),
            why="parameters or activations are not finite",
            fix="use an earlier checkpoint; `jaxmodels inspect PATH --tensors` shows what is not "
            "finite",
            exit_code=UNVERIFIED,
        )


def _measured(
    package: Architecture, model: Any, batches: Any, tokenizer: Any
) -> tuple[int, int | None]:
    """The number of targets, and of characters that they decode to (None without a tokeniser).

    A special token stands for one character that is not in the vocabulary.
    """
    special = tokenizer.special_ids if tokenizer else ()
    excess = {i: len(tokenizer.decode([i])) - 1 for i in special}
    tokens = characters = 0
    cut: list[int] = []
    for batch in batches:
        targets = package.targets(model, batch["tokens"]).reshape(-1).tolist()
        tokens += len(targets)
        if tokenizer is not None:
            cut += targets
            characters -= sum(map(excess.get, targets, repeat(0)))
            text = tokenizer.decode(cut)
            if not text.endswith("\ufffd"):  # otherwise the border may split a character
                characters, cut = characters + len(text), []
    if tokenizer is None:
        return tokens, None
    return tokens, characters + len(tokenizer.decode(cut))


def _batches(options: Any, data: Any) -> Any:
    batches = data.valid(options.max_batches)
    if next(iter(batches), None) is None:
        raise Problem(
            "nothing is held out to measure on",
            where=data.spec,
            fix="give --valid-fraction, for example 0.1, or 1 for the whole text",
            exit_code=USAGE,
        )
    return batches
