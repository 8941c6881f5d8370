"""The optimiser's state in wigip's checkpoints: optax's nested tuples, read and written.

The original is `chain(clip_by_global_norm, sgd(schedule))`, which counts updates and keeps nothing
for each parameter. AdamW after the same clipping is supported too. The structure of a state is
kept as JSON for the way back: a tuple as a list, one of optax's as {class: values}, the moments as
"mu" and "nu".
"""

from typing import Any

import numpy as np

from bridge.core.moments import Moments, count_of
from bridge.core.tensors import Tensor
from bridge.legacy.array_pickle import tensors_of
from bridge.legacy.values import Record

# The classes that can be written again → where optax has them.
CLASSES = {
    "EmptyState": "optax._src.base",
    "ScaleByScheduleState": "optax._src.transform",
    "ScaleByAdamState": "optax._src.transform",
}
ADAM, SCHEDULE = "ScaleByAdamState", "ScaleByScheduleState"
_MOMENTS = ("mu", "nu")
MAX_PARTS, MAX_DEPTH = 1000, 20
LARGEST = 2**31 - 1

Plain = list[Any] | dict[str, Any] | int | str


class Unknown(ValueError):
    """The state has parts that cannot be written back."""


def describe(state: Any, where: str) -> tuple[dict[str, Any], list[str]]:
    """The structure of a state, to write it back, and notes for the user.

    Raises:
        Problem: (corrupt) a count is not a number.
    """
    try:
        plain = _described(state, where, [MAX_PARTS], 0)
    except Unknown as error:
        return {}, [f"the optimiser's state is not kept: {error}"]
    none = "the optimiser has no moments (the authors' is SGD); its counts are kept"
    return {"optimizer": plain}, [] if has_adam(plain) else [none]


def written(was: Any, count: int, moments: tuple[Any, ...] | None) -> Any:
    """The nested tuples to pickle, structured as in the original checkpoint if possible.

    Args:
        was: the result of `describe`, which may have been changed since.
        count: updates so far.
        moments: AdamW's two, as nested dicts of tensors; None for the original SGD.
    """
    if was is not None and has_adam(was) == (moments is not None):
        try:
            return _restored(was, moments, 0)
        except (Unknown, RecursionError):
            pass
    nothing: Plain = {"EmptyState": []}
    inner: list[Plain] = [{ADAM: [count, *_MOMENTS]}, nothing] if moments else [nothing]
    return _restored([nothing, [*inner, {SCHEDULE: [count]}]], moments, 0)


def _described(part: Any, where: str, left: list[int], depth: int) -> Plain:
    left[0] -= 1
    if left[0] < 0 or depth > MAX_DEPTH:
        raise Unknown("it has too many parts")
    if isinstance(part, Record):
        name, values = part.name.rpartition(".")[2], part.values_in_order
        if name == ADAM and len(values) == 3:
            return {name: [count_of(values[0], where), *_MOMENTS]}
        if name == SCHEDULE and len(values) == 1:
            return {name: [count_of(values[0], where)]}
        if name == "EmptyState" and not values:
            return {name: []}
        raise Unknown(f"it has a {name}")
    if isinstance(part, tuple | list):
        return [_described(child, where, left, depth + 1) for child in part]
    raise Unknown(f"it has a {type(part).__name__}")


def moments_of(state: Any, where: str) -> Moments | None:
    """AdamW's moments, anywhere in the nested tuples; None if there are none.

    Raises:
        Problem: (corrupt) they are not trees of arrays.
    """
    left, parts = MAX_PARTS, [state]
    while parts and left:
        part, left = parts.pop(0), left - 1
        if isinstance(part, Record):
            if part.name.endswith(f".{ADAM}") and len(part.values_in_order) == 3:
                count, *trees = part.values_in_order
                mu, nu = (tensors_of(tree, "", where) for tree in trees)
                return Moments(count_of(count, where), mu, nu)
            parts += part.values_in_order[:left]
        elif isinstance(part, tuple | list):
            parts += part[:left]
    return None


def _restored(plain: Any, moments: tuple[Any, ...] | None, depth: int) -> Any:
    """The nested tuples of a description; raises Unknown for anything `describe` does not make."""
    match plain:
        case list() if len(plain) <= MAX_PARTS and depth <= MAX_DEPTH:
            return tuple(_restored(part, moments, depth + 1) for part in plain)
        case {"EmptyState": [], **rest} if not rest:
            return _record("EmptyState")
        case {"ScaleByScheduleState": [int(count)], **rest} if not rest and 0 <= count <= LARGEST:
            return _record(SCHEDULE, number(count))
        case {"ScaleByAdamState": [int(count), "mu", "nu"], **rest} if (
            not rest and moments and 0 <= count <= LARGEST
        ):
            return _record(ADAM, number(count), *moments)
    raise Unknown("it cannot be written")


def has_adam(plain: Any) -> bool:
    """Whether AdamW is in what `describe` returned."""
    if isinstance(plain, list):
        return any(has_adam(part) for part in plain)
    return isinstance(plain, dict) and ADAM in plain


def number(value: int) -> Tensor:
    """A number as JAX stores it in a state: an int32 scalar array."""
    array = np.asarray(value, np.int32)
    return Tensor("", (), array.dtype, lambda: array)


def _record(name: str, *values: Any) -> Record:
    return Record(f"{CLASSES[name]}.{name}", values)
