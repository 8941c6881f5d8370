"""bitgen for PyTorch: what a model directory carries, and the empty model."""

from pathlib import Path
from typing import Any

from bridge.torch.image_text import PROCESSING, SIMILARITY, random_inputs

LIKE = "bridge.torch.image_text"
ONNX = "bridge.onnx.bitgen"
# Files that travel with every model directory.
FILES = (Path(__file__).with_name("modeling_bitgen.py"), PROCESSING)

_CAPTIONS = """## Captions

```python
from PIL import Image
from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained("PATH", trust_remote_code=True)
processor = AutoProcessor.from_pretrained("PATH", trust_remote_code=True)
inputs = processor(images=Image.open("image.jpg"))
print(processor.batch_decode(model.generate(**inputs))[0])
```

`generate` takes transformers' options (`num_beams=4`, `do_sample=True`, …) and a beginning of the
caption: `processor(images=image, text="a photo of", end=False)`."""

_MEMORY = """## Memory

Texts are remembered without training, and found again by an image, or by a text:

```python
from PIL import Image
from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained("PATH", trust_remote_code=True)
processor = AutoProcessor.from_pretrained("PATH", trust_remote_code=True)
fact = processor(images=Image.open("image.jpg"), text="a cat on a couch")
model.write(**fact)
print(processor.batch_decode(model.recollect(pixel_values=fact["pixel_values"]))[0])
model.forget(**fact)  # as if it had never been written
```

`model.save_pretrained(FOLDER)` saves the memory with the model."""


def usage(config: Any, text: bool) -> str:
    """The model card's snippets, which need the tokeniser."""
    return "\n\n".join((_CAPTIONS, SIMILARITY, _MEMORY)) if text else ""


def keys(config: Any) -> dict[str, Any]:
    """What config.json holds for transformers, besides the fields of our Config."""
    return {
        "model_type": "bitgen",
        "architectures": ["BitGenModel"],
        "auto_map": {
            "AutoConfig": "modeling_bitgen.BitGenConfig",
            "AutoModel": "modeling_bitgen.BitGenModel",
        },
        "vocab_size": config.vocab,
        "hidden_size": config.dim,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "tie_word_embeddings": False,
    }


def build(config: Any) -> Any:
    """The `torch.nn.Module` of these sizes, its parameters not yet loaded."""
    from dataclasses import asdict

    from bridge.torch.bitgen.modeling_bitgen import (
        BitGenConfig,
        BitGenModel,
    )

    return BitGenModel(BitGenConfig(**asdict(config)))


def build_packed(config: Any) -> Any:
    """As `build`, of the layers of a packed file."""
    from bridge.torch.bitgen.modeling_bitgen import compress

    module = build(config)
    compress(module)
    return module


def example(config: Any) -> Any:
    """Random inputs to compare models on: int32 ids [2, t], images [2, y, x, 3], noise [2, m]."""
    return random_inputs(config, (2, config.slots))
