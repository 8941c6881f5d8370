"""`jaxmodels eval`: loss, perplexity and bits per character on held-out text."""

import tempfile
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

from tyro.conf import Positional, arg

from jaxmodels.cli import emit, gathered, parse, say
from jaxmodels.errors import MISMATCH, USAGE, Problem, within


@dataclass(frozen=True)
class Eval:
    """Measure the model in PATH on the held-out end of a text."""

    path: Positional[Path]
    """Run directory, checkpoint or model directory."""
    data: str | None = None
    """pydoc, text:PATH, bin:PATH, … (`jaxmodels data list`); by default what the run was trained
    on. A model without its run needs it."""
    valid_fraction: float | None = None
    """Share of the text, from its end, to measure on; 1 for all. By default as in training, or
    0.05 without a run."""
    batch: int = 32
    """Sequences in a batch."""
    max_batches: int | None = None
    """Measure on at most this many full batches, evenly spaced; by default on all windows."""
    vocab: Path | None = None
    """characters.json, tokenizer.json or a JSON list of the characters in the order of their ids,
    for a checkpoint that came without one."""
    set: Annotated[tuple[str, ...], arg(metavar="NAME=VALUE")] = ()
    """What the checkpoint cannot say, such as heads=4."""
    json: bool = False
    """Print one JSON object on standard output."""

    def __post_init__(self) -> None:
        within("--batch", self.batch, 1)
        within("--max-batches", self.max_batches, 1)
        within("--valid-fraction", self.valid_fraction, 0, 1)


def main(argv: list[str]) -> int:
    """Runs the verb."""
    options = parse(Eval, gathered(argv, "--set"), "eval")
    from jaxmodels.commands.open import open_model
    from jaxmodels.runtime import platform
    from jaxmodels.runtime.evaluate import evaluate, loss_function, report
    from jaxmodels.runtime.paths import split

    platform.prepare()
    model, tokenizer = open_model(options.path, options.vocab, options.set)
    with tempfile.TemporaryDirectory(prefix="jaxmodels-eval-") as folder:
        batches = _batches(options, model, tokenizer, Path(folder))
        skeleton, params, rest = split(model)
        import jaxmodels

        package = jaxmodels.package_of(model)
        loss = evaluate(loss_function(package, skeleton), params, rest, batches)
    assert loss is not None
    result = report(loss["loss"], *_measured(package, model, batches, tokenizer))
    if options.json:
        emit(result)
    else:
        per_character = result.get("bits_per_character")
        print(
            f"loss {loss:.4f} nats per token, perplexity {result['perplexity']:.3f}, "
            f"{result['bits_per_token']:.4f} bits per token"
            + (f" and {per_character:.4f} per character" if per_character else "")
            + f", over {result['tokens']:,} tokens"
        )
    return 0


def _measured(
    package: ModuleType, model: Any, batches: Any, tokenizer: Any
) -> tuple[int, int | None]:
    """Targets in the batches, and the characters that they write (None without a tokeniser).

    A special token in a text stands for what the vocabulary cannot write: one character.
    """
    chosen = getattr(package, "targets", lambda _, tokens: tokens[:, 1:])
    special = tokenizer.special_ids if tokenizer else ()
    excess = {i: len(tokenizer.decode([i])) - 1 for i in special}
    tokens = characters = 0
    cut: list[int] = []
    for batch in batches:
        targets = chosen(model, batch["tokens"]).reshape(-1).tolist()
        tokens += len(targets)
        if tokenizer is not None:
            cut += targets
            characters -= sum(map(excess.get, targets, repeat(0)))
            text = tokenizer.decode(cut)
            if not text.endswith("\ufffd"):  # else the border may cut a character
                characters, cut = characters + len(text), []
    if tokenizer is None:
        return tokens, None
    return tokens, characters + len(tokenizer.decode(cut))


def _batches(options: Eval, model: Any, tokenizer: Any, folder: Path) -> Any:
    from data_pipelines.pipelines import open_data

    recipe = _recipe(options.path)
    spec = options.data or recipe.get("data")
    if spec is None:
        raise Problem(
            "there is no run that says which text to measure on",
            where=str(options.path),
            why="this is a model on its own",
            fix="give --data, for example --data text:PATH",
            exit_code=USAGE,
        )
    fraction = options.valid_fraction
    if fraction is None:
        fraction = recipe.get("valid_fraction", 0.05)
    data = open_data(
        spec,
        folder=folder / "data",
        context=model.config.context,
        batch=options.batch,
        valid_fraction=fraction,
        tokenizer=tokenizer,
        segments=recipe.get("segments", False),
    )
    for note in data.notes:
        say(note)
    used = getattr(model.config, "tokens", model.config.vocab)
    if data.vocab_size and data.vocab_size != used:
        raise Problem(
            f"the data has a vocabulary of {data.vocab_size}, the model of {used}",
            fix="give data that was prepared with the model's vocabulary"
            + ("" if tokenizer else ", or give that with --vocab FILE"),
            exit_code=MISMATCH,
        )
    batches = data.valid(options.max_batches)
    if next(iter(batches), None) is None:
        raise Problem(
            "nothing is held out to measure on",
            where=data.spec,
            fix="give --valid-fraction, for example 0.1, or 1 for the whole text",
            exit_code=USAGE,
        )
    return batches


def _recipe(path: Path) -> dict[str, Any]:
    """The recipe of the run that PATH is, or is a checkpoint of; empty when there is none."""
    from jaxmodels.runtime.settings import read_file

    path = path.absolute()
    run = path.parent.parent if path.parent.name == "checkpoints" else path
    file = run / "config.json"  # a model directory has one too, without a recipe
    recipe: dict[str, Any] = read_file(file).get("recipe", {}) if file.is_file() else {}
    return recipe
