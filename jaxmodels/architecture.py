"""The interface of an architecture: the members of its package, its Config and its Model.

A package is plain Python: it exports names, and need not inherit or register anything. The classes
here document the names. Every package must export the members of `Package`, one that can be trained
those of `Trained`; the members of `OptionalPackage` have defaults. Code reads optional members
through a view, which knows the defaults:

    jaxmodels.arch("charlm").TIED            # () if the package has no TIED
    ConfigView(config).context               # None if the Config has no such field
    ModelView(model).relative                # False if the Model has no such attribute

`complaints` lists missing and misspelt members. `bridge/core/twins.py` is the same for the PyTorch
side of an architecture.
"""

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, Protocol, cast

Table = tuple[tuple[str, str, str], ...]
"""Rows (our path pattern, their name pattern, op), as `bridge/core/table.py` reads them."""
Pairs = tuple[tuple[str, str], ...]
Shapes = dict[str, tuple[int, ...]]


class Package(Protocol):
    """What the package of every architecture exports."""

    Config: type
    """Frozen dataclass of the sizes, each with a default; raises Problem (usage) for invalid
    sizes."""
    PRESETS: Mapping[str, Any]
    """Name → Config, with one named "tiny", for tests."""
    Model: Callable[..., Any]
    """`Model(config, *, rngs)`, an `nnx.Module`; see `ModelView`."""
    SHARDING: tuple[tuple[str, Any], ...]
    """Rows (our path pattern, PartitionSpec over the axes "data" and "model"); first match wins."""
    WEIGHTS: Table
    """The names in the PyTorch class: transformers' if it has the class, else the twin's."""

    sizes: Callable[..., tuple[dict[str, Any], dict[str, Any]]]
    """`sizes(shapes, others, given)`: (Config fields that follow from the shapes of a checkpoint,
    fields to assume). A field to assume is None if there is no convention: `--set` must give it.

    shapes: our path → shape of every parameter; others: name → shape of the other tensors in the
    checkpoint; given: fields from its config or `--set`.
    """


class Trained(Protocol):
    """What a package also exports, unless it is only a part of others (`PART_OF`)."""

    RECIPES: Mapping[str, Any]
    """Name of each preset → `Recipe` that trains it."""

    loss: Callable[[Any, dict[str, Any], Any], tuple[Any, dict[str, Any]]]
    """`loss(model, batch, rngs)`: the float32 loss of a batch (`runtime/batches.py`), and `aux`.

    Pure. `aux["metrics"]` are scalars to log, `aux["by_tokens"]` the names of those that are means
    over tokens (`runtime/aggregate.py`); everything else is for `commit`.
    """


class OptionalPackage(Protocol):
    """What a package may export, with defaults."""

    # Training
    commit: Callable[[Any, dict[str, Any]], None] | None = None
    """`commit(model, aux)` updates state that is not trained: counters, queues."""
    EVERY_PASS: bool = False
    """Whether `commit` runs after every micro-batch instead of once a step."""
    COMMITTED: tuple[str, ...] = ()
    """Paths of parameters that `commit` writes."""
    CROSS_ROW_LOSS: bool = False
    """Whether the loss compares the rows of a batch, which is then never sliced. Batches with an
    `image_id` never are."""
    counted: Callable[[dict[str, Any]], Any] | None = None
    """`counted(batch)`: the number of tokens that the loss is a mean over, if batches differ."""
    targets: Callable[[Any, Any], Any] = staticmethod(lambda model, tokens: tokens[:, 1:])
    """`targets(model, tokens)`: the tokens that the loss predicts; by default all but the first."""
    SCANNED: tuple[str, ...] = ()
    """Subtrees whose arrays are stacked over blocks, for a scan; tables name each block."""
    INIT_FROM: Mapping[str, Pairs] = {}
    """Other architecture → rows (our path pattern, its): parameters that `--init` takes from it."""
    PART_OF: tuple[str, ...] = ()
    """The architectures of which this one is a part; it has no loss and no RECIPES."""
    ADDED: tuple[str, ...] = ()
    """Config fields that `--init` may change: they only add parameters, or set how the added ones
    are trained."""
    LORA: tuple[str, ...] = ("blocks/*/kernel",)
    """Path patterns of the kernels that `--lora` adapts by default."""
    pack: Callable[[Any], Any] | None = None
    """`pack(model)`: a copy for inference in less memory."""

    compress: Callable[[Any], Any] | None = None
    """`compress(model)`: the model in the form of `--to packed`, with packed matrices for TERNARY
    and INT8, which have no values yet."""

    # Checkpoints: other tables of names
    UPSTREAM: Table = ()
    """The names in the checkpoints of the original program."""
    SAVED: Table = ()
    """The names in transformers' files, if they differ from those of its class (WEIGHTS)."""
    GGUF: Table = ()
    """The names in llama.cpp's files."""
    CARRIED: tuple[str, ...] = ()
    """Names of further files of a model directory, which are copied with the model."""
    TIED: Pairs = ()
    """Rows (a second name in the PyTorch class, our path of the parameter that it is tied to)."""
    ALSO_TIED: Pairs = ()
    """The same, for names that are only read, never written."""
    PREFIX: str = ""
    """The common prefix of all names in a table, which files of the bare model lack."""
    OTHER_HEADS: tuple[str, ...] = ()
    """Name patterns of heads for other tasks, which are left out with a note."""
    BUFFERS: tuple[str, ...] = ()
    """Name patterns of tensors that the model computes itself; they are checked and left out."""
    UNREAD: tuple[str, ...] = ()
    """Paths of parameters that affect no output, so that files may lack them."""
    TERNARY: tuple[str, ...] = ()
    """Path patterns of weights that are rounded to −1, 0 and 1 when used, but kept in float32."""
    INT8: tuple[str, ...] = ()
    """Path patterns of weights that a packed checkpoint has in 8 bits, with a scale per row."""
    ASSUMED: Mapping[str, Mapping[str, Any]] = {}
    """Table ("WEIGHTS", …, "own") → field → value to assume for files with its names instead of
    the one from `sizes`; None: assume nothing."""
    TWIN: str = ""
    """Module of the PyTorch side (`bridge/core/twins.py`); by default `bridge.torch.<name>`.
    Needed to convert architectures from outside to PyTorch."""


class View:
    """A module or object, with defaults from this class for members that it lacks."""

    def __init__(self, thing: Any):
        self._thing = thing

    def __getattribute__(self, name: str) -> Any:
        own = object.__getattribute__(self, "__dict__")
        if name.startswith("_") or name in own:
            return object.__getattribute__(self, name)
        try:
            return getattr(own["_thing"], name)
        except AttributeError:
            return object.__getattribute__(self, name)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._thing!r})"


class Architecture(View, Package, Trained, OptionalPackage):
    """A package, with defaults for the optional members that it lacks."""

    name: str
    """As in "charlm:tiny"."""
    module: str
    """Full name of the package, for `import`."""

    @classmethod
    def of(cls, package: ModuleType, name: str = "") -> "Architecture":
        """The view of a package; the architecture's name is by default the package's last one."""
        view = cast(Any, cls)(package)  # what the protocols ask for, the package has
        view.module = package.__name__
        view.name = name or view.module.rpartition(".")[2]
        return cast(Architecture, view)


class ConfigView(View):
    """Fields or properties of a Config that other code reads, with defaults.

    Every Config with attention also has `heads`.
    """

    vocab: int = 0
    """Rows of the embedding; 0 if the model reads no text."""
    tokens: int | None = None
    """Token ids in use, if the embedding has more rows; see `sizes.vocab_used`."""
    context: int | None = None
    """Longest text, in tokens."""
    image_size: int | None = None
    """Side of the images in pixels."""
    patch: int = 14
    """Side of an image's patch in pixels."""
    caption: int | None = None
    """Longest caption in tokens, of a model that reads text and images; None: `context`."""
    heads_by_layer: tuple[int, ...] | None = None
    """Attention heads of each block, if they differ."""
    kv_heads: int | None = None
    """Heads of keys and values, if several query heads share one."""
    FOLLOWS: Mapping[str, tuple[str, int]] = {}
    """Field → (other field, n): in presets where it is n times the other, it follows changes of the
    other, unless it is given too."""
    objective: str | None = None
    """What is predicted, if there is a choice."""


class ModelView(View):
    """Optional attributes of a Model, or its class, with defaults.

    Every Model has `config` and `remat` (a policy of `Recipe.remat`), and is called with tokens or
    images. One that writes text is called as `model(tokens, cache)` → (float32 logits [b, t, v],
    cache), and has `init_cache(batch, size)`; `hidden` and `logits` are the call in two parts.
    """

    relative: bool = False
    """Whether positions are relative, so that a full cache may overwrite its oldest token."""
    prefill: Callable[..., Any] | None = None
    """`prefill(tokens, length, size)` → (logits [b, v], cache), if a prompt is not read by
    `hidden`; with an argument `images` if the model writes captions."""
    drawn: Callable[..., Any] | None = None
    """`drawn(images)`: images [b, h, w, 3] in [0, 1] as the model predicts them, each patch from
    those before it."""
    decode: Callable[..., Any] | None = None
    """`decode(tokens, cache)`, if decoding differs from the call."""
    about_prompt: Callable[[int], str] = staticmethod(lambda length: "")
    """`about_prompt(length)`: a note for the user about a prompt of this many tokens, or ""."""


def members(*protocols: type) -> list[str]:
    """The names that protocols declare."""
    return [name for kind in protocols for name in kind.__annotations__]


def complaints(package: ModuleType) -> list[str]:
    """The members of a package that are missing, misspelt or invalid, a sentence for each.

    A lazy export counts if `__all__` names it; it is not imported.
    """
    exports = exported(package)
    required = members(Package)
    if "PART_OF" not in exports:
        required += members(Trained)
    known = members(Package, Trained, OptionalPackage)
    return problems(exports, required, known) or _config_problems(package)


def _config_problems(package: Any) -> list[str]:
    """The faults of Config, PRESETS and RECIPES."""
    kind: Any = package.Config
    params = getattr(kind, "__dataclass_params__", None)
    if params is None or not params.frozen:
        return ["Config is not a frozen dataclass"]
    missing = dataclasses.MISSING
    wrong = [
        f"Config.{field.name} has no default"
        for field in dataclasses.fields(kind)
        if field.default is missing and field.default_factory is missing
    ]
    wrong += [
        f"PRESETS[{name!r}] is not a Config"
        for name, config in package.PRESETS.items()
        if not isinstance(config, kind)
    ]
    recipes = getattr(package, "RECIPES", package.PRESETS)
    if recipes.keys() != package.PRESETS.keys():
        wrong.append("RECIPES and PRESETS do not have the same names")
    return wrong


def problems(exports: set[str], required: list[str], known: list[str]) -> list[str]:
    """Required members that are missing, and exports that look like misspelt members."""
    lacking = [f"{name} is missing" for name in required if name not in exports]
    free = [name for name in known if name not in exports]
    misspelt = [
        f"{name} is unknown: did you mean {near[0]}?"
        for name in sorted(exports - {*known})
        if (near := difflib.get_close_matches(name, free, n=1, cutoff=0.75))
    ]
    return lacking + misspelt


def exported(package: ModuleType) -> set[str]:
    """The public names of a module, without modules inside of it."""
    own = {name for name, value in vars(package).items() if not isinstance(value, ModuleType)}
    return {name for name in {*own, *getattr(package, "__all__", ())} if not name.startswith("_")}
