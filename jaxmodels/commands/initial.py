"""`train --init PATH`: a run that begins from a checkpoint instead of from random parameters."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jaxmodels
from jaxmodels.errors import MISMATCH, USAGE, Problem
from jaxmodels.recipe import Recipe


def open_initial(path: str, spec: str) -> tuple[str, str, Any, Any]:
    """Architecture, preset of the recipe, Config and opened checkpoint (`bridge.sources.Source`).

    Fields that only matter in training (dropout), which a checkpoint of another program need not
    say, are the preset's.

    Args:
        path: any source of `bridge.load`.
        spec: ARCH:PRESET as given; empty takes what the checkpoint says.

    Raises:
        Problem: what `bridge.load` raises; (usage) no preset is given, nor known.
    """
    from bridge.sources import open_source

    given = spec.partition(":")[0] or None
    source = open_source(Path(path), given)
    if not spec and source.preset is None:
        raise Problem(
            "ARCH:PRESET is missing",
            where=path,
            why=f"it is {source.arch} of no preset's sizes; the preset gives the recipe",
            fix=f"for example: jaxmodels train {source.arch}:tiny --init {path} --out runs/first",
            exit_code=USAGE,
        )
    arch, preset, model = jaxmodels.preset(spec or f"{source.arch}:{source.preset}")
    trained = {name: getattr(model, name) for name in source.assumed if name.startswith("dropout")}
    return arch, preset, replace(source.config, **trained), source


def refuse_own_characters(recipe: Recipe, source: Any) -> None:
    """For a checkpoint without a tokeniser: the characters of some text are not the ids it learned.

    Raises:
        Problem: (mismatch) the recipe would count those of its text.
    """
    if recipe.tokenizer == "chars" and not recipe.data.startswith("bin:"):
        raise Problem(
            "the checkpoint to begin from has no vocabulary, and the text's would be another",
            where=str(source.path),
            fix="give the one that it was trained with: --tokenizer PATH names it (characters.json,"
            " tokenizer.json or a JSON list of characters), or --data bin:PATH what it made",
            exit_code=MISMATCH,
        )


def starter(source: Any, config: Any, with_moments: bool) -> Callable[[Any], Any]:
    """A function that puts the checkpoint into a fresh `State`: parameters, and if asked AdamW's.

    The step count, and with it the learning-rate schedule, begins at 0; AdamW's own count goes on.

    Raises:
        Problem: (mismatch) the sizes given make another model; there is no optimiser state.
    """
    import jax
    import numpy as np

    from bridge.configuration import values_of
    from bridge.moments import required
    from bridge.sources import parameter_shapes
    from bridge.stacks import joined
    from jaxmodels.runtime.optim import with_moments as with_adam

    if parameter_shapes(source.arch, config) != source.shapes():
        ours, theirs = values_of(config), values_of(source.config)
        changed = [f"{k}: {theirs[k]!r} → {ours[k]!r}" for k in ours if ours[k] != theirs[k]]
        raise Problem(
            "the model has other sizes than the checkpoint it is to begin from",
            where=str(source.path),
            why="\n".join(changed),
            fix="leave those settings out",
            exit_code=MISMATCH,
        )
    moments = required(source.moments(), source.path) if with_moments else None

    package = jaxmodels.arch(source.arch)

    def placed(tensors: Any, like: dict[str, Any]) -> dict[str, Any]:
        values = joined(tensors, package, lambda tensor: np.asarray(tensor.read()))
        return {  # each device takes its part; no process needs another's
            path: jax.make_array_from_callback(
                array.shape, like[path].sharding, array.astype(like[path].dtype).__getitem__
            )
            for path, array in values
        }

    def start(state: Any) -> Any:
        opt = state.opt
        if moments is not None:
            mu, nu = placed(moments.mu, state.params), placed(moments.nu, state.params)
            opt = with_adam(opt, moments.count, mu, nu)
        kept = {path: t for path, t in source.tensors.items() if path in source.state}
        params = {path: t for path, t in source.tensors.items() if path not in kept}
        rest = state.rest | placed(kept, state.rest)
        return state._replace(params=placed(params, state.params), rest=rest, opt=opt)

    return start
