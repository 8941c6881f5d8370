"""The data that `jaxmodels eval` measures on."""

from pathlib import Path
from typing import Any

from jaxmodels.cli import say
from jaxmodels.errors import MISMATCH, USAGE, Problem
from jaxmodels.sizes import vocab_used


def open_held_out(
    options: Any, model: Any, tokenizer: Any, folder: Path, asking: str | None = None
) -> Any:
    """The data to measure on, of the model's kind and vocabulary.

    Args:
        options: an `Eval`.
        model: the model.
        tokenizer: its tokeniser; None without one.
        folder: where images are prepared.
        asking: the spec of --questions, all of which are asked.

    Raises:
        Problem: (usage) the data is unknown or of another kind; (mismatch) its vocabulary is not
            the model's; and as `data_pipelines`' `open_data`.
    """
    import jaxmodels
    from data_pipelines.pipelines import open_data
    from jaxmodels.commands.run_data import image_sizes, refuse_other_kind

    recipe = _recipe(options.path)
    spec = asking or options.data or recipe.get("data")
    if spec is None:
        raise Problem(
            "--data is missing",
            where=str(options.path),
            why="this is a model without its run, so its training data is unknown",
            fix="give --data, for example --data text:PATH",
            exit_code=USAGE,
        )
    refuse_other_kind(spec, model.config, jaxmodels.package_of(model).name)
    fraction = 1.0 if asking else options.valid_fraction
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
        **image_sizes(model.config),
    )
    for note in data.notes:
        say(note)
    used = vocab_used(model.config)
    if data.vocab_size and data.vocab_size != used:
        raise Problem(
            f"the data has a vocabulary of {data.vocab_size}, the model of {used}",
            fix="give data prepared with the model's vocabulary"
            + ("" if tokenizer else ", or the vocabulary with --vocab FILE"),
            exit_code=MISMATCH,
        )
    return data


def _recipe(path: Path) -> dict[str, Any]:
    """The recipe of the run that PATH is or is a checkpoint of; empty if there is none."""
    from jaxmodels.runtime.settings import read_file

    path = path.absolute()
    run = path.parent.parent if path.parent.name == "checkpoints" else path
    file = run / "config.json"  # a model directory has one too, without a recipe
    recipe: dict[str, Any] = read_file(file).get("recipe", {}) if file.is_file() else {}
    return recipe
