"""`train --init PATH`: starts a run from a checkpoint instead of random parameters."""

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

    Fields that only matter in training (dropout) come from the preset if the checkpoint lacks them,
    and so do those that add parameters (the architecture's `ADDED`).
    From another architecture the vocabulary size is taken; a part of the model (dinov2) brings its
    Config.

    Args:
        path: any source of `bridge.load`.
        spec: ARCH:PRESET as given; empty: as in the checkpoint.

    Raises:
        Problem: as `bridge.load`; (usage) no preset is given or known.
    """
    given = spec.partition(":")[0] or None
    source = _opened(Path(path), given)
    if not spec and source.preset is None:
        raise Problem(
            "ARCH:PRESET is missing",
            where=path,
            why=f"it is a {source.arch} of no preset's sizes, and the recipe comes from a preset",
            fix=f"for example: jaxmodels train {source.arch}:tiny --init {path} --out runs/first",
            exit_code=USAGE,
        )
    arch, preset, model = jaxmodels.preset(spec or f"{source.arch}:{source.preset}")
    if arch != source.arch:
        is_part = hasattr(model, source.arch)
        taken = {source.arch: _part(model, source)} if is_part else {"vocab": source.config.vocab}
        return arch, preset, replace(model, **taken), source
    named = [name for name in source.assumed if name.startswith("dropout")]
    named += [name for name in jaxmodels.arch(arch).ADDED if getattr(model, name)]
    changes = {name: getattr(model, name) for name in named}
    return arch, preset, replace(source.config, **changes), source


def _part(model: Any, source: Any) -> Any:
    """The Config of a tower that becomes a part of a model.

    Files of tensors do not record how positions are interpolated, so the usual way is assumed; a
    model that supports only another one (Stage 1) gets that.
    """
    part, supported = source.config, getattr(model, source.arch).interpolation
    if "interpolation" not in source.assumed or part.interpolation == supported:
        return part
    try:
        replace(model, **{source.arch: part})
    except Problem:
        part = replace(part, interpolation=supported)
        replace(model, **{source.arch: part})  # raises if anything else is wrong
        say(f"positions are interpolated by {supported!r}, the only way this model supports")
    return part


def _opened(path: Path, arch: str | None) -> Any:
    """The checkpoint, of this architecture or of one that it can be initialised from.

    Of a run the raw weights, to which its moments belong.
    """
    from bridge.checkpoint.opening import open_checkpoint
    from bridge.checkpoint.transfer import rows_between

    package = jaxmodels.arch(arch) if arch else None
    if package is not None and package.INIT_FROM:
        source = open_checkpoint(path, weights="raw")
        if rows_between(package, source):
            return source
    return open_checkpoint(path, arch, weights="raw")


def refuse_new_vocabulary(recipe: Recipe, source: Any) -> None:
    """Refuses a new vocabulary for a checkpoint without a tokeniser: its ids would mean other
    tokens. The same goes for GPT-2's, if the checkpoint has a tokeniser that cannot be read.

    Raises:
        Problem: (mismatch) the recipe would make one.
    """
    others = ("chars", "bare-chars", *(["gpt2"] if source.origin.get("no_tokenizer") else []))
    if recipe.tokenizer in others and not recipe.data.startswith("bin:"):
        raise Problem(
            "the checkpoint of --init has no vocabulary, and one made from the text would differ",
            where=str(source.path),
            fix="give the one that it was trained with: --tokenizer PATH (characters.json, "
            "tokenizer.json or a JSON list of characters), or text encoded by it: --data bin:PATH",
            exit_code=MISMATCH,
        )


def refuse_other_tokenizer(given: str, source: Any) -> None:
    """Refuses a tokeniser that is not the one of the checkpoint, which is used.

    Args:
        given: the value of --tokenizer; "" without it.
        source: the opened checkpoint of --init.

    Raises:
        Problem: (mismatch) they differ; as `open_tokenizer`.
    """
    from data_pipelines.characters import CharTokenizer
    from data_pipelines.tokenizers import BARE_CHARS, CHARS, WORDS, open_tokenizer
    from data_pipelines.vocabularies import wanted
    from data_pipelines.words import are_words

    own = source.tokenizer
    if given in (CHARS, BARE_CHARS):
        same = isinstance(own, CharTokenizer) and bool(own.specials) == (given == CHARS)
    elif given == WORDS:
        same = are_words(own)
    else:
        same = not given or (not wanted(given) and open_tokenizer(given).digest == own.digest)
    if not same:
        raise Problem(
            f"--tokenizer {given} is not the tokeniser of the checkpoint of --init",
            where=str(source.path),
            why="its parameters belong to the tokens that it was trained with",
            fix="leave out --tokenizer, or train a new model with it, without --init",
            exit_code=MISMATCH,
        )


def state_initializer(source: Any, config: Any, with_moments: bool) -> Callable[[Any], Any]:
    """A function that puts the checkpoint into a fresh `State`: parameters, and optionally AdamW's
    moments.

    The step count, and with it the learning-rate schedule, starts at 0; AdamW's count continues.
    From another architecture the parameters that fit are taken, and reported; so are the
    parameters that a field of `ADDED` adds, which begin as in a new model.

    Raises:
        Problem: (mismatch) the sizes differ, or there is no optimiser state.
    """
    from bridge.checkpoint.config import values_of
    from bridge.core.moments import required
    from jaxmodels.runtime.optim import with_moments as with_adam
    from jaxmodels.sizes import parameter_shapes

    package = jaxmodels.package_of(config)
    if package is not jaxmodels.arch(source.arch):
        return _transfer_initializer(package, source, config, with_moments)
    added = _added(package, config, source)
    shapes = parameter_shapes(source.arch, config)
    rows = _new_rows(shapes, config, source)
    if shapes != source.shapes() and not added and not rows:
        ours, theirs = values_of(config), values_of(source.config)
        changed = [f"{k}: {theirs[k]!r} → {ours[k]!r}" for k in ours if ours[k] != theirs[k]]
        raise Problem(
            "the model's sizes differ from those of the checkpoint of --init",
            where=str(source.path),
            why="\n".join(changed),
            fix="leave out those settings",
            exit_code=MISMATCH,
        )
    added = added or rows
    if added and with_moments:
        raise Problem(
            "the optimiser state of the checkpoint of --init lacks the parameters that are added",
            where=str(source.path),
            why=f"new here: {', '.join(added)}",
            fix="leave out --init-optimizer",
            exit_code=MISMATCH,
        )
    if added:
        what = f"rows of {', '.join(rows)}" if rows else ", ".join(added)
        say(f"all of {source.path} is kept; new here: {what}")
    moments = required(source.moments(), source.path) if with_moments else None

    def start(state: Any) -> Any:
        opt = state.opt
        if moments is not None:
            mu, nu = (placed(package, held, state.params) for held in (moments.mu, moments.nu))
            opt = with_adam(opt, moments.count, mu, nu)
        kept = {path: t for path, t in source.tensors.items() if path in source.state}
        params = {path: t for path, t in source.tensors.items() if path not in kept}
        model_state = state.model_state | placed(package, kept, state.model_state)
        begun = placed(package, params, state.params)
        begun |= {path: _before(begun[path], state.params[path]) for path in rows}
        return state._replace(params=state.params | begun, model_state=model_state, opt=opt)

    return start


def _added(package: Any, config: Any, source: Any) -> list[str]:
    """The first words of parameters that the fields of `ADDED` add to those of the source; empty
    unless these are the only difference in shapes."""
    from jaxmodels.sizes import parameter_shapes

    ours, theirs = parameter_shapes(source.arch, config), source.shapes()
    back = {name: getattr(source.config, name) for name in package.ADDED}
    if parameter_shapes(source.arch, replace(config, **back)) != theirs:
        return []
    return sorted({path.partition("/")[0] for path in ours.keys() - theirs.keys()})


def _new_rows(shapes: Any, config: Any, source: Any) -> list[str]:
    """The parameters that have rows for new tokens; empty unless these are the only difference."""
    from jaxmodels.sizes import parameter_shapes

    if config.vocab <= source.config.vocab:
        return []
    names = [name for name in ("vocab", "tokens") if hasattr(config, name)]
    same = replace(config, **{name: getattr(source.config, name) for name in names})
    theirs = source.shapes()
    if parameter_shapes(source.arch, same) != theirs:
        return []
    return sorted(path for path in shapes if shapes[path] != theirs[path])


def _before(known: Any, fresh: Any) -> Any:
    """An array of new rows, or columns, that begins with known ones."""
    import jax
    import numpy as np

    values = np.array(fresh)
    values[tuple(slice(size) for size in known.shape)] = np.asarray(known)
    return jax.make_array_from_callback(values.shape, fresh.sharding, values.__getitem__)


def placed(package: Any, tensors: Any, like: dict[str, Any]) -> dict[str, Any]:
    """Tensors (named block by block) as arrays in the dtype and sharding of `like`; each device
    gets its shard, and no process needs another's."""
    import jax
    import numpy as np

    from bridge.storage.stacks import stack_blocks

    values = stack_blocks(tensors, package, lambda tensor: np.asarray(tensor.read()))
    return {
        path: jax.make_array_from_callback(
            array.shape, like[path].sharding, array.astype(like[path].dtype).__getitem__
        )
        for path, array in values
        if path in like
    }


def _transfer_initializer(
    package: Any, source: Any, config: Any, with_moments: bool
) -> Callable[[Any], Any]:
    """`state_initializer` for a checkpoint of another architecture."""
    import jax
    import numpy as np

    from bridge.checkpoint.transfer import carried
    from jaxmodels.sizes import parameter_shapes

    if with_moments:
        raise Problem(
            f"the optimiser state of {source.arch} does not fit another architecture",
            where=str(source.path),
            fix="leave out --init-optimizer",
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
