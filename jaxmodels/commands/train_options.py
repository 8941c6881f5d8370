"""What `jaxmodels train` is asked for: preset, run, settings file and flags, resolved."""

import shlex
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

from tyro.conf import arg

import jaxmodels
from jaxmodels.architecture import Architecture
from jaxmodels.cli import parse
from jaxmodels.commands.initial import open_initial
from jaxmodels.commands.run_config import read_settings
from jaxmodels.errors import USAGE, Problem, within
from jaxmodels.recipe import Recipe
from jaxmodels.runtime import settings
from jaxmodels.runtime.runs import rundir
from jaxmodels.runtime.training.profiler import window

C = TypeVar("C")

# What config.json of a run holds; model and recipe are taken from it.
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
    """With --init: take over AdamW's moments too."""
    max_hours: float | None = None
    """Save and stop before this many hours have passed (exit code 75: resumable)."""
    resume: Literal["auto", "never", "must"] = "auto"
    """auto: resume if there is a checkpoint; never: refuse if there is one; must: refuse if not."""
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
    """To train in several processes, each with the same command but for --process: HOST:PORT of
    process 0. TPU pods, Slurm and Open MPI provide this and the next two."""
    processes: int = 0
    """How many processes train together; 0 asks the cluster (1 where there is none), 1 trains
    alone."""
    process: int | None = None
    """Index of this process, from 0."""
    join_timeout: int = 300
    """Seconds that a process waits for the others at the start."""
    heartbeat: int = 100
    """Seconds without a sign of life from a process after which the others stop, resumable."""

    def __post_init__(self) -> None:
        within("--max-hours", self.max_hours, 0)
        within("--processes", self.processes, 0)
        within("--join-timeout", self.join_timeout, 1)
        within("--heartbeat", self.heartbeat, 1)
        if self.profile:
            window(self.profile, Path(), self.recipe.steps)
        if self.init_optimizer and self.init is None:
            raise Problem("--init-optimizer needs --init", exit_code=USAGE)
        if self.init_optimizer and self.recipe.optim.name != "adamw":
            raise Problem(
                f"--init-optimizer has nothing to give to {self.recipe.optim.name}",
                why="it carries AdamW's moments",
                fix="leave it out, or give --optim.name adamw",
                exit_code=USAGE,
            )

    @property
    def place(self) -> str:
        """The flags that place this process among others, for a shell; empty without them."""
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
    """The words after `train`."""

    @property
    def package(self) -> Architecture:
        """The architecture's."""
        return jaxmodels.arch(self.arch)

    @property
    def config(self) -> Any:
        """The model's sizes."""
        return self.options.model

    @property
    def recipe(self) -> Recipe:
        """How it is trained."""
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
        """What decides the run: config.json without the data and the history."""
        start = {"path": str(self.options.init), "optimizer": self.options.init_optimizer}
        return {
            "arch": self.arch,
            "preset": self.preset,
            "model": asdict(self.config),
            "recipe": asdict(self.recipe),
            "init": start if self.source else None,
        }

    def replace(self, *, model: Any = None, tokenizer: str = "") -> "Request":
        """The same with other sizes of the model, or another tokeniser in its recipe."""
        changed = replace(self.options, model=model or self.config)
        if tokenizer:
            changed = replace(changed, recipe=replace(self.recipe, tokenizer=tokenizer))
        return replace(self, options=changed)


def resolve(argv: list[str]) -> Request:
    """What is asked for.

    Settings in rising order of power: preset (or the run's config.json, or the sizes of the
    checkpoint of --init), --config, flags. Once a run has checkpoints of its own, --init has
    no effect.
    """
    given = argv
    argv = with_current_names(argv)
    spec, argv = (argv[0], argv[1:]) if argv and not argv[0].startswith("-") else ("", argv)
    run = value_of(argv, "--out")
    stored = Path(run, "config.json") if run else None
    begun = bool(run and rundir.steps(Path(run, "checkpoints")))
    source, changes = None, {}
    if (initial := value_of(argv, "--init")) and not begun:
        arch, preset, model, source = open_initial(initial, spec)
        recipe = jaxmodels.learner(arch).RECIPES[preset]
    elif (spec and not initial) or not stored or not stored.exists():
        if not spec and not {"-h", "--help"} & set(argv):
            raise Problem(
                "ARCH:PRESET is missing",
                why=f"{run} holds no run to continue: it has no config.json" if run else "",
                fix="restore it from a copy of the run"
                if begun
                else "for example: jaxmodels train charlm:notebook --out runs/first",
                exit_code=USAGE,
            )
        arch, preset, model = jaxmodels.preset(spec or "charlm:notebook")
        recipe = jaxmodels.learner(arch).RECIPES[preset]
    else:
        changes = read_settings(stored)
        arch, preset = changes["arch"], changes["preset"]
        _, _, model = jaxmodels.preset(f"{arch}:{preset}")
        recipe = jaxmodels.learner(arch).RECIPES[preset]
    for file in (changes, config_file(argv)):
        model = settings.merge(model, file.get("model", {}), "model")
        recipe = settings.merge(recipe, file.get("recipe", {}), "recipe")
    default: Train[Any] = Train(recipe=recipe, model=model)
    options = parse(Train[type(model)], argv, f"train {arch}:{preset}", default)  # type: ignore[misc]
    return Request(arch, preset, options, source, given)


def config_file(argv: list[str]) -> dict[str, Any]:
    """What the file of --config says; empty without one."""
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


def with_current_names(argv: list[str]) -> list[str]:
    """The flags of earlier versions as today's: --remat alone, --no-remat, and renamed fields."""
    words: list[str] = []
    for old, new in settings.RENAMED.items():
        flags = {f"--optim.{spelt}": f"--optim.{new}" for spelt in (old, old.replace("_", "-"))}
        pairs = (word.partition("=") for word in argv)
        argv = [flags.get(flag, flag) + equals + value for flag, equals, value in pairs]
    for word, following in zip(argv, [*argv[1:], "-"], strict=False):
        if word == "--remat" and following.startswith("-"):
            words += [word, "full"]
        else:
            words += ["--remat", "none"] if word == "--no-remat" else [word]
    return words


def value_of(argv: list[str], flag: str) -> str:
    """The value of a flag that is needed before the others can be parsed; "" if absent."""
    for word, following in zip(argv, [*argv[1:], ""], strict=False):
        if word == flag:
            return following
        if word.startswith(flag + "="):
            return word[len(flag) + 1 :]
    return ""


def repeated(argv: list[str], *changes: str, without: tuple[str, ...] = ()) -> str:
    """The command as it was given, for a shell, with `changes` instead of the same flags.

    Args:
        argv: the words after `train`.
        changes: words to add; a flag among them replaces its earlier value.
        without: flags that take no value, to be left out.
    """
    kept, skip = [], False
    for word in argv:
        flag = word.partition("=")[0].replace("_", "-")
        if not skip and flag not in (*without, *changes):
            kept.append(word)
        skip = not skip and flag in changes and "=" not in word
    return shlex.join(["jaxmodels", "train", *kept, *changes])
