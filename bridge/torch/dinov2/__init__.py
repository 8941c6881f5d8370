"""dinov2 for PyTorch: transformers' own classes, so that no file needs to travel along."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bridge.core.transformers_class import Key, ModelType, Only, TransformersClass
from jaxmodels.errors import MISMATCH, Problem

# Files that travel with every model directory.
FILES: tuple[Path, ...] = ()
# How the model card loads the directory.
AUTO_CLASS = "AutoModel"
ONNX = "bridge.onnx.dinov2"
# For `AutoImageProcessor`: the published models' preprocessing.
_PROCESSING = {
    "preprocessor_config.json": {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": 256},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": 224, "width": 224},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    }
}


_REGISTERS = 4


def beside(config: Any, text: bool) -> dict[str, Any]:
    """Further files of a model directory: how images are prepared."""
    return _PROCESSING


def usage(config: Any, text: bool) -> str:
    """The model card's part on features."""
    return """## Features of an image

```python
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained("PATH")
processor = AutoProcessor.from_pretrained("PATH")
image = Image.open("image.jpg")
with torch.no_grad():
    features = model(**processor(images=image, return_tensors="pt")).last_hidden_state
print(features[0, 0])  # of the image; the patches follow, line by line
```"""


def _reads(config_json: Mapping[str, Any], where: Path) -> dict[str, Any]:
    """A type with registers has them, also where the config does not say how many."""
    if config_json["model_type"] == "dinov2" or "num_register_tokens" in config_json:
        return {}
    return {"registers": _REGISTERS}


# Source: transformers' `Dinov2Config` and `Dinov2WithRegistersConfig`.
TRANSFORMERS = TransformersClass(
    format="dinov2",
    types={
        "dinov2": ModelType(
            "Dinov2",
            implies={"registers": 0, "interpolation": "size"},
            mark="embeddings.patch_embeddings.projection.weight",
        ),
        "dinov2_with_registers": ModelType(
            "Dinov2WithRegisters",
            implies={"interpolation": "antialias"},
            mark="embeddings.register_tokens",
        ),
    },
    head="Model",
    rows=(
        Key("hidden_size", "dim", 768),
        Key("num_hidden_layers", "layers", 12),
        Key("num_attention_heads", "heads", 12),
        Key("use_swiglu_ffn", "mlp", "gelu", values={False: "gelu", True: "swiglu", None: "gelu"}),
        Key("patch_size", "patch", 14, side=True),
        Key("image_size", "image_size", 224, side=True),
        Key("num_register_tokens", "registers", _REGISTERS),
    ),
    only={
        "layer_norm_eps": Only(1e-6, written=True),
        "hidden_act": Only("gelu", written=True),
        "qkv_bias": Only(True),
        "num_channels": Only(3),
    },
    own={"interpolation": None},
    # Features do not depend on the mask token, and what is written always has it.
    settled={"use_mask_token": True},
    reads=_reads,
    writes=lambda config: {"mlp_ratio": _ratio(config)},
)
keys, build = TRANSFORMERS.keys, TRANSFORMERS.build


def unlike(config: Any) -> str:
    """What transformers' class computes otherwise, for whoever converts; "" if nothing."""
    theirs = TRANSFORMERS.types[TRANSFORMERS.type_of(config)].implies["interpolation"]
    if config.interpolation == theirs:
        return ""
    return (
        f"transformers' class interpolates positions by {theirs!r}, this model by "
        f"{config.interpolation!r}: outputs are the same for images of {config.image_size} × "
        f"{config.image_size}, and differ for others"
    )


def example(config: Any) -> Any:
    """Random images to compare models on, float32 [2, h, w, 3], the same at every call.

    Of a size that asks for interpolation, unless transformers' class does that otherwise.
    """
    import numpy as np

    size = (config.image_size, config.image_size)
    if not unlike(config):
        size = (3 * config.patch, 4 * config.patch)
    return np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)


def jax_forward(model: Any, images: Any) -> Any:
    """float32 features [b, t, d] of the nnx module."""
    import jax.numpy as jnp

    return model(jnp.asarray(images))


def jax_outputs(model: Any, images: Any) -> Any:
    """`jax_forward`, compiled, as numpy."""
    import numpy as np
    from flax import nnx

    return np.asarray(nnx.jit(jax_forward)(model, images))


def torch_forward(module: Any, images: Any) -> Any:
    """float32 features [b, t, d] of the PyTorch module."""
    import torch

    pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    return module(pixel_values=pixels).last_hidden_state


def torch_outputs(module: Any, images: Any) -> Any:
    """`torch_forward` as numpy, without gradients."""
    import torch

    with torch.no_grad():
        return torch_forward(module, images).numpy()


def _ratio(config: Any) -> int:
    """transformers' `mlp_ratio`, a whole number that gives this width of the feed-forward."""
    for ratio in range(1, 3 * config.hidden // config.dim + 2):
        width = config.dim * ratio
        if config.mlp == "swiglu":  # two thirds, in eights
            width = (int(width * 2 / 3) + 7) // 8 * 8
        if width == config.hidden:
            return ratio
    raise Problem(
        f"transformers cannot hold a feed-forward of width {config.hidden} in a DINOv2 of "
        f"{config.dim}",
        why="its width follows from a ratio, mlp_ratio, that is a whole number",
        fix="use --to orbax or --to dinov2-pth",
        exit_code=MISMATCH,
    )
