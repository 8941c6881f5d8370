"""The gradient of a micro-batch, computed in slices where that is faster."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxmodels.architecture import Architecture
from jaxmodels.layers.keys import keys
from jaxmodels.recipe import Recipe
from jaxmodels.runtime import aggregate
from jaxmodels.runtime.batches import compares_rows
from jaxmodels.runtime.optim import trainable
from jaxmodels.runtime.paths import Arrays, GraphDef


def micro_gradient(
    package: Architecture, graphdef: GraphDef, recipe: Recipe, placed: Arrays, mesh: Mesh
) -> Callable[..., Any]:
    """(params, model_state, (batch, key, share)) → ((loss, metrics, gradients), input of `commit`).

    It takes one micro-batch and its weight among all (`token_weights`). Only trainable parameters
    have gradients, sharded like them (`placed`): left to choose, XLA may gather them.
    """
    dtype = jnp.dtype(recipe.dtype)

    def of_part(params: Arrays, model_state: Arrays, part: Any) -> Any:
        batch, key, share = part

        def loss(active: Arrays) -> tuple[jax.Array, Any]:
            cast = {path: leaf.astype(dtype) for path, leaf in (params | active).items()}
            value, aux = package.loss(graphdef.merge(cast, model_state), batch, keys(dropout=key))
            metrics, by_tokens, commit_input = aggregate.split_aux(aux)
            value, metrics = aggregate.weighted(value, metrics, by_tokens, share)
            return value, (metrics, commit_input)

        active = trainable(recipe.optim, params)
        (value, (metrics, commit_input)), grads = jax.value_and_grad(loss, has_aux=True)(active)
        if mesh.size > 1:
            at = {path: placed[path] for path in grads}
            grads = jax.lax.with_sharding_constraint(grads, at)
        return (value, metrics, grads), commit_input

    def gradient(params: Arrays, model_state: Arrays, part: Any) -> Any:
        slices = 1
        if not compares_rows(package, part[0]):
            slices = recipe.slices or auto_slices(part[0], mesh)
        if slices == 1:
            return of_part(params, model_state, part)
        return aggregate.mean_over(
            partial(of_part, params, model_state), aggregate.split_batch(package, slices, *part)
        )

    return gradient


def auto_slices(batch: Arrays, mesh: Mesh, positions: int = 1024) -> int:
    """The number of slices of a batch on the mesh's devices; see `Recipe.slices`.

    On a CPU, slices of about a thousand positions halve the time of a step: activations stay in the
    caches, and XLA's temporaries are reused instead of being mapped page by page in every step
    (charlm:notebook: 1.6 → 0.8 s; huge pages for malloc alone gave 1.15 s).
    """
    read = batch["tokens"] if "tokens" in batch else batch["images"]  # a tower reads no text
    rows, columns = read.shape[:2]
    if mesh.size > 1 or mesh.devices.flat[0].platform != "cpu":
        return 1
    slices = 1
    while rows % (2 * slices) == 0 and rows * columns // (2 * slices) >= positions:
        slices *= 2
    return slices
