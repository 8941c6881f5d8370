"""A model of a few numbers whose loss has all that a step puts together: a mean over tokens, of
which rows have different counts, a mean over rows, and what `commit` stores. It compiles fast."""

from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec as P

from jaxmodels.architecture import Architecture
from jaxmodels.recipe import Optim, Recipe

VOCAB, QUEUE = 7, 16
RECIPE = Recipe(batch=8, slices=1, steps=10, optim=Optim("sgd", clip=0.0, weight_decay=0.0))


class Stored(nnx.Variable):
    """State that is not trained."""


class Model(nnx.Module):
    def __init__(self, config: Any, *, rngs: nnx.Rngs):
        self.config = config
        self.embed = nnx.Embed(VOCAB, 4, rngs=rngs)
        self.head = nnx.Linear(4, VOCAB, rngs=rngs)
        self.steps = Stored(jnp.zeros((), jnp.int32))
        self.seen = Stored(jnp.zeros((), jnp.int32))
        self.queue = Stored(jnp.zeros(QUEUE))


def loss(model: Model, batch: dict[str, Any], rngs: Any) -> tuple[Any, dict[str, Any]]:
    tokens, mask = batch["tokens"], batch["mask"]
    x = model.embed.embedding[...][tokens]
    logs = jax.nn.log_softmax(model.head(x))
    picked = -jnp.take_along_axis(logs, tokens[..., None], axis=-1)[..., 0]
    text = (picked * mask).sum() / mask.sum()
    rows = jnp.square(x.mean(axis=1)).sum(axis=1).mean()
    told = {"text_loss": text, "perplexity": jnp.exp(text)}
    return 2 * text + rows, {
        "metrics": told | {"size": rows},
        "by_tokens": {"loss": 2 * text, **told},
        "keys": jnp.asarray(batch["image_id"], jnp.float32),
        "seen": jnp.asarray(len(tokens)),
    }


def counted(batch: dict[str, Any]) -> jax.Array:
    return batch["mask"].sum()


def commit(model: Model, aux: dict[str, Any]) -> None:
    rows = aux["keys"]
    at = (model.seen[...] + jnp.arange(len(rows))) % QUEUE
    model.queue.set_value(model.queue[...].at[at].set(rows))
    model.steps.set_value(model.steps[...] + 1)
    model.seen.set_value(model.seen[...] + aux["seen"])


def package(**changes: Any) -> Architecture:
    made = ModuleType("toy")
    parts = {"Model": Model, "loss": loss, "counted": counted, "commit": commit}
    made.__dict__.update(parts | {"SHARDING": (("*", P()),)} | changes)
    return Architecture.of(made)


CONFIG = None


def batch(rows: int = 8) -> dict[str, np.ndarray]:
    """Rows of very different lengths; the first half has most of the tokens."""
    rng = np.random.default_rng(0)
    lengths = np.where(np.arange(rows) < rows // 2, 5, 1 + np.arange(rows) % 2)
    return {
        "tokens": rng.integers(0, VOCAB, (rows, 5)).astype(np.int32),
        "mask": (np.arange(5) < lengths[:, None]).astype(np.int32),
        "image_id": np.arange(1, rows + 1, dtype=np.int32),
    }
