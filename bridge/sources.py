"""A checkpoint as a model: which architecture, which sizes, and every tensor under our paths."""

import dataclasses
import difflib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import jaxmodels
from bridge import table
from bridge.contents import Contents, recognise
from bridge.table import Pair, Rows, Shape
from bridge.tensors import Tensor
from bridge.vocabulary import check_size, tokenizer_by_convention
from bridge.zeros import unfilled
from data_pipelines.tokenizers import Tokenizer
from jaxmodels.errors import CORRUPT, MISMATCH, USAGE, Problem

# What an nnx state holds besides parameters: random streams, and frequencies that are computed
# again. They are dropped, and said.
NOT_PARAMETERS = re.compile(r"(.*\.)?(rngs\..*|inv_freq)")


@dataclass
class Source:
    """A checkpoint that fits a model exactly; nothing of its values has been read yet."""

    path: Path
    format: str
    """As in `jaxmodels convert --to`: "safetensors" or "orbax"."""
    arch: str
    preset: str | None
    config: Any
    """The model's Config."""
    assumed: dict[str, Any]
    """Fields of the config that the files do not say."""
    pairs: list[Pair]
    """The map between our paths and the names in the files."""
    tensors: dict[str, Tensor]
    """Our path → tensor, in our layout."""
    tokenizer: Tokenizer | None
    """The one beside the tensors, or else the convention's."""
    origin: dict[str, Any]
    """Step and metrics of a training run."""
    notes: list[str]

    def shapes(self) -> dict[str, Shape]:
        """Our path → shape."""
        return {path: tensor.shape for path, tensor in self.tensors.items()}


def open_source(
    path: str | Path, arch: str | None = None, config: Mapping[str, Any] | None = None
) -> Source:
    """Opens a checkpoint in any format that is known, and checks it against its model.

    Args:
        path: a file or folder; see `bridge.contents.FORMATS`.
        arch: the architecture, if the files do not say it and it should not be guessed.
        config: fields that the files cannot say, such as {"heads": 4}.

    Raises:
        Problem: (corrupt) unreadable; (mismatch) the tensors are not those of the model;
            (usage) unknown architecture or field.
    """
    return bind(recognise(Path(path)), arch, config)


def bind(
    contents: Contents,
    arch: str | None = None,
    config: Mapping[str, Any] | None = None,
    conventions: Mapping[str, Any] | None = None,
) -> Source:
    """Gives the tensors of recognised contents their places in a model; see `open_source`.

    `conventions` stand in for the architecture's own where a field must be assumed.
    """
    found, notes = _parameters(contents)
    name, rows = _table(contents, found, arch or contents.arch)
    package = jaxmodels.arch(name)
    known, assumed = _fields(package, contents, rows, found)
    overrides = _overrides(package, name, config or {})
    assumed = {field: (conventions or {}).get(field, value) for field, value in assumed.items()}
    values = {**assumed, **known, **overrides}
    stated = _config(package, values, USAGE if overrides else CORRUPT, contents.path)
    settings, found = unfilled(name, rows, stated, found)
    if settings != stated:
        notes.append("biases that were zeros are so no longer: they are the model's now")
    shapes = parameter_shapes(package, settings)
    pairs = table.pairs(rows, shapes)
    table.check(pairs, shapes, {n: t.shape for n, t in found.items()}, str(contents.path))
    tokenizer = contents.tokenizer
    if tokenizer is not None:
        check_size(tokenizer, settings, contents.path)
    elif (tokenizer := tokenizer_by_convention(settings)) is not None:
        notes.append("assumed: the tokeniser is GPT-2's")
    assumed = {field: value for field, value in assumed.items() if field not in overrides}
    notes += [f"assumed: {field} = {value}" for field, value in assumed.items()]
    preset = contents.preset or preset_of(package, settings)
    return Source(
        path=contents.path,
        format=contents.format,
        arch=name,
        preset=preset if preset in package.PRESETS else None,
        config=settings,
        assumed=assumed,
        pairs=pairs,
        tensors={pair.ours: pair.load(found[pair.theirs]) for pair in pairs},
        tokenizer=tokenizer,
        origin=contents.origin,
        notes=notes,
    )


def parse_settings(words: Iterable[str]) -> dict[str, Any]:
    """`--set` words as a config: ["heads=4"] → {"heads": 4}.

    Raises:
        Problem: (usage) a word is not NAME=VALUE.
    """
    result = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not (name and equals):
            raise Problem(
                f"--set cannot be {word!r}", fix="write NAME=VALUE, as heads=4", exit_code=USAGE
            )
        try:
            result[name] = json.loads(text)
        except ValueError:
            result[name] = text
    return result


def own_rows(package: Any) -> Rows:
    """The table of our own parameters saved as a tree: names are our paths, joined by dots."""
    return tuple((ours, ours.replace("/", "."), "same") for ours, _, _ in package.WEIGHTS)


def tables(package: Any) -> list[Rows]:
    """Every table that a checkpoint of this architecture may follow."""
    return [package.WEIGHTS, getattr(package, "SEED", ()), own_rows(package)]


def parameter_shapes(package: Any, config: Any) -> dict[str, Shape]:
    """Our path → shape of every parameter, without making any."""
    from flax import nnx

    from jaxmodels.runtime.paths import params_of

    model = nnx.eval_shape(lambda: package.Model(config, rngs=nnx.Rngs(0)))
    return {path: tuple(leaf.shape) for path, leaf in params_of(model).items()}


def preset_of(package: Any, config: Any) -> str | None:
    """The preset that equals a config, if one does."""
    return next((name for name, preset in package.PRESETS.items() if preset == config), None)


def _parameters(contents: Contents) -> tuple[dict[str, Tensor], list[str]]:
    if contents.format != "orbax":
        return contents.tensors, list(contents.notes)
    dropped = [name for name in contents.tensors if NOT_PARAMETERS.fullmatch(name)]
    found = {name: t for name, t in contents.tensors.items() if name not in dropped}
    return found, [*contents.notes, *(f"dropped: {name}, no parameter" for name in dropped)]


def _table(contents: Contents, found: Mapping[str, Tensor], arch: str | None) -> tuple[str, Rows]:
    """The architecture and the table whose names fit best."""
    prefix = table.common_prefix(found)
    names = [name.removeprefix(prefix) for name in found]
    archs = [arch] if arch else list(jaxmodels.ARCHS)
    fits = [
        (table.coverage(rows, names), name, rows)
        for name in archs
        for rows in tables(jaxmodels.arch(name))
    ]
    best, name, rows = max(fits, key=lambda fit: fit[0])
    if best == 0 or (arch is None and best < 0.5):
        raise Problem(
            "the tensors are those of no architecture here"
            if arch is None
            else f"the tensors are not those of {arch}",
            where=str(contents.path),
            why="it holds:\n"
            + table.listing([str(t) for t in found.values()])
            + (f"\nclosest is {name}: {best:.0%} of names fit" if best else ""),
            fix=f"known architectures: {', '.join(jaxmodels.ARCHS)}",
            exit_code=MISMATCH,
        )
    return name, rows


def _fields(
    package: Any, contents: Contents, rows: Rows, found: Mapping[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Config fields that the files say or the shapes tell, and those assumed."""
    names = [field.name for field in dataclasses.fields(package.Config)]
    stated = {name: contents.fields[name] for name in names if name in contents.fields}
    complete = contents.arch is not None and len(stated) == len(names)
    shapes = table.ours_of(rows, {name: tensor.shape for name, tensor in found.items()})
    others = {n: tensor.shape for n, tensor in contents.tensors.items() if n not in found}
    try:
        known, assumed = package.sizes(shapes, others)
    except (LookupError, ValueError, TypeError, ArithmeticError) as error:
        if complete:
            return stated, {}
        raise Problem(
            "the sizes of the model cannot be told",
            where=str(contents.path),
            why=f"a tensor that tells them is missing or misshapen ({error}); it holds:\n"
            + table.listing([str(tensor) for tensor in found.values()]),
            fix="the file is incomplete: fetch or save it again",
            exit_code=MISMATCH,
        ) from error
    for name in known.keys() & stated.keys():
        # A model of the stated sizes is laid out to be compared in detail; not if that is absurd.
        if isinstance(stated[name], int) and stated[name] > 10 * known[name]:
            raise Problem(
                f"the config says {name} = {stated[name]}, the tensors {known[name]}",
                where=str(contents.path),
                fix="config and tensors belong to different models: fetch both again",
                exit_code=MISMATCH,
            )
    return {**known, **stated}, {k: v for k, v in assumed.items() if k not in stated}


def _overrides(package: Any, arch: str, config: Mapping[str, Any]) -> dict[str, Any]:
    names = [field.name for field in dataclasses.fields(package.Config)]
    for name in config:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=2, cutoff=0.4)
            raise Problem(
                f"{arch} has no config field {name!r}",
                why=f"known: {', '.join(names)}",
                fix=f"did you mean {' or '.join(near)}?" if near else "",
                exit_code=USAGE,
            )
    return dict(config)


def _config(package: Any, values: Mapping[str, Any], exit_code: int, where: Path) -> Any:
    """The Config of these values, their types checked: they come from files."""
    for field in dataclasses.fields(package.Config):
        value = values.get(field.name, field.default)
        if not _fits(value, field.type):
            raise Problem(
                f"the config field {field.name} cannot be {value!r}",
                where=str(where),
                why=f"it must be {getattr(field.type, '__name__', field.type)}",
                exit_code=exit_code,
            )
    return package.Config(**values)


def _fits(value: Any, wanted: Any) -> bool:
    """Whether a value may stand in a field of this type."""
    if get_origin(wanted) is Literal:
        return value in get_args(wanted)
    if isinstance(value, bool) or wanted is bool:
        return isinstance(value, bool) and wanted is bool
    return isinstance(value, int | float if wanted is float else wanted)
