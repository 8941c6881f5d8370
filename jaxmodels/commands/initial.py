"""`train --init PATH`: a run that begins from a checkpoint instead of from random parameters."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jaxmodels
from jaxmodels.cli import say
from jaxmodels.errors import MISMATCH, USAGE, Problem
from jaxmodels.recipe import Recipe


def open_initial(path: str, spec: str) -> tuple[str, str, Any, Any]:
    """Architecture, preset of the recipe, Config and opened checkpoint (a `Checkpoint`).

    Fields that only matter in training (dropout), which a checkpoint of another program need not
    say, are the preset's. Of another architecture the vocabulary is taken, where it has words; what
    is but a part of the model (dinov2) brings its Config.

    Args:
        path: any source of `bridge.load`.
        spec: ARCH:PRESET as given; empty takes what the checkpoint says.

    Raises:
        Problem: what `bridge.load` raises; (usage) no preset is given, nor known.
    """
    given = spec.partition(":")[0] or None
    source = _opened(Path(path), given)
    if not spec and source.preset is None:
        raise Problem(
            "ARCH:PRESET is missing",
            where=path,
            why=f"it is {source.arch} of no preset's sizes; the preset gives the recipe",
            fix=f"for example: jaxmodels train {source.arch}:tiny --init {path} --out runs/first",
            exit_code=USAGE,
        )
    arch, preset, model = jaxmodels.preset(spec or f"{source.arch}:{source.preset}")
    if arch != source.arch:
        is_part = hasattr(model, source.arch)
        taken = {source.arch: _part(model, source)} if is_part else {"vocab": source.config.vocab}
        return arch, preset, replace(model, **taken), source
    trained = {name: getattr(model, name) for name in source.assumed if name.startswith("dropout")}
    return arch, preset, replace(source.config, **trained), source


def _part(model: Any, source: Any) -> Any:
    """The Config of a tower that is to be a model's part.

    How positions are interpolated is in no file of tensors; by which way the tower is best known
    is what is assumed. Where the model computes another way only (Stage 1), it is that one.
    """
    part, own = source.config, getattr(model, source.arch).interpolation
    if "interpolation" not in source.assumed or part.interpolation == own:
        return part
    try:
        replace(model, **{source.arch: part})
    except Problem:
        part = replace(part, interpolation=own)
        replace(model, **{source.arch: part})  # raises for what is wrong besides
        say(f"positions are interpolated by {own!r}, the only way this model supports")
    return part


def _opened(path: Path, arch: str | None) -> Any:
    """The source, of this architecture or of one that it carries something over from.

    Of a run its trained weights: those that its moments are of.
    """
    from bridge.checkpoint.opening import open_checkpoint
    from bridge.checkpoint.transfer import rows_between

    package = jaxmodels.arch(arch) if arch else None
    if package is not None and package.INIT_FROM:
        source = open_checkpoint(path, weights="raw")
        if rows_between(package, source):
            return source
    return open_checkpoint(path, arch, weights="raw")


def refuse_own_characters(recipe: Recipe, source: Any) -> None:
    """For a checkpoint without a tokeniser: the characters of some text are not the ids it learned.

    Nor are GPT-2's tokens, where a tokeniser lies beside it that is not read.

    Raises:
        Problem: (mismatch) the recipe would take these.
    """
    others = ("chars", "bare-chars", *(["gpt2"] if source.origin.get("no_tokenizer") else []))
    if recipe.tokenizer in others and not recipe.data.startswith("bin:"):
        raise Problem(
            "the checkpoint of --init has no vocabulary, and the text's own would differ",
            where=str(source.path),
            fix="give the one that it was trained with: --tokenizer PATH names it (characters.json,"
            " tokenizer.json or a JSON list of characters), or --data bin:PATH what it made",
            exit_code=MISMATCH,
        )


def starter(source: Any, config: Any, with_moments: bool) -> Callable[[Any], Any]:
    """A function that puts the checkpoint into a fresh `State`: parameters, and if asked AdamW's.

    The step count, and with it the learning-rate schedule, begins at 0; AdamW's own count goes on.

    Of another architecture what fits is taken, and told.

    Raises:
        Problem: (mismatch) the sizes given make another model; there is no optimiser state.
    """
    import jax
    import numpy as np

    from bridge.checkpoint.config import values_of
    from bridge.core.moments import required
    from bridge.storage.stacks import stack_blocks
    from jaxmodels.runtime.optim import with_moments as with_adam
    from jaxmodels.sizes import parameter_shapes

    package = jaxmodels.package_of(config)
    if package is not jaxmodels.arch(source.arch):
        return _carrier(package, source, config, with_moments)
    if parameter_shapes(source.arch, config) != source.shapes():
        ours, theirs = values_of(config), values_of(source.config)
        changed = [f"{k}: {theirs[k]!r} → {ours[k]!r}" for k in ours if ours[k] != theirs[k]]
        raise Problem(
            "the model's sizes differ from those of the checkpoint of --init",
            where=str(source.path),
            why="\n".join(changed),
            fix="leave those settings out",
            exit_code=MISMATCH,
        )
    moments = required(source.moments(), source.path) if with_moments else None

    def placed(tensors: Any, like: dict[str, Any]) -> dict[str, Any]:
        values = stack_blocks(tensors, package, lambda tensor: np.asarray(tensor.read()))
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
        model_state = state.model_state | placed(kept, state.model_state)
        return state._replace(params=placed(params, state.params), model_state=model_state, opt=opt)

    return start


def _carrier(package: Any, source: Any, config: Any, with_moments: bool) -> Callable[[Any], Any]:
    """`starter` from another architecture."""
    import jax
    import numpy as np

    from bridge.checkpoint.transfer import carried
    from jaxmodels.sizes import parameter_shapes

    if with_moments:
        raise Problem(
            f"the optimiser's state of {source.arch} is not that of another architecture",
            where=str(source.path),
            fix="leave --init-optimizer out",
            exit_code=MISMATCH,
        )
    tensors, notes = carried(package, source, parameter_shapes(package.name, config))
    say(*notes)

    def start(state: Any) -> Any:
        taken = {
            path: jax.make_array_from_callback(
                tensor.shape,
                state.params[path].sharding,
                np.asarray(tensor.read(), state.params[path].dtype).__getitem__,
            )
            for path, tensor in tensors.items()
        }
        return state._replace(params=state.params | taken)

    return start
