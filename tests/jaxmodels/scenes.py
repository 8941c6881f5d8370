"""A folder of drawn scenes with captions, and small runs on it."""

import json
from pathlib import Path

from PIL import Image

from data_pipelines.captions.shapes import captions, draw, scene
from jaxmodels.__main__ import main

# The smallest of each that has all parts.
SIZES = {
    "bitgen": [
        *("--model.dim", "16", "--model.heads", "2", "--model.hidden", "16", "--model.layers", "1"),
        *("--model.decoder-layers", "1", "--model.queue", "32", "--model.slots", "4"),
        *("--model.context", "24", "--model.image-size", "28"),
        *("--model.dinov2.dim", "16", "--model.dinov2.layers", "1", "--model.dinov2.heads", "2"),
        *("--model.dinov2.hidden", "16", "--model.dinov2.image-size", "28"),
    ],
    "bitgen_stage1": ["--model.layers", "1", "--model.dinov2.layers", "1"],
}
FLAGS = ["--batch", "8", "--steps", "4", "--eval-every", "2", "--save-every", "2"]
FLAGS += ["--valid-fraction", "0.3", "--tokenizer", "words"]
FLAGS += ["--optim.name", "adamw"]  # Muon, which compiles as long as the model, has its own tests


def folder(path: Path, count: int = 40) -> str:
    """Writes scenes and their captions; the spec of the folder."""
    path.mkdir()
    images, annotations = [], []
    for i in range(count):
        drawn = scene(i)
        Image.fromarray(draw(drawn, 28)).save(path / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png"})
        annotations += [{"image_id": i, "caption": text} for text in captions(drawn)]
    content = {"images": images, "annotations": annotations}
    (path / "captions.json").write_text(json.dumps(content))
    return f"images:{path}"


def train(arch: str, data: str, out: Path, *flags: str) -> int:
    return main(
        ["train", f"{arch}:tiny", "--data", data, "--out", str(out), *SIZES[arch], *FLAGS, *flags]
    )
