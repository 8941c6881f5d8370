"""What `jaxmodels memory` answers about drawn scenes, for `jaxmodels bench scenes`."""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.captions.shapes import Scene, captions, draw, scene
from jaxmodels.commands.memory_options import Forget, Write

ASKED = 200
KINDS = ("text", "image")


def remembering(run: Path, asked: int = ASKED) -> dict[str, float]:
    """Shares of written scenes that are found or refused, and of as many others that are answered.

    Each is asked for by its caption and by its image. As many as the memory holds are written at
    once; no two scenes have the same content.

    Args:
        run: a run of a bitgen, or another checkpoint of one.
        asked: how many scenes are written, and how many are not.
    """
    import bridge
    from jaxmodels.commands.memory_actions import forget, write
    from jaxmodels.commands.memory_model import Memorable

    scenes = _different_scenes(2 * asked)
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="jaxmodels-bench-") as temporary:
        folder, file = Path(temporary) / "model", Path(temporary) / "facts.jsonl"
        bridge.convert(run, folder)
        config = Memorable(folder).config
        for i in range(0, asked, config.slots):
            part = slice(i, min(i + config.slots, asked))
            written, others = scenes[:asked][part], scenes[asked:][part]
            _save(written, file, config.image_size)
            write(Write(folder, file=file, data="shapes"))
            for name, value in _answers(Memorable(folder), written, others):
                found.setdefault(name, []).append(value)
            forget(Forget(folder, all=True))
    return {name: float(np.mean(values)) for name, values in found.items()}


def _answers(asked: Any, written: list[Scene], others: list[Scene]) -> Iterator[tuple[str, float]]:
    """What is counted of each scene: (name, 0 or 1)."""
    from jaxmodels.bitgen.closeness import nearest

    thresholds = asked.closeness()
    for kind in KINDS:
        for scenes in (written, others):
            texts = [captions(each)[0] for each in scenes]
            features = asked.texts(texts).features
            if kind == "image":
                features = asked.images(
                    np.stack([draw(each, asked.config.image_size) for each in scenes])
                )
            for text, feature in zip(texts, features, strict=True):
                item = nearest(asked.record, thresholds, feature, kind == "image")
                assert item is not None  # something was written
                close = item.close
                if scenes is others:
                    yield f"memory by {kind}: unwritten, answered", float(close)
                    continue
                yield f"memory by {kind}: written, refused", float(not close)
                yield f"memory by {kind}: written, found", float(close and item.item.text == text)


def _different_scenes(count: int) -> list[Scene]:
    """Scenes of another seed than training's and the held-out ones'."""
    found = {each.combination: each for each in (scene(i, seed=1) for i in range(2 * count))}
    return [*found.values()][:count]


def _save(scenes: list[Scene], file: Path, side: int) -> None:
    """Writes images of scenes, and a file that names them with their captions."""
    from PIL import Image

    lines = []
    for i, each in enumerate(scenes):
        Image.fromarray(draw(each, side)).save(file.parent / f"{i}.png")
        lines.append(json.dumps({"image": f"{i}.png", "caption": captions(each)[0]}))
    file.write_text("\n".join(lines))
