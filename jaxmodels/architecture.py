"""The interface of an architecture: what its package, its Config and its Model have.

A package is plain Python: it inherits nothing and calls nothing of ours, it exports names. The
classes here say which. `Package` is what every package must export, `Trained` what one must that
can be trained; `OptionalPackage` what may be there, each member with the value that stands for it
where it is missing. Code reads an optional member through a view, which knows the defaults:

    jaxmodels.arch("charlm").TIED            # () where the package has no TIED
    ConfigView(config).context               # None where the Config has no such field
    ModelView(model).relative                # False where the Model does not say it

`complaints` names what is missing or misspelt. The PyTorch side of an architecture has the same:
`bridge/core/twins.py`.
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
    """What every architecture's package exports."""

    Config: type
    """Frozen dataclass of the sizes, each with a default; raises Problem (usage) for sizes
    that make no model."""
    PRESETS: Mapping[str, Any]
    """Name → Config. There is a "tiny" one, which tests use."""
    Model: Callable[..., Any]
    """`Model(config, *, rngs)`, an `nnx.Module`; see `ModelView`."""
    SHARDING: tuple[tuple[str, Any], ...]
    """Rows (our path pattern, PartitionSpec over the axes "data" and "model"); first match wins."""
    WEIGHTS: Table
    """The names in PyTorch's class: of the twin, or of transformers where it has the class."""

    sizes: Callable[..., tuple[dict[str, Any], dict[str, Any]]]
    """`sizes(shapes, others, given)`: Config fields that the shapes of a checkpoint determine, and
    those to assume, with None for what has no convention, so that `--set` must give it.

    shapes: our path → shape of every parameter; others: name → shape of the other tensors in the
    checkpoint; given: fields that its config or `--set` gives.
    """


class Trained(Protocol):
    """What a package also exports unless it is only a part of others (`PART_OF`)."""

    RECIPES: Mapping[str, Any]
    """Name of each preset → `Recipe` that trains it."""

    loss: Callable[[Any, dict[str, Any], Any], tuple[Any, dict[str, Any]]]
    """`loss(model, batch, rngs)`: the float32 loss of a batch (`runtime/batches.py`), and `aux`.

    Pure. `aux["metrics"]` are scalars to log, `aux["by_tokens"]` those that are means over tokens
    (`runtime/aggregate.py`); all else is for `commit`.
    """


class OptionalPackage(Protocol):
    """What a package may export, with the defaults."""

    # Training
    commit: Callable[[Any, dict[str, Any]], None] | None = None
    """`commit(model, aux)` stores what a step leaves in the model's state: counters, queues."""
    EVERY_PASS: bool = False
    """`commit` runs after every micro-batch, not once a step."""
    COMMITTED: tuple[str, ...] = ()
    """Paths of parameters that `commit` writes."""
    CROSS_ROW_LOSS: bool = False
    """The loss compares the rows of a batch, which is then never cut into slices. Of rows with an
    `image_id` this is always so."""
    counted: Callable[[dict[str, Any]], Any] | None = None
    """`counted(batch)`: the number of tokens that count, where batches differ in it."""
    targets: Callable[[Any, Any], Any] = staticmethod(lambda model, tokens: tokens[:, 1:])
    """`targets(model, tokens)`: the tokens that the loss predicts, if not all but the first."""
    SCANNED: tuple[str, ...] = ()
    """Subtrees whose arrays hold all blocks (a scan); tables name the blocks one by one."""
    INIT_FROM: Mapping[str, Pairs] = {}
    """Other architecture → rows (our path pattern, its): what `--init` takes over."""
    PART_OF: tuple[str, ...] = ()
    """The architectures of which this one is a part; it has no loss and no RECIPES."""
    ADDED: tuple[str, ...] = ()
    """Fields of the Config that `--init` may change: they add parameters to a model and change none
    of the others, or say how the added ones are trained."""
    LORA: tuple[str, ...] = ("blocks/*/kernel",)
    """Path patterns of the kernels that `--lora` adapts unless it names others."""
    pack: Callable[[Any], Any] | None = None
    """`pack(model)`: a copy for inference in less memory."""

    compress: Callable[[Any], Any] | None = None
    """`compress(model)`: the model with matrices of few bits that `--to packed` holds, TERNARY and
    INT8; without values for these, to be filled."""

    # Checkpoints: other tables of names
    UPSTREAM: Table = ()
    """The names in the checkpoints of the original program."""
    SAVED: Table = ()
    """The names in transformers' files, where they differ from those of its class (WEIGHTS)."""
    GGUF: Table = ()
    """The names in llama.cpp's files."""
    CARRIED: tuple[str, ...] = ()
    """Names of further files of a model directory, which go along wherever the model is written."""
    TIED: Pairs = ()
    """Rows (a second name that PyTorch's class has, our path whose values it repeats)."""
    ALSO_TIED: Pairs = ()
    """The same for names that are read and never written."""
    PREFIX: str = ""
    """The start of all names in a table that files of the bare model leave out."""
    OTHER_HEADS: tuple[str, ...] = ()
    """Patterns of names: heads for other tasks, which are left out with a note."""
    BUFFERS: tuple[str, ...] = ()
    """Patterns of names: what files hold and the model computes anew; checked, then left out."""
    UNREAD: tuple[str, ...] = ()
    """Paths of parameters on which no output depends, so that files may lack them."""
    TERNARY: tuple[str, ...] = ()
    """Path patterns of weights that are rounded to −1, 0 and 1 when used; kept in float32."""
    INT8: tuple[str, ...] = ()
    """Path patterns of weights that a packed checkpoint holds in 8 bits, with a scale for each
    row."""
    ASSUMED: Mapping[str, Mapping[str, Any]] = {}
    """Table ("WEIGHTS", …, "own") → field → what to assume for files with its names, where it
    differs from `sizes`; None: nothing."""
    TWIN: str = ""
    """Module of the PyTorch side (`bridge/core/twins.py`); by default `bridge.torch.<name>`.
    Needed for architectures from outside that go to PyTorch."""


class View:
    """A module or object, with this class's values for the members that it lacks."""

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
        """The view of a package; its last name is the architecture's, unless one is given."""
        view = cast(Any, cls)(package)  # what the protocols ask for, the package has
        view.module = package.__name__
        view.name = name or view.module.rpartition(".")[2]
        return cast(Architecture, view)


class ConfigView(View):
    """Fields, or properties, of a Config that the rest of the code knows, with the defaults.

    Every Config with attention also has `heads`.
    """

    vocab: int = 0
    """Rows of the embedding; 0 where no text is read."""
    tokens: int | None = None
    """Token ids in use, where the embedding has more rows; see `sizes.vocab_used`."""
    context: int | None = None
    """Longest text, in tokens."""
    image_size: int | None = None
    """Side of the images in pixels."""
    patch: int = 14
    """Side of an image's patch in pixels."""
    caption: int | None = None
    """Longest caption in tokens, of a model that reads text and images; None: `context`."""
    heads_by_layer: tuple[int, ...] | None = None
    """Attention heads of each block, where they differ."""
    kv_heads: int | None = None
    """Heads of keys and values, where several queries share one."""
    FOLLOWS: Mapping[str, tuple[str, int]] = {}
    """Field → (another, n): it is n times the other in presets where it is, also when the other is
    changed, unless it is given itself."""
    objective: str | None = None
    """What is predicted, where there is a choice."""


class ModelView(View):
    """What a Model, or its class, may have, with the defaults.

    Every Model has `config`, and `remat` ("none", or what of its activations is computed again);
    it is called with tokens or images. One that writes text is called as `model(tokens, cache)`
    → (float32 logits [b, t, v], cache), and has `init_cache(batch, size)`; `hidden` and `logits`
    are the call in two parts.
    """

    relative: bool = False
    """Only distances between positions matter: a full cache may overwrite its oldest token."""
    prefill: Callable[..., Any] | None = None
    """`prefill(tokens, length, size)` → (logits [b, v], cache), where a prompt is not read by
    `hidden`; with an argument `images` for a model that captions."""
    drawn: Callable[..., Any] | None = None
    """`drawn(images)`: images [b, h, w, 3] in [0, 1] as the model predicts them, each patch from
    those before it."""
    decode: Callable[..., Any] | None = None
    """`decode(tokens, cache)`, where decoding is not the call itself."""
    about_prompt: Callable[[int], str] = staticmethod(lambda length: "")
    """`about_prompt(length)`: what the user should know about a prompt of so many tokens."""


def members(*protocols: type) -> list[str]:
    """The names that protocols declare."""
    return [name for kind in protocols for name in kind.__annotations__]


def complaints(package: ModuleType) -> list[str]:
    """What is missing, misspelt or of another form in an architecture's package: a sentence each.

    A lazy export counts where `__all__` names it; it is not imported.
    """
    exports = exported(package)
    required = members(Package)
    if "PART_OF" not in exports:
        required += members(Trained)
    known = members(Package, Trained, OptionalPackage)
    return problems(exports, required, known) or _config_problems(package)


def _config_problems(package: Any) -> list[str]:
    """What is wrong with Config, PRESETS and RECIPES."""
    kind: Any = package.Config
    params = getattr(kind, "__dataclass_params__", None)
    if params is None or not params.frozen:
        return ["Config is no frozen dataclass"]
    missing = dataclasses.MISSING
    wrong = [
        f"Config.{field.name} has no default"
        for field in dataclasses.fields(kind)
        if field.default is missing and field.default_factory is missing
    ]
    wrong += [
        f"PRESETS[{name!r}] is no Config"
        for name, config in package.PRESETS.items()
        if not isinstance(config, kind)
    ]
    recipes = getattr(package, "RECIPES", package.PRESETS)
    if recipes.keys() != package.PRESETS.keys():
        wrong.append("RECIPES and PRESETS do not have the same names")
    return wrong


def problems(exports: set[str], required: list[str], known: list[str]) -> list[str]:
    """Required members that exports lack, and exports with nearly the name of a member that they
    lack."""
    lacking = [f"{name} is missing" for name in required if name not in exports]
    free = [name for name in known if name not in exports]
    misspelt = [
        f"{name} is unknown: is {near[0]} meant?"
        for name in sorted(exports - {*known})
        if (near := difflib.get_close_matches(name, free, n=1, cutoff=0.75))
    ]
    return lacking + misspelt


def exported(package: ModuleType) -> set[str]:
    """The public names of a module, without modules inside of it."""
    own = {name for name, value in vars(package).items() if not isinstance(value, ModuleType)}
    return {name for name in {*own, *getattr(package, "__all__", ())} if not name.startswith("_")}
