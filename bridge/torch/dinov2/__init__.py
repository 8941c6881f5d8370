"""dinov2 for PyTorch: transformers' own classes, so that no file needs to travel along."""

from pathlib import Path
from typing import Any

from jaxmodels.errors import MISMATCH, Problem

# Files that travel with every model directory.
FILES: tuple[Path, ...] = ()
# How the model card loads the directory.
AUTO_CLASS = "AutoModel"
# What lies beside the model: for `AutoImageProcessor`, the published models' preprocessing.
BESIDE = {
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


def keys(config: Any) -> dict[str, Any]:
    """What config.json holds for transformers, besides the fields of our Config.

    Raises:
        Problem: (mismatch) transformers has no feed-forward of this width.
    """
    kind = "Dinov2WithRegisters" if config.registers else "Dinov2"
    registers = {"num_register_tokens": config.registers} if config.registers else {}
    return {
        "model_type": "dinov2_with_registers" if config.registers else "dinov2",
        "architectures": [f"{kind}Model"],
        "hidden_size": config.dim,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "mlp_ratio": _ratio(config),
        "use_swiglu_ffn": config.mlp == "swiglu",
        "patch_size": config.patch,
        "image_size": config.image_size,
        "layer_norm_eps": 1e-6,
        "hidden_act": "gelu",
        **registers,
    }


def unlike(config: Any) -> str:
    """What transformers' class computes otherwise, for whoever converts; "" if nothing."""
    theirs = "antialias" if config.registers else "size"
    if config.interpolation == theirs:
        return ""
    return (
        f"transformers' class interpolates positions by {theirs!r}, this model by "
        f"{config.interpolation!r}: outputs are the same for images of {config.image_size} × "
        f"{config.image_size}, and differ for others"
    )


def build(config: Any) -> Any:
    """The `torch.nn.Module` of these sizes, its parameters not yet loaded."""
    import transformers

    values = keys(config)
    kind = values.pop("architectures")[0].removesuffix("Model")
    values.pop("model_type")
    return getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**values))


def example(config: Any) -> Any:
    """Random images to compare models on, float32 [2, h, w, 3], the same at every call.

    Of a size that asks for interpolation, unless transformers' class does that otherwise.
    """
    import numpy as np

    size = (config.image_size, config.image_size)
    if not unlike(config):
        size = (3 * config.patch, 4 * config.patch)
    return np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)


def jax_outputs(model: Any, images: Any) -> Any:
    """float32 features [b, t, d] of the nnx module, as numpy."""
    import jax.numpy as jnp
    import numpy as np
    from flax import nnx

    forward = nnx.jit(lambda model, images: model(images))
    return np.asarray(forward(model, jnp.asarray(images)))


def torch_outputs(module: Any, images: Any) -> Any:
    """float32 features [b, t, d] of the PyTorch module, as numpy."""
    import torch

    with torch.no_grad():
        pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        return module(pixel_values=pixels).last_hidden_state.numpy()


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
