"""Parameters as a flat dict, path → array, and the one matcher of path patterns.

The path ("blocks/0/attn/qkv/kernel") is a parameter's identity: sharding, weight names, weight
decay and checkpoints are keyed by it. A flat dict is several times cheaper to pass to a compiled
function than an `nnx.State`, and its string keys survive Orbax, which turns an `nnx.State`'s int
keys into strings that `nnx.update` then silently skips.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache, cached_property
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

Arrays = dict[str, Any]


@dataclass(frozen=True)
class GraphDef:
    """A model without its arrays.

    `split` returns one object for all equal models, hashed once: compiled functions take it as a
    static argument and look it up at every call, for which flax's own takes milliseconds.
    """

    graph: Any
    params_tree: Any
    param_paths: tuple[str, ...]
    rest_tree: Any
    rest_paths: tuple[str, ...]

    @cached_property
    def _hash(self) -> int:
        return hash(tuple(getattr(self, each.name) for each in fields(self)))

    def __hash__(self) -> int:
        return self._hash

    def weights(self, params: Arrays) -> Arrays:
        """The model's own parameters: those given, adapters added (`runtime/lora.py`)."""
        return params

    def merge(self, params: Arrays, rest: Arrays) -> Any:
        """The module that holds these arrays."""
        return nnx.merge(
            self.graph,
            jax.tree.unflatten(self.params_tree, [params[path] for path in self.param_paths]),
            jax.tree.unflatten(self.rest_tree, [rest[path] for path in self.rest_paths]),
        )


def split(model: Any) -> tuple[GraphDef, Arrays, Arrays]:
    """The graphdef of a module, its parameters and its other state, both path → array."""
    graph, *states = nnx.split(model, nnx.Param, ...)
    params, rest = states
    param_paths, param_leaves, param_def = _flatten(params)
    rest_paths, rest_leaves, rest_def = _flatten(rest)
    graphdef = _unique(GraphDef(graph, param_def, param_paths, rest_def, rest_paths))
    return (
        graphdef,
        dict(zip(param_paths, param_leaves, strict=True)),
        dict(zip(rest_paths, rest_leaves, strict=True)),
    )


@cache
def _unique(graphdef: GraphDef) -> GraphDef:
    return graphdef


def params_of(model: Any) -> Arrays:
    """The parameters of a module as path → array (or shape, for an abstract module)."""
    return split(model)[1]


def _flatten(state: Any) -> tuple[tuple[str, ...], list[Any], Any]:
    pairs, treedef = jax.tree.flatten_with_path(state)
    paths = tuple(
        "/".join(str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey))
        for path, _ in pairs
    )
    return paths, [leaf for _, leaf in pairs], treedef


def unstack(
    flat: Arrays, stacked: tuple[str, ...], part: Callable[[Any, int], Any] | None = None
) -> Arrays:
    """{"blocks/norm/scale": [n, d]} → {"blocks/0/norm/scale": [d], …}, block by block.

    A model that scans over its blocks stacks them; tables and checkpoints name each block.

    Args:
        flat: path → array, or ShapeDtypeStruct, or anything that `part` takes.
        stacked: the subtrees whose arrays have the block as their first axis, such as ("blocks",).
        part: (leaf, i) → block i's part of it; by default its values, or its shape.
    """
    part = part or _part
    result: Arrays = {}
    for root in _roots(flat, stacked):
        inside = {path: leaf for path, leaf in flat.items() if _root(path, stacked) == root}
        if root is None:
            result |= inside
            continue
        count = {path: leaf.shape[0] if leaf.shape else 0 for path, leaf in inside.items()}
        for i in range(max(count.values())):
            for path in (path for path in inside if i < count[path]):
                leaf = inside[path]
                result[f"{root}/{i}{path[len(root) :]}"] = part(leaf, i)
    return result


def stack(
    flat: Arrays, stacked: tuple[str, ...], join: Callable[[list[Any]], Any] = jnp.stack
) -> Arrays:
    """The inverse of `unstack`; `join` stacks the leaves of all blocks, in order."""
    result: Arrays = {}
    groups: dict[str, dict[int, Any]] = {}
    for path, leaf in flat.items():
        root = _root(path, stacked)
        if root is None:
            result[path] = leaf
            continue
        number, _, rest = path[len(root) + 1 :].partition("/")
        groups.setdefault(f"{root}/{rest}", {})[int(number)] = leaf
    for path, leaves in groups.items():
        result[path] = join([leaves[i] for i in range(len(leaves))])
    return result


def _root(path: str, stacked: tuple[str, ...]) -> str | None:
    return next((root for root in stacked if path.startswith(root + "/")), None)


def _roots(flat: Arrays, stacked: tuple[str, ...]) -> list[str | None]:
    """The distinct roots of the paths, in order of appearance."""
    return list(dict.fromkeys(_root(path, stacked) for path in flat))


def _part(leaf: Any, i: int) -> Any:
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)
    return leaf[i]


_STACK = re.compile(r"(.*/)?blocks/(?!\d)")  # all blocks in one array
_TO_HEADS = ("/q/kernel", "/k/kernel", "/v/kernel")


def matrices(path: str, shape: tuple[int, ...]) -> tuple[tuple[int, ...], int, int] | None:
    """A kernel as one matrix, or a stack of them: its leading axes, inputs, outputs.

    Heads with an axis of their own belong to the outputs of queries, keys and values, and to the
    inputs of other kernels. None for what is no matrix.
    """
    leading, axes = (shape[:1], shape[1:]) if _STACK.match(path) else ((), shape)
    if len(axes) < 2 or path.endswith(("/bias", "/scale")):
        return None
    first = 1 if path.endswith(_TO_HEADS) else len(axes) - 1
    return leading, prod(axes[:first]), prod(axes[first:])


def layer_of(path: str) -> str:
    """The layer of a parameter: its path up to the first number, or its module's path.

    blocks/0/attn/qkv/kernel → blocks/0; embed/embedding → embed.
    """
    parts = path.split("/")
    numbers = [index for index, part in enumerate(parts) if part.isdecimal()]
    return "/".join(parts[: numbers[0] + 1] if numbers else parts[:-1] or parts)


@cache
def pattern(text: str) -> re.Pattern[str]:
    """The regular expression of a path pattern: `{i}` is a number, `*` is anything."""
    parts = re.split(r"(\{\w+\}|\*)", text)
    return re.compile(
        "".join(
            ".*"
            if part == "*"
            else rf"(?P<{part[1:-1]}>\d+)"
            if part[:1] == "{"
            else re.escape(part)
            for part in parts
        )
    )


def match(rows: tuple[tuple[str, Any], ...], path: str) -> Any:
    """The value of the first row whose pattern matches the full path.

    Raises:
        LookupError: no row matches; tables are total.
    """
    for text, value in rows:
        if pattern(text).fullmatch(path):
            return value
    raise LookupError(f"no row matches {path}")


def nest(flat: Arrays) -> dict[str, Any]:
    """{"a/b": x} → {"a": {"b": x}}."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def flatten(tree: dict[str, Any], separator: str = "/") -> Arrays:
    """{"a": {"b": x}} → {"a/b": x}; the inverse of `nest`."""
    flat: Arrays = {}
    for name, node in tree.items():
        if isinstance(node, dict):
            for path, leaf in flatten(node, separator).items():
                flat[f"{name}{separator}{path}"] = leaf
        else:
            flat[name] = node
    return flat
