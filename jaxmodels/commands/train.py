"""`jaxmodels train`: resolves the settings, opens the data, trains, says how to go on."""

import json
import shlex
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

from tyro.conf import arg

import jaxmodels
from jaxmodels.cli import emit, parse, say
from jaxmodels.commands import resume
from jaxmodels.errors import (
    DONE,
    INTERRUPTED,
    MISMATCH,
    STOPPED,
    USAGE,
    Problem,
)
from jaxmodels.recipe import Recipe
from jaxmodels.runtime import settings

C = TypeVar("C")

_BEGUN = time.monotonic()  # a granted session runs since the process started, near enough


@dataclass(frozen=True)
class Train(Generic[C]):
    """Train ARCH:PRESET. To continue a run, repeat the command, or give only --out."""

    recipe: Annotated[Recipe, arg(name="")]
    model: C
    out: Path | None = None
    """The run directory."""
    max_hours: float | None = None
    """Stop in time to save before this many hours have passed (exit code 75)."""
    resume: Literal["auto", "never", "must"] = "auto"
    """auto: continue if there is a checkpoint; never: refuse if there is; must: refuse if not."""
    config: Path | None = None
    """A .json or .toml file with {"model": …, "recipe": …}; flags win over it."""
    print_config: bool = False
    """Print the resolved settings as JSON and stop."""
    find_lr: bool = False
    """Instead of training, try learning rates from 1e-7 to 10, plot the losses, suggest one."""
    json: bool = False
    """Print the summary as one JSON object on standard output."""


def main(argv: list[str]) -> int:
    """Runs the verb; 0 done, 75 stopped but resumable, 130 interrupted (also resumable)."""
    arch, preset, options = resolve(argv)
    resolved = {
        "arch": arch,
        "preset": preset,
        "model": asdict(options.model),
        "recipe": asdict(options.recipe),
    }
    if options.print_config:
        print(json.dumps(resolved, indent=2))
        return DONE
    if options.out is None:
        raise Problem("--out is missing", fix="give a folder for the run", exit_code=USAGE)
    with resume.locked(options.out):
        return _train(options.out, options, resolved)


def resolve(argv: list[str]) -> tuple[str, str, Train[Any]]:
    """Settings in rising order of power: preset (or the run's config.json), --config, flags."""
    spec, argv = (argv[0], argv[1:]) if argv and not argv[0].startswith("-") else ("", argv)
    stored = _value_of(argv, "--out") and Path(_value_of(argv, "--out"), "config.json")
    if spec or not stored or not stored.exists():
        if not spec and not {"-h", "--help"} & set(argv):
            raise Problem(
                "ARCH:PRESET is missing",
                why="--out names no run to continue",
                fix="for example: jaxmodels train charlm:notebook --out runs/first",
                exit_code=USAGE,
            )
        arch, preset, model = jaxmodels.preset(spec or "charlm:notebook")
        recipe = jaxmodels.arch(arch).RECIPES[preset]
        changes: dict[str, Any] = {}
    else:
        changes = settings.read_file(stored)
        arch, preset = changes["arch"], changes["preset"]
        _, _, model = jaxmodels.preset(f"{arch}:{preset}")
        recipe = jaxmodels.arch(arch).RECIPES[preset]
    for file in (changes, _config_file(argv)):
        model = settings.merge(model, file.get("model", {}), "model")
        recipe = settings.merge(recipe, file.get("recipe", {}), "recipe")
    default: Train[Any] = Train(recipe=recipe, model=model)
    options = parse(Train[type(model)], argv, f"train {arch}:{preset}", default)  # type: ignore[misc]
    return arch, preset, options


def _config_file(argv: list[str]) -> dict[str, Any]:
    path = _value_of(argv, "--config")
    if not path:
        return {}
    content = settings.read_file(Path(path))
    for name in content:
        if name not in ("arch", "preset", "model", "recipe", "data", "version"):
            raise Problem(
                f"unknown field: {name!r}",
                where=path,
                fix='a settings file has the parts "model" and "recipe"',
                exit_code=USAGE,
            )
    return content


def _value_of(argv: list[str], flag: str) -> str:
    """The value of a flag that is needed before the others can be parsed; "" if absent."""
    for word, following in zip(argv, [*argv[1:], ""], strict=False):
        if word == flag:
            return following
        if word.startswith(flag + "="):
            return word[len(flag) + 1 :]
    return ""


def _train(run: Path, options: Train[Any], resolved: dict[str, Any]) -> int:
    from jaxmodels.runtime import platform
    from jaxmodels.runtime.sharding import make_mesh

    platform.prepare()
    has_checkpoint = resume.check_resume(run, options.resume)
    recipe = options.recipe
    make_mesh(recipe.mesh)  # before the data, which may take long to prepare
    resume.compare_settings(run, resolved, has_checkpoint)
    data = _open_data(run, options)
    if data.vocab_size:
        sizes = dict.fromkeys({"vocab", "tokens"} & resolved["model"].keys(), data.vocab_size)
        resolved["model"] |= sizes
        options = replace(options, model=replace(options.model, **sizes))
    elif data.vocab_needed > options.model.vocab:
        raise Problem(
            f"token {data.vocab_needed - 1} does not fit a vocabulary of {options.model.vocab}",
            where=data.spec,
            fix=f"give --model.vocab {data.vocab_needed} or more",
            exit_code=MISMATCH,
        )
    resume.compare_data(run, data, has_checkpoint)
    _describe(resolved, data, options)
    if options.find_lr:
        return _find_lr(run, options, resolved, data)
    _write_config(run, resolved, data)

    from jaxmodels.runtime.generate import text_sampler
    from jaxmodels.runtime.train import Job, train

    job = Job(
        jaxmodels.arch(resolved["arch"]),
        options.model,
        recipe,
        data.train(),
        data.valid(recipe.eval_batches),
        run,
        deadline=None if options.max_hours is None else _BEGUN + 3600 * options.max_hours,
        sampler=text_sampler(data.tokenizer, recipe.prompt, recipe.seed)
        if data.tokenizer
        else None,
    )
    return _report(run, train(job), options.json)


def _open_data(run: Path, options: Train[Any]) -> Any:
    from data_pipelines.pipelines import open_data

    recipe = options.recipe
    data = open_data(
        recipe.data,
        folder=run / "data",
        context=options.model.context,
        batch=recipe.batch * recipe.accum,
        seed=recipe.seed,
        valid_fraction=recipe.valid_fraction,
        min_freq=recipe.min_freq,
    )
    for note in data.notes:
        say(note)
    return data


def _write_config(run: Path, resolved: dict[str, Any], data: Any) -> None:
    from jaxmodels.runtime.files import write_json

    version = jaxmodels.__version__
    write_json(run / "config.json", resolved | {"data": data.identity, "version": version})
    if data.tokenizer:
        data.tokenizer.save(run / "characters.json")


def _describe(resolved: dict[str, Any], data: Any, options: Train[Any]) -> None:
    import jax

    from jaxmodels.commands.list import parameter_count

    count = parameter_count(resolved["arch"], options.model)
    recipe, device = options.recipe, jax.devices()[0]
    tokens = recipe.batch * recipe.accum * options.model.context
    say(
        f"{resolved['arch']}:{resolved['preset']}  {count:,} parameters  "
        f"{jax.device_count()} × {device.device_kind}  {recipe.dtype}",
        f"data {data.spec}: {data.train_tokens:,} tokens, and {data.valid_tokens:,} held out"
        + (f", vocabulary {data.vocab_size}" if data.vocab_size else ""),
        f"{recipe.steps:,} steps of {tokens:,} tokens",
    )


def _find_lr(run: Path, options: Train[Any], resolved: dict[str, Any], data: Any) -> int:
    from jaxmodels.runtime.files import write_json
    from jaxmodels.runtime.find_lr import find_lr, plot

    package = jaxmodels.arch(resolved["arch"])
    result = find_lr(package, options.model, options.recipe, data.train())
    write_json(run / "find_lr.json", result)
    plot(result, run / "find_lr.png")
    say(
        f"plot: {run / 'find_lr.png'}",
        f"the loss falls fastest at a learning rate of {result['suggestion']:.1e}; "
        f"train with --optim.peak-lr {result['suggestion']:.1e}",
    )
    if options.json:
        emit(result)
    return DONE


def _report(run: Path, outcome: Any, as_json: bool) -> int:
    """Writes and prints the summary; the exit code says why the run ended."""
    from jaxmodels.runtime.files import write_json
    from jaxmodels.runtime.progress import duration

    here = shlex.quote(str(run))
    again = f"jaxmodels train --out {here}"
    summary = asdict(outcome) | {"run": str(run), "command": again}
    write_json(run / "summary.json", summary)
    spent = ", ".join(
        f"{part} {duration(time)}" for part, time in outcome.seconds.items() if time >= 1
    )
    best = outcome.best_valid_loss
    say(
        f"{outcome.reason}: step {outcome.step} of {outcome.steps}"
        + (f", best validation loss {best:.4f} (step {outcome.best_step})" if best else ""),
        f"time: {spent or 'under a second'}",
        f"checkpoint: {run / 'checkpoints' / str(outcome.checkpoint)}"
        if outcome.checkpoint
        else "no step was done, so there is no checkpoint",
    )
    if outcome.step < outcome.steps:
        say(f"continue:  {again}")
    else:
        say(
            f"longer:    {again} --steps {2 * outcome.steps}",
            f"generate:  jaxmodels generate {here} --prompt 'The '",
            f"convert:   jaxmodels convert {here} {shlex.quote(f'{run}-pytorch')}",
        )
    if as_json:
        emit(summary)
    if outcome.reason == "interrupted":
        return INTERRUPTED
    return DONE if outcome.step >= outcome.steps else STOPPED
