"""What the twins of bitgen and bitgen_stage1 share: how images and texts are read, and both sides
compared."""

from pathlib import Path
from typing import Any

# How the model card loads the directory.
AUTO_CLASS = "AutoModel"
# Reads images and texts, and travels with every model directory.
PROCESSING = Path(__file__).with_name("processing_bitgen.py")
# Texts are padded behind their end: positions count from the first token.
TOKENIZER: dict[str, Any] = {"padding_side": "right"}
_MODULE = PROCESSING.stem
_OUTPUTS = ("embeddings", "text_features", "image_features", "decoder_logits")


def beside(config: Any, text: bool) -> dict[str, Any]:
    """Files for `AutoImageProcessor` and, with a tokeniser, for `AutoProcessor`."""
    files: dict[str, Any] = {
        "preprocessor_config.json": {
            "image_processor_type": "BitGenImageProcessor",
            "auto_map": {"AutoImageProcessor": f"{_MODULE}.BitGenImageProcessor"},
            "size": config.image_size,
        }
    }
    if text:
        files["processor_config.json"] = {
            "processor_class": "BitGenProcessor",
            "auto_map": {"AutoProcessor": f"{_MODULE}.BitGenProcessor"},
        }
    return files


SIMILARITY = """## Similarity of an image and a text

```python
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained("PATH", trust_remote_code=True)
processor = AutoProcessor.from_pretrained("PATH", trust_remote_code=True)
inputs = processor(images=Image.open("image.jpg"), text="a cat on a couch")
with torch.no_grad():
    outputs = model(**inputs, return_contrastive_features=True)
features = outputs["contrastive_features"]
print((features["text_features"] @ features["image_features"].T).item())  # from -1 to 1
```

Images are floats `[b, 3, y, x]` with values in [0, 1], also as `images=` instead of
`pixel_values=`. To search, compute `model.get_image_features` of all images once, and compare with
`model.get_text_features`."""
"""The model card's part on similarity."""


def random_inputs(config: Any, noise: tuple[int, ...]) -> Any:
    """Ids (int32 [2, t]), images (float64 [2, y, x, 3]) and noise of a shape, always the same."""
    import numpy as np

    rng = np.random.default_rng(0)
    tokens = rng.integers(0, config.vocab, (2, min(config.context, 32)), np.int32)
    images = rng.random((2, 48, 60, 3))
    return tokens, images, rng.standard_normal(noise)


def jax_outputs(model: Any, inputs: Any) -> Any:
    """All outputs of the nnx module, flat and concatenated, as numpy.

    Computed in float64: with the last bit of a float32 the two sides could round an activation
    halfway between two of the decoder's 8-bit numbers differently.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    from jaxmodels.runtime.paths import split

    graphdef, *held = split(model)
    # Converted on the host: the device would take the values only as float32.
    held = [{path: np.asarray(array) for path, array in arrays.items()} for arrays in held]
    with jax.enable_x64(True):
        double = [{path: _double(array) for path, array in arrays.items()} for arrays in held]
        tokens, images, noise = (jnp.asarray(array) for array in inputs)

        @jax.jit
        def forward(params: Any, rest: Any) -> Any:
            return graphdef.merge(params, rest)(tokens, images, targets=tokens, noise=noise)

        out = forward(*double)
        return np.concatenate([np.ravel(getattr(out, name)) for name in _OUTPUTS])


def _double(array: Any) -> Any:
    import numpy as np

    return array if np.issubdtype(array.dtype, np.integer) else array.astype(np.float64)


def torch_outputs(module: Any, inputs: Any) -> Any:
    """`jax_outputs` of the PyTorch module."""
    import numpy as np
    import torch

    tokens, images, noise = (torch.from_numpy(array) for array in inputs)
    with torch.no_grad():
        out = module.double()(tokens.long(), images.permute(0, 3, 1, 2), tokens.long(), noise)
    return np.concatenate([out[name].numpy().ravel() for name in _OUTPUTS])
