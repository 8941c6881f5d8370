"""Any checkpoint as a JAX model."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

import jaxmodels
from bridge.checkpoint.checkpoint import Checkpoint
from bridge.checkpoint.opening import open_checkpoint
from bridge.core import packing
from bridge.core.moments import Moments, required
from bridge.core.state import fresh_state
from bridge.core.tensors import Tensor, is_float, target_dtype
from bridge.storage.stacks import stack_blocks
from jaxmodels.runtime.platform import release_memory

_SOURCES: WeakKeyDictionary[Any, Checkpoint] = WeakKeyDictionary()


def load(
    path: str | Path,
    arch: str | None = None,
    dtype: str | None = None,
    config: Mapping[str, Any] | None = None,
    weights: str | None = None,
) -> Any:
    """The `nnx.Module` of a checkpoint in any known format; deterministic unless given `rngs`.

    Args:
        path: model directory, safetensors file, Orbax folder, run directory or one of its
            checkpoints; nanoGPT's `ckpt.pt` or its folder, DINOv2's `.pth`, another torch file
            of named tensors, transformers' GPT-2 or DINOv2 folder, bwetaf's folder, wigip's
            `step_N.zip` or a folder of them.
        arch: the architecture, if the files do not determine it.
        dtype: "float32", "bfloat16" or "float16" for the parameters; None keeps the file's.
        config: fields that are not in the files, such as {"heads": 4}.
        weights: of a run, "ema", its running average, or "raw", the trained weights; None: the
            average, if it has one.

    Raises:
        Problem: (corrupt) unreadable; (mismatch) a tensor is missing, unexpected or misshapen;
            (usage) unknown architecture, field or dtype.
    """
    wanted = target_dtype(dtype)
    return model_of(open_checkpoint(path, arch, config, weights), wanted)


def model_of(source: Checkpoint, dtype: np.dtype | None = None) -> Any:
    """The `nnx.Module` of an opened source; see `load`."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from jaxmodels.runtime.paths import split
    from jaxmodels.sizes import outline

    package = jaxmodels.arch(source.arch)
    structure = outline(package, source.config)
    if source.packed:
        assert package.compress is not None  # what is packed was written for it
        structure = nnx.eval_shape(package.compress, structure)
    graphdef, _, rest = split(structure)

    def placed(array: np.ndarray) -> Any:
        return jnp.asarray(array, jax.dtypes.canonicalize_dtype(array.dtype))

    # Placed one by one, so that nothing is held twice.
    state = {path: placed(source.tensors[path].read()) for path in source.state}
    state |= {p: placed(x) for path in source.packed for p, x in _packed(source, path, dtype)}
    if rest.keys() - state.keys():
        fresh = fresh_state(source.arch, source.config)
        state = {path: placed(array) for path, array in fresh.items()} | state
    left = source.state | source.packed.keys()
    trained = {path: t for path, t in source.tensors.items() if path not in left}

    values = stack_blocks(trained, package, lambda tensor: _values(tensor, dtype))
    params = {path: placed(array) for path, array in values}
    model = graphdef.merge(params, state)
    _SOURCES[model] = source
    release_memory()
    return model


def source_of(model: Any) -> Checkpoint | None:
    """The checkpoint that a model was loaded from, for what a model does not hold: its tokeniser
    and the like. None for one that was created, or copied by nnx."""
    return _SOURCES.get(model)


def _packed(
    source: Checkpoint, path: str, dtype: np.dtype | None
) -> Iterator[tuple[str, np.ndarray]]:
    """The arrays of a packed parameter under the paths of a compressed model."""
    packed, scale = source.packed[path], source.packed[path].scale.read()
    scale = scale if dtype is None else scale.astype(dtype)
    if packed.kind == packing.TERNARY:
        layer = path.rpartition("/")[0]
        yield f"{layer}/packed", packed.values.read()
        yield f"{layer}/scale", (1 / scale).reshape(())
        return
    pair = next(pair for pair in source.pairs if pair.ours == path)
    kernel, shape = path.endswith("/kernel"), source.tensors[path].shape
    yield f"{path}/values", pair.load(packed.values, shape).read()
    yield f"{path}/scale", scale.reshape(*(1 for _ in shape[:-1]), -1) if kernel else scale[:, None]


def _values(tensor: Tensor, dtype: np.dtype | None) -> np.ndarray:
    values = tensor.read()
    return values.astype(dtype) if dtype is not None and is_float(tensor.dtype) else values


def load_moments(
    path: str | Path, arch: str | None = None, config: Mapping[str, Any] | None = None
) -> Moments:
    """AdamW's state of a checkpoint, under our paths and in our layout, not yet read.

    Args:
        path: run directory or one of its checkpoints, nanoGPT checkpoint, bwetaf folder,
            wigip's zip, or model directory with `optimizer.safetensors`.
        arch: the architecture, if the files do not say it.
        config: fields that the files cannot say, such as {"heads": 4}.

    Raises:
        Problem: (mismatch) there is none, or it is that of another model; and as `bridge.load`.
    """
    return required(open_checkpoint(path, arch, config).moments(), Path(path))
