"""The options of `jaxmodels train`, resolved from preset, run, settings file and flags."""

import shlex
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

from tyro.conf import arg

import jaxmodels
from jaxmodels.architecture import Architecture
from jaxmodels.cli import parse
from jaxmodels.commands.flag_names import with_our_names
from jaxmodels.commands.initial import open_initial
from jaxmodels.commands.run_config import read_settings
from jaxmodels.commands.train_help import print_help
from jaxmodels.errors import MISMATCH, USAGE, Problem, within
from jaxmodels.recipe import Recipe
from jaxmodels.runtime import settings
from jaxmodels.runtime.runs import rundir
from jaxmodels.runtime.training.profiler import parse_window

C = TypeVar("C")

# The fields of a run's config.json; only model and recipe are used.
_OF_A_RUN = frozenset("arch preset model recipe history data init version environment".split())


@dataclass(frozen=True)
class Train(Generic[C]):
    """Train ARCH:PRESET. To continue a run, repeat the command, or give only --out."""

    recipe: Annotated[Recipe, arg(name="")]
    model: C
    out: Path | None = None
    """The run directory."""
    init: Path | None = None
    """Start from the parameters, sizes and tokeniser of this checkpoint (anything that `convert`
    reads)."""
    init_optimizer: bool = False
    """With --init: also take AdamW's moments."""
    new_words: bool = False
    """With --init of a model whose tokens are words: add those of the captions or questions that
    its vocabulary lacks."""
    max_hours: float | None = None
    """Save and stop before this many hours have passed (exit code 75: resumable)."""
    resume: Literal["auto", "never", "must"] = "auto"
    """auto: resume if there is a checkpoint; never: fail if there is one; must: fail if not."""
    config: Path | None = None
    """A .json or .toml file with {"model": …, "recipe": …}; flags win over it."""
    print_config: bool = False
    """Print the resolved settings as JSON and stop."""
    profile: str = ""
    """FIRST:LAST, as in 10:20: trace these steps with JAX's profiler into OUT/profile, for
    TensorBoard (plugin xprof) or ui.perfetto.dev."""
    find_lr: bool = False
    """Instead of training, try learning rates from 1e-7 to 10, plot the losses and suggest one;
    it saves no checkpoint."""
    json: bool = False
    """Print the summary as one JSON object on standard output."""
    coordinator: str = ""
    """To train in several processes with the same command except for --process: HOST:PORT of
    process 0. TPU pods, Slurm and Open MPI provide this and the next two."""
    processes: int = 0
    """Number of processes that train together; 0 asks the cluster (1 without one), 1 trains
    alone."""
    process: int | None = None
    """Index of this process, from 0."""
    join_timeout: int = 300
    """Seconds to wait for the other processes at the start."""
    heartbeat: int = 100
    """Seconds without a sign of life from a process after which the others stop, resumable."""

    def __post_init__(self) -> None:
        within("--max-hours", self.max_hours, 0)
        within("--processes", self.processes, 0)
        within("--join-timeout", self.join_timeout, 1)
        within("--heartbeat", self.heartbeat, 1)
        if self.profile:
            parse_window(self.profile, Path(), self.recipe.steps)
        for name in ("init-optimizer", "new-words"):
            if getattr(self, name.replace("-", "_")) and self.init is None:
                raise Problem(f"--{name} needs --init", exit_code=USAGE)
        if self.init_optimizer and self.recipe.optim.name != "adamw":
            raise Problem(
                f"--init-optimizer does not work with {self.recipe.optim.name}",
                why="it takes AdamW's moments",
                fix="leave it out, or give --optim.name adamw",
                exit_code=USAGE,
            )

    @property
    def place(self) -> str:
        """The flags of this process among several, for a shell; empty for a single one."""
        if not self.coordinator:
            return ""
        words = ["--coordinator", self.coordinator, "--processes", str(self.processes)]
        return " " + shlex.join([*words, "--process", str(self.process)])


@dataclass(frozen=True)
class Request:
    """One call of `train`, resolved."""

    arch: str
    preset: str
    options: Train[Any]
    source: Any
    """The opened checkpoint of --init; None without one."""
    argv: list[str]
    """The arguments after `train`."""

    @property
    def package(self) -> Architecture:
        """The architecture's package."""
        return jaxmodels.arch(self.arch)

    @property
    def config(self) -> Any:
        """The model's sizes."""
        return self.options.model

    @property
    def recipe(self) -> Recipe:
        """The training settings."""
        return self.options.recipe

    @property
    def run(self) -> Path:
        """The run directory.

        Raises:
            Problem: (usage) --out is missing.
        """
        if self.options.out is None:
            raise Problem("--out is missing", fix="give a folder for the run", exit_code=USAGE)
        return self.options.out

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the run: config.json without data and history."""
        start = {"path": str(self.options.init), "optimizer": self.options.init_optimizer}
        return {
            "arch": self.arch,
            "preset": self.preset,
            "model": asdict(self.config),
            "recipe": asdict(self.recipe),
            "init": start if self.source else None,
        }

    def replace(self, *, model: Any = None, tokenizer: str = "") -> "Request":
        """The same with another Config, or another tokeniser in its recipe."""
        changed = replace(self.options, model=model or self.config)
        if tokenizer:
            changed = replace(changed, recipe=replace(self.recipe, tokenizer=tokenizer))
        return replace(self, options=changed)


def resolve(argv: list[str]) -> Request:
    """Resolves the arguments.

    In rising precedence: preset (or the run's config.json, or the sizes of the checkpoint of
    --init), --config, flags. Once a run has checkpoints, --init has no effect.
    """
    given = argv
    argv = with_our_names(argv)
    spec, argv = (argv[0], argv[1:]) if argv and not argv[0].startswith("-") else ("", argv)
    run = value_of(argv, "--out")
    stored = Path(run, "config.json") if run else None
    resuming = bool(run and rundir.steps(Path(run, "checkpoints")))
    source, changes = None, {}
    if (initial := value_of(argv, "--init")) and not resuming:
        arch, preset, model, source = open_initial(initial, spec)
        recipe = jaxmodels.learner(arch).RECIPES[preset]
    elif (spec and not initial) or not stored or not stored.exists():
        if not spec and not {"-h", "--help"} & set(argv):
            raise Problem(
                "ARCH:PRESET is missing",
                why=f"{run} holds no run to continue: it has no config.json" if run else "",
                fix="restore it from a copy of the run"
                if resuming
                else "for example: jaxmodels train charlm:notebook --out runs/first",
                exit_code=USAGE,
            )
        arch, preset, model = jaxmodels.preset(spec or "charlm:notebook")
        recipe = jaxmodels.learner(arch).RECIPES[preset]
    else:
        changes = read_settings(stored)
        arch, preset = changes["arch"], changes["preset"]
        if spec and jaxmodels.preset(spec)[:2] != jaxmodels.preset(f"{arch}:{preset}")[:2]:
            raise Problem(
                f"the run is of {arch}:{preset}, not {spec}",
                where=str(stored),
                fix=f"give another --out, or continue with jaxmodels train --out {run}",
                exit_code=MISMATCH,
            )
        _, _, model = jaxmodels.preset(f"{arch}:{preset}")
        recipe = jaxmodels.learner(arch).RECIPES[preset]
    preset_model, given_sizes = model, given_fields(argv)
    for file in (changes, config_file(argv)):
        model = settings.merge(model, file.get("model", {}), "model")
        recipe = settings.merge(recipe, file.get("recipe", {}), "recipe")
        given_sizes |= file.get("model", {}).keys()
    default: Train[Any] = Train(recipe=recipe, model=model)
    if {"-h", "--help"} & set(argv):
        print_help("train", default, f"{arch}:{preset}" if spec or changes or source else "")
        raise SystemExit(0)
    options = parse(Train[type(model)], argv, f"train {arch}:{preset}", default)  # type: ignore[misc]
    if source is None:
        sizes = settings.follow(options.model, preset_model, given_sizes)
        options = replace(options, model=sizes)
    return Request(arch, preset, options, source, given)


def given_fields(argv: list[str]) -> set[str]:
    """The fields of the Config that flags set."""
    flags = (word.partition("=")[0] for word in argv if word.startswith("--model."))
    return {flag.removeprefix("--model.").replace("-", "_") for flag in flags}


def config_file(argv: list[str]) -> dict[str, Any]:
    """The settings of --config; empty without it."""
    path = value_of(argv, "--config")
    if not path:
        return {}
    content = settings.read_file(Path(path))
    for name in content:
        if name not in _OF_A_RUN:
            raise Problem(
                f"unknown field: {name!r}",
                where=path,
                fix='a settings file has the parts "model" and "recipe"',
                exit_code=USAGE,
            )
    return content


def value_of(argv: list[str], flag: str) -> str:
    """The value of a flag that is needed before parsing; "" if absent."""
    for word, following in zip(argv, [*argv[1:], ""], strict=False):
        if word == flag:
            return following
        if word.startswith(flag + "="):
            return word[len(flag) + 1 :]
    return ""


def repeated(argv: list[str], *changes: str, without: tuple[str, ...] = ()) -> str:
    """The command as given, quoted for a shell, with some flags changed.

    Args:
        argv: the arguments after `train`.
        changes: arguments to add; a flag among them replaces its earlier value.
        without: flags without a value, to be left out.
    """
    kept, skip = [], False
    for word in argv:
        flag = word.partition("=")[0].replace("_", "-")
        if not skip and flag not in (*without, *changes):
            kept.append(word)
        skip = not skip and flag in changes and "=" not in word
    return shlex.join(["jaxmodels", "train", *kept, *changes])
