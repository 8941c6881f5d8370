"""A bitgen at work without JAX or PyTorch: captions, similarities, search and memory.

    pip install numpy onnxruntime pillow tokenizers
    jaxmodels convert RUN MODEL --to onnx        # where jaxmodels is; --dtype int8 makes it smaller

    python edge.py MODEL caption IMAGE
    python edge.py MODEL similarity IMAGE TEXT
    python edge.py MODEL search FOLDER TEXT      # the images in a folder that fit a text best
    python edge.py MODEL recall IMAGE            # what the memory has for an image, or a TEXT

Every command ends with the time that it took and the most memory that it used.
"""

import argparse
import base64
import json
import sys
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image, ImageOps
from tokenizers import Tokenizer

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
FOUND = 5  # images that a search shows
MEMORY = "memory.json"
SAME = 0.999  # how near counts where it was not measured: only the same text or image


class Model:
    """The graphs of a folder that `jaxmodels convert --to onnx` wrote; opened when needed."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.config = self.json("config.json")
        if self.config.get("arch") != "bitgen":
            sys.exit(f"error: {folder} holds no bitgen")
        self.generation = self.json("generation_config.json")
        self._sessions: dict[str, Any] = {}

    def json(self, name: str) -> dict[str, Any]:
        """The content of a JSON file."""
        try:
            return json.loads((self.folder / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            sys.exit(f"error: {self.folder / name} is missing: is this a folder of ONNX graphs?")

    def run(self, name: str, **given: np.ndarray) -> dict[str, np.ndarray]:
        """The outputs of a graph by their names."""
        if name not in self._sessions:
            options = onnxruntime.SessionOptions()
            # Activations stay float32 where weights are int8.
            options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
            self._sessions[name] = onnxruntime.InferenceSession(
                self.folder / f"{name}.onnx", options, providers=["CPUExecutionProvider"]
            )
        session = self._sessions[name]
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, given), strict=True))

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Text to ids and back."""
        file = self.folder / "tokenizer.json"
        if not file.exists():
            sys.exit(f"error: {self.folder} has no tokenizer.json: the model came without one")
        return Tokenizer.from_file(str(file))

    def encode(self, text: str) -> np.ndarray:
        """A text with its end, as in training: int64 [1, t]."""
        found = self.tokenizer.encode(text, add_special_tokens=False)
        unknown = found.tokens.count(getattr(self.tokenizer.model, "unk_token", None))
        if unknown == len(found.tokens):
            sys.exit(f"error: nothing of {text!r} is in the model's vocabulary")
        if unknown:
            print(
                f"{unknown} of {len(found.tokens)} tokens are unknown to the model", file=sys.stderr
            )
        ids = found.ids
        end = self.json("tokenizer_config.json").get("eos_token")
        ends = [self.tokenizer.token_to_id(end)] if end else self.tokenizer.encode("\n\n").ids
        return np.array([(ids + ends)[: self.config["context"]]], np.int64)

    def image(self, file: Path) -> dict[str, np.ndarray]:
        """`image_tokens` [1, p, d] and the unit `image_features` [1, d] of an image file."""
        return self.run("image_encoder", pixel_values=pixels(file, self.config["image_size"]))

    def text(self, text: str) -> np.ndarray:
        """The unit features of a text, [1, d]."""
        ids = self.encode(text)
        return self.run("text_encoder", input_ids=ids, attention_mask=np.ones_like(ids))[
            "text_features"
        ]

    def write(self, features: np.ndarray, image_tokens: np.ndarray | None = None) -> str:
        """The likeliest text about an image and what is remembered of it, or about memory alone."""
        if image_tokens is None:
            image_tokens = np.zeros((1, 0, self.config["dim"]), np.float32)
        seen = self.run("context", image_tokens=image_tokens, features=features)
        heads = self.config["heads"]
        empty = np.zeros((1, heads, 0, self.config["dim"] // heads), np.float32)
        past = {name.replace("cross", "past_key_values"): empty for name in seen}
        never = self.generation.get("suppress_tokens", [])
        ids, token = [], 0  # the first stands for the start
        for length in range(1, self.config["context"] + 1):
            found = self.run(
                "decoder",
                input_ids=np.array([[token]], np.int64),
                attention_mask=np.ones((1, length), np.int64),
                **seen,
                **past,
            )
            logits = found.pop("logits")[0, -1]
            logits[never] = -np.inf
            token = int(logits.argmax())
            if token == self.generation.get("eos_token_id"):
                break
            ids.append(token)
            past = {k.replace("present", "past_key_values"): x for k, x in found.items()}
        return self.tokenizer.decode(ids)


def pixels(file: Path, side: int) -> np.ndarray:
    """The largest centred square of an image, float32 [1, 3, side, side] in [0, 1]."""
    try:
        image = ImageOps.exif_transpose(Image.open(file))
    except OSError as error:
        sys.exit(f"error: {file} is not a readable image: {error}")
    if image.mode.startswith("I"):  # 16 bits
        grey = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((grey + 128) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    shorter = min(image.size)
    size = tuple(int(side * length / shorter) for length in image.size)
    resized = np.asarray(image.resize(size, Image.Resampling.BICUBIC))
    top, left = ((length - side) // 2 for length in resized.shape[:2])
    cut = resized[top : top + side, left : left + side]
    return cut.transpose(2, 0, 1)[None].astype(np.float32) / 255


def caption(model: Model, image: str) -> None:
    """Prints a caption."""
    seen = model.image(Path(image))
    print(model.write(seen["image_features"], seen["image_tokens"]))


def similarity(model: Model, image: str, text: str) -> None:
    """Prints how well a text fits an image, from −1 to 1."""
    print(f"{(model.image(Path(image))['image_features'] @ model.text(text).T).item():.4f}")


def search(model: Model, folder: str, text: str) -> None:
    """Prints the images of a folder that fit a text best."""
    files = [x for x in sorted(Path(folder).glob("**/*")) if x.suffix.lower() in IMAGES]
    if not files:
        sys.exit(f"error: there is no image in {folder}")
    wanted = model.text(text)
    features = np.concatenate([model.image(file)["image_features"] for file in files])
    scores = (features @ wanted.T)[:, 0]
    for i in np.argsort(-scores)[:FOUND]:
        print(f"{scores[i]:.4f}  {files[i]}")


def recall(model: Model, query: str) -> None:
    """Prints what was written about an image or a text, with where it came from.

    It is looked up in memory.json, as `jaxmodels memory read` does. Without it, what the memory has
    is said in the model's words.
    """
    seen = Path(query).is_file()
    features = model.image(Path(query))["image_features"] if seen else model.text(query)
    if not (model.folder / MEMORY).exists():
        return print(model.write(features))
    held = model.json(MEMORY)
    least = held["closeness"] or {}
    best = None
    for item in held["items"]:
        pictured = seen and item["kind"] != "text"
        key = vector(item["key" if pictured else "text_key"])
        near = float(features[0] @ key)
        kind = "image" if pictured else "cross" if seen else "text"
        enough = least[kind]["least"] if kind in least else SAME
        share = (1 - near) / (1 - enough)  # of the largest distance that counts
        if share <= 1 and (best is None or share < best[0]):
            best = share, item
    return print(f"{best[1]['text']}  ({best[1]['source']})" if best else "never written")


def vector(text: str) -> np.ndarray:
    """Numbers of memory.json, float32 [d]."""
    return np.frombuffer(base64.b64decode(text), "<f4")


def most_memory() -> float:
    """The most memory that this process used, in MB."""
    try:
        import resource
    except ImportError:  # Windows
        return float("nan")
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used / (1e6 if sys.platform == "darwin" else 1e3)


COMMANDS: dict[str, tuple[Callable[..., None], int]] = {
    "caption": (caption, 1),
    "similarity": (similarity, 2),
    "search": (search, 2),
    "recall": (recall, 1),
}


def main() -> None:
    """Runs a command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("words", nargs="+", help="IMAGE, TEXT or FOLDER, as above")
    options = parser.parse_args()
    run, count = COMMANDS[options.command]
    if len(options.words) != count:
        parser.error(f"{options.command} takes {count} of them, not {len(options.words)}")
    start = time.monotonic()
    run(Model(options.model), *options.words)
    print(f"{time.monotonic() - start:.2f} s, {most_memory():.0f} MB", file=sys.stderr)


if __name__ == "__main__":
    main()
