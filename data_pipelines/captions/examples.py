"""Opens the sources of images with captions or questions."""

from pathlib import Path

from data_pipelines.captions.source import (
    COCO,
    QUESTIONS,
    SHAPES,
    ImageTextSource,
    is_drawn,
    shapes_side,
)
from data_pipelines.errors import USAGE, DataProblem
from data_pipelines.sources import unknown_spec

PATCH = 14
"""Width of DINOv2's patches, in pixels."""


def is_caption_source(spec: str) -> bool:
    """Whether a spec of any form but `bin:` and `mix:` names images with texts, not text alone.

    Raises:
        DataProblem: (corrupt) it names a TFDS dataset that is missing.
    """
    kind, _, rest = spec.partition(":")
    if kind == "tfds" and rest and "#" not in rest:  # a # names a field of text
        from data_pipelines.captions.tfds_captions import dataset_has_captions

        return dataset_has_captions(rest)
    return kind in (SHAPES, COCO, "images", QUESTIONS)


def open_examples(spec: str, folder: Path) -> ImageTextSource:
    """The images that a spec names, with their captions or questions.

    Args:
        spec: what to read.
        folder: where the shapes were drawn.

    Raises:
        DataProblem: (usage) the spec has no known form; (corrupt) nothing is found.
    """
    kind, _, rest = spec.partition(":")
    if kind == SHAPES:
        from data_pipelines.captions.tfds_captions import open_shapes

        return open_shapes(spec, folder)
    if kind == QUESTIONS and is_drawn(spec):
        from data_pipelines.captions.tfds_captions import open_shapes_with_questions

        return open_shapes_with_questions(spec, folder)
    if kind == QUESTIONS and rest.partition("#")[0]:
        from data_pipelines.captions.questions import open_questions

        return open_questions(spec, rest)
    if kind == COCO:
        kind, rest = "tfds", COCO + (f":{rest}" if rest else "")
    if kind == "tfds" and rest:
        from data_pipelines.captions.tfds_captions import open_dataset

        return open_dataset(spec, rest)
    if kind == "images" and rest.partition("#")[0]:
        from data_pipelines.captions.folder import open_folder

        return open_folder(spec, rest)
    raise unknown_spec(spec)


def side_of(spec: str, side: int | None, patch: int = PATCH) -> int:
    """Width to resize images to, in pixels: the given one, else that of drawn shapes, else 224.

    Raises:
        DataProblem: (usage) it is not a positive multiple of `patch`, the width of a patch.
    """
    if side is None:
        side = shapes_side(spec) if is_drawn(spec) else 224
    if side < patch or side % patch:
        raise DataProblem(
            f"the images cannot be {side} pixels wide",
            where=spec,
            why=f"a width is a multiple of {patch}, the width of a patch",
            fix=f"give {max(patch, side // patch * patch)}, for example",
            exit_code=USAGE,
        )
    return side
