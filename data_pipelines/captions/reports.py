"""Images with captions or questions for `jaxmodels data inspect` and `jaxmodels data bench`."""

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.captions.caption_dataset import CaptionDataset, ShuffledCaptions
from data_pipelines.captions.examples import open_examples
from data_pipelines.captions.pixels import pixels_of, square
from data_pipelines.captions.prepared import IMAGES, read_captions_manifest, read_rows
from data_pipelines.file_search import path_of
from data_pipelines.pipelines import open_data
from data_pipelines.reading import Progress
from data_pipelines.reports import rates

_EXCERPT = 3  # captions
_BATCHES, _DECODED = 100, 64  # batches, and images, in a round of a timing


def of_images(
    spec: str, tokenizer: str, valid_fraction: float, progress: Progress | None = None
) -> dict[str, Any]:
    """A report, JSON-able; decodes every image, unless that was done before.

    Args:
        spec: of images with captions.
        tokenizer: of the captions: a name or a PATH.
        valid_fraction: as `open_data`.
        progress: called as (stage, bytes done, bytes in all).
    """
    sizes: dict[str, Any] = {"context": 1 << 20, "batch": 1, "valid_fraction": valid_fraction}
    with _opened(spec, tokenizer, 14, progress, **sizes) as (data, folder):
        manifest = read_captions_manifest(folder)
        rows = read_rows(folder, manifest)
        what = "question" if "questions" in manifest else "caption"
        return {
            "spec": spec,
            "source": {"spec": manifest["spec"], **manifest["source"]},
            "images": len(rows),
            "train_images": data.train_images,
            "valid_images": data.valid_images,
            f"{what}s": len(data.captions.ends),
            f"{what}s_per_image": _range(data.captions.counts),
            f"tokens_per_{what}": _range(data.captions.lengths),
            "unknown": data.captions.unknown,
            "vocab_size": data.vocab_size,
            "width": _range(row.size[0] for row in rows),
            "height": _range(row.size[1] for row in rows),
            "left_out": {what: left["count"] for what, left in manifest["left_out"].items()},
            "excerpt": list(data.texts[0][:_EXCERPT]),
        }


def time_images(spec: str, tokenizer: str, context: int, batch: int) -> dict[str, float]:
    """Images a second: batches as training reads them, and decoding the originals one by one."""
    sizes: dict[str, Any] = {"context": context, "batch": batch, "valid_fraction": 0.0}
    with _opened(spec, tokenizer, None, **sizes) as (data, folder):
        manifest = read_captions_manifest(folder)
        ready = IMAGES in manifest["sha256"]
        batches, position = (
            ShuffledCaptions(data, np.arange(len(data.texts)), None),
            iter(range(1 << 62)),
        )
        with closing(data.train()) as loader:
            # By itself, and in each round more than are prefetched: the warm-up uses those up.
            found = rates({"loader": lambda: next(loader)}, batch, _BATCHES if ready else 16)
        makers = {"loader_unthreaded": lambda: batches[next(position)]}
        found |= rates(makers, batch, _BATCHES if ready else 1)
        source = open_examples(manifest["spec"], folder).train
        readable = [row.index for row in read_rows(folder, manifest) if row.split == "train"]
        examples = [source[i] for i in readable[:_DECODED]]

        def decode() -> None:
            for example in examples:
                square(pixels_of(example.image, example.name), data.side)

        return found | rates({"decoding": decode}, len(examples), 1)


@contextmanager
def _opened(
    spec: str, tokenizer: str, side: int | None, progress: Progress | None = None, **sizes: Any
) -> Iterator[tuple[CaptionDataset, Path]]:
    """The dataset of a spec and its prepared folder, a temporary one unless it is `bin:`."""
    with tempfile.TemporaryDirectory(prefix="jaxmodels-images-") as temporary:
        folder = Path(temporary) / "data"
        if spec.startswith("bin:"):
            folder, side = path_of(spec.removeprefix("bin:")), None
        sizes |= {"tokenizer": tokenizer, "side": side, "progress": progress}
        data = open_data(spec, folder=folder, **sizes)
        assert isinstance(data, CaptionDataset)
        yield data, folder


def _range(values: Iterable[Any]) -> dict[str, int | float]:
    """Smallest, median and largest."""
    every = np.fromiter(values, np.int64)
    return {"min": int(every.min()), "median": float(np.median(every)), "max": int(every.max())}
