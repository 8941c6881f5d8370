"""`train --lora`: the base model that a run adapts.

The run keeps a copy, `RUN/base`, as a model directory: its checkpoints hold the adapters only, and
the file given to --init may change or go away. The directory's manifest has the digest of every
file; each checkpoint's manifest has that of the directory's.
"""

from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import jaxmodels
from jaxmodels.cli import say
from jaxmodels.commands.initial import placed, state_initializer
from jaxmodels.commands.train_options import Request
from jaxmodels.errors import USAGE, Problem
from jaxmodels.recipe import Lora
from jaxmodels.runtime.runs.rundir import BASE


def check(request: Request, resuming: bool) -> None:
    """Refuses a request whose adapters have no base.

    Raises:
        Problem: (usage) there is no --init, it is of another architecture or lacks parameters
            that the model has, it is to bring optimiser state too, or no kernel matches the
            targets.
    """
    adapters = request.recipe.adapters
    if adapters is None:
        return
    if not resuming:
        _check_source(request)
    _announce(request, adapters)


def _check_source(request: Request) -> None:
    source = request.source
    if source is None:
        raise Problem(
            "--lora needs --init",
            why="adapters change a trained model, and a new one has random parameters",
            fix="give the checkpoint to adapt: --init PATH",
            exit_code=USAGE,
        )
    if source.arch != request.arch:
        raise Problem(
            f"--lora cannot adapt {source.arch} as {request.arch}",
            where=str(source.path),
            why="the parameters that --init does not bring would stay random: they are frozen",
            fix=f"train {request.arch} first, without --lora",
            exit_code=USAGE,
        )
    if added := [
        name
        for name in request.package.ADDED
        if getattr(request.config, name) and not getattr(source.config, name)
    ]:
        raise Problem(
            f"--lora cannot add {' and '.join(added)} to a model",
            where=str(source.path),
            why="the parameters that --init does not bring would stay random: they are frozen",
            fix=f"leave them out with --model.no-{added[0]}, or train them first, without --lora",
            exit_code=USAGE,
        )
    if request.options.init_optimizer:
        raise Problem(
            "--init-optimizer does not go with --lora",
            why="the moments belong to parameters that are frozen",
            fix="leave it out",
            exit_code=USAGE,
        )


def _announce(request: Request, adapters: Lora) -> None:
    """Prints what is trained; refuses targets that match nothing."""
    import jax

    from jaxmodels.runtime.lora import draw, targets
    from jaxmodels.runtime.paths import matrices, params_of
    from jaxmodels.sizes import outline

    package = request.package
    shapes = params_of(outline(package, request.config))
    key = jax.eval_shape(jax.random.key, 0)
    drawn = jax.eval_shape(lambda key: draw(package, adapters, shapes, key), key)
    count = sum(leaf.size for leaf in drawn.values())
    found = [matrices(path, shapes[path].shape) for path in targets(package, adapters, shapes)]
    number = sum(prod(sizes[0]) for sizes in found if sizes)  # a stack holds one of each block
    say(f"LoRA: {count:,} parameters are trained; they adapt {number} matrices")


def keep(run: Path, source: Any) -> None:
    """Copies the base model to `RUN/base`, as a model directory.

    Args:
        run: the run directory.
        source: the opened checkpoint of --init.
    """
    import bridge

    report = bridge.convert(source.path, run / BASE, arch=source.arch, weights="raw", force=True)
    say(f"the base model is kept in {run / BASE} ({report.bytes / 1e6:,.1f} MB)")


def initializer(run: Path, config: Any) -> Callable[[Any], Any]:
    """A function that puts the run's base model into a fresh `State`."""
    from bridge.checkpoint.opening import open_checkpoint

    return state_initializer(open_checkpoint(run / BASE), config, with_moments=False)


def reader(run: Path, config: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A function path → ShapeDtypeStruct → arrays, which reads the run's base model."""
    from bridge.checkpoint.opening import open_checkpoint

    def read(wanted: dict[str, Any]) -> dict[str, Any]:
        return placed(jaxmodels.package_of(config), open_checkpoint(run / BASE).tensors, wanted)

    return read
