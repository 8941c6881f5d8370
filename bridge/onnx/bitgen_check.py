"""bitgen's graphs against our model: what is ternary in float64, the rest as it is written.

Each part begins where another ends, and is given what our model has there: the tower's features,
the token that the memory gives, the keys of what the decoder looks at.
"""

from itertools import pairwise
from typing import Any

import numpy as np

from bridge.onnx.bitgen_graphs import CONTEXT, DECODER, IMAGE, TEXT, TOKEN, TOWER, sizes
from bridge.onnx.cutting import part

Arrays = dict[str, np.ndarray]


def difference(side: Any, model: Any, files: Any) -> float:
    """The largest difference of any output."""
    config = model.config
    tokens, mask, images = _inputs(config)
    ours = _outputs(model, tokens, mask, images)
    pixels = images.transpose(0, 3, 1, 2).astype(np.float32)
    text = {"input_ids": tokens.astype(np.int64), "attention_mask": mask.astype(np.int64)}
    features = ours["image_features"].astype(np.float32)
    seen = {name: ours[name] for name in ("image_tokens", TOKEN)}
    parts: list[tuple[str, Arrays, list[str], bool]] = [
        (IMAGE, {"pixel_values": pixels}, [TOWER], False),
        (IMAGE, {TOWER: ours[TOWER]}, ["image_tokens", "image_features"], True),
        (TEXT, text, ["text_features", "codes"], True),
        (CONTEXT, {"features": features}, [TOKEN], False),
        (CONTEXT, seen, _names("cross", config), True),
    ]
    found = []
    for name, given, outputs, wide in parts:
        cut = part(files.folder / name, list(given), outputs, wide)
        made = files.run(f"{name} {outputs[0]}", given, cut)
        found += [np.abs(made[output] - ours[output]).max() for output in outputs]
    found.append(_decoded(config, files, tokens.astype(np.int64), ours))
    _run_as_written(config, files, pixels[:1], {key: value[:1] for key, value in text.items()})
    return float(max(found))


def _decoded(config: Any, files: Any, tokens: np.ndarray, ours: Arrays) -> float:
    """The decoder on a whole text, and on the last tokens one by one."""
    cross = {name: ours[name] for name in _names("cross", config)}
    past, present = _names("past_key_values", config), _names("present", config)
    inputs = ["input_ids", "attention_mask", *cross, *past]
    cut = part(files.folder / DECODER, inputs, ["logits", *present])
    ids = np.concatenate([np.zeros_like(tokens[:, :1]), tokens[:, :-1]], axis=1)
    (b, t), found = ids.shape, []
    for ends in ([0, t], sorted({0, *(max(t - i, 1) for i in range(4))})):
        cache = {name: np.zeros(shape) for name, shape in _empty(config, b).items()}
        for start, end in pairwise(ends):
            given = {"input_ids": ids[:, start:end], "attention_mask": np.ones((b, end), np.int64)}
            out = files.run(DECODER + " 64", given | cross | cache, cut)
            found.append(np.abs(out["logits"] - ours["logits"][:, start:end]).max())
            cache = {name: out[now] for name, now in zip(past, present, strict=True)}
    return float(max(found))


def _run_as_written(config: Any, files: Any, pixels: np.ndarray, text: Arrays) -> None:
    """Runs the files one after the other for one image and text, as their users do."""
    seen = files.run(IMAGE, {"pixel_values": pixels})
    files.run(TEXT, text)
    given = {"image_tokens": seen["image_tokens"], "features": seen["image_features"]}
    cross = files.run(CONTEXT, given)
    cache = {name: np.zeros(shape, np.float32) for name, shape in _empty(config, 1).items()}
    files.run(DECODER, {**text, **cross, **cache})


def _inputs(config: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, a mask that hides some of them, and images; the same at every call."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, config.vocab, (2, min(config.context, 32)), np.int32)
    mask = np.ones_like(tokens)
    mask[1, 1 + tokens.shape[1] // 2 :] = 0
    return tokens, mask, rng.random((2, config.image_size, config.image_size, 3))


def _outputs(model: Any, tokens: np.ndarray, mask: np.ndarray, images: np.ndarray) -> Arrays:
    """What our model makes of them in float64, inner values included."""
    import jax
    import jax.numpy as jnp

    from jaxmodels.bitgen import encoders
    from jaxmodels.dinov2.pixels import normalised
    from jaxmodels.layers.head import tied_logits
    from jaxmodels.runtime.paths import split

    graphdef, *held = split(model)
    host = [{path: np.asarray(array) for path, array in arrays.items()} for arrays in held]

    def outputs(params: Any, rest: Any, tokens: Any, mask: Any, images: Any) -> dict[str, Any]:
        model = graphdef.merge(params, rest)
        seen = encoders.upper_image(model, encoders.lower_image(model, images))
        features = model.image_pool(seen.mean(axis=1))
        token = model.memory.token(model.memory.read(features))
        cross, sees = model.context(seen, model.memory.read(features))
        hidden = model.decoder.hidden(model.inputs(tokens), cross, sees)
        real = model.padding_mask(tokens, mask)
        x = encoders.upper_text(model, encoders.lower_text(model, tokens, real), real)
        pooled = encoders.mean(x, real)
        found = {
            TOWER: model.vision(normalised(images, model.config.image_size)),
            "image_tokens": seen,
            "image_features": features,
            "text_features": model.text_pool(pooled),
            "codes": model.memory.codes(pooled),
            TOKEN: token,
            "logits": tied_logits(hidden, model.embed.embedding[...]),
        }
        for i, both in enumerate(cross):
            found |= {
                f"cross.{i}.{name}": heads.transpose(0, 2, 1, 3)
                for name, heads in zip(("key", "value"), both, strict=True)
            }
        return found

    with jax.enable_x64(True):
        double = [{path: jnp.asarray(_wide(x)) for path, x in arrays.items()} for arrays in host]
        given = (jnp.asarray(x) for x in (tokens, mask, images))
        return {name: np.asarray(x) for name, x in jax.jit(outputs)(*double, *given).items()}


def _wide(array: np.ndarray) -> np.ndarray:
    return array if np.issubdtype(array.dtype, np.integer) else array.astype(np.float64)


def _names(kind: str, config: Any) -> list[str]:
    layers = range(config.decoder_layers)
    return [f"{kind}.{i}.{name}" for i in layers for name in ("key", "value")]


def _empty(config: Any, batch: int) -> dict[str, tuple[int, ...]]:
    """Name → shape of a cache without tokens."""
    shapes = [(batch, h, 0, k) for h, k in sizes(config) for _ in range(2)]
    return dict(zip(_names("past_key_values", config), shapes, strict=True))
