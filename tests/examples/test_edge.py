"""`examples/edge` where there is neither JAX nor PyTorch: only what its first line installs."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import bridge
from bridge.formats.tokenizer import read_tokenizer
from data_pipelines.captions.tokens import encode_caption
from jaxmodels.bitgen.record import Item, Record, to_json
from jaxmodels.commands.eval_images import read_images
from tests.bridge.helpers import write_run

pytest.importorskip("onnxruntime")
EDGE = Path(__file__).parents[2] / "examples" / "edge" / "edge.py"
# What pip installs with numpy, onnxruntime, pillow and tokenizers.
INSTALLED = ("numpy", "onnxruntime", "PIL", "tokenizers", "flatbuffers", "packaging", "google")
CODE = """
import importlib.util, json, runpy, sys
for name in ("jax", "torch", "transformers", "jaxmodels", "bridge"):
    assert importlib.util.find_spec(name) is None, name
edge, calls = sys.argv[1], json.loads(sys.argv[2])
for words in calls:
    sys.argv = [edge, *words]
    try:
        runpy.run_path(edge, run_name="__main__")
    except SystemExit as error:
        print("exit", error.code)
    print("---")
"""


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """A folder with these packages and no other."""
    folder = tmp_path_factory.mktemp("packages")
    for name in INSTALLED:
        spec = find_spec(name)
        assert spec is not None
        place = Path(next(iter(spec.submodule_search_locations)))
        (folder / name).symlink_to(place)
    for libs in ("numpy.libs", "pillow.libs"):
        if (place := Path(np.__file__).parents[1] / libs).exists():
            (folder / libs).symlink_to(place)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(the model's folder, its twin, a folder of pictures)."""
    path = tmp_path_factory.mktemp("edge")
    write_run(path / "run", {1: None}, spec="bitgen:smallest")
    bridge.convert(path / "run", path / "model", to="onnx")
    (path / "pictures").mkdir()
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (60, 90, 3), np.uint8)
        Image.fromarray(pixels).save(path / "pictures" / f"{i}.png")
    return path / "model", bridge.torch.load(path / "run"), path / "pictures"


@pytest.mark.slow
def test_captions_similarities_search_and_memory(made, packages):
    folder, twin, pictures = made
    files = sorted(pictures.iterdir())
    with torch.no_grad():
        seen = torch.from_numpy(read_images(tuple(files), 56)).permute(0, 3, 1, 2).float() / 255
        ids = torch.from_numpy(encode_caption("a cat", read_tokenizer(folder)))[None].long()
        images, text = twin.get_image_features(seen).numpy(), twin.get_text_features(ids).numpy()
    item = Item(1, "image", "a cat", "cats.txt:7", "2026-11-30", images[0], text[0], text[0])
    (folder / "memory.json").write_bytes(to_json(Record((item,), 2)))
    picture = str(files[0])
    calls = [
        ["caption", picture],
        ["similarity", picture, "a cat"],
        ["search", str(pictures), "a cat"],
        ["recall", picture],
        ["recall", "a cat"],
        ["recall", "an old man, ш"],
        ["caption", str(folder / "config.json")],
        ["search", str(folder), "a cat"],
        ["similarity", picture],
        ["search", str(pictures), "шар"],
    ]
    given = json.dumps([[str(folder), *words] for words in calls])
    done = subprocess.run(
        [sys.executable, "-S", "-P", "-c", CODE, str(EDGE), given],
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(packages), "PYTHONUTF8": "1"},
    )
    assert done.returncode == 0, done.stderr
    caption, similarity, found, by_image, by_text, unknown, *bad = done.stdout.split("---\n")[:-1]
    assert caption.strip()
    scores = images @ text[0]
    # Ours within what a rounded activation moves: the exact comparison is `--verify logits`.
    assert abs(float(similarity) - scores[0]) <= 0.02
    ranked = [line.split("  ") for line in found.splitlines()]
    assert [abs(float(score)) <= 1 for score, _ in ranked] == [True] * 3
    assert sorted(name for _, name in ranked) == [str(file) for file in files]
    assert [float(score) for score, _ in ranked] == sorted((float(s) for s, _ in ranked))[::-1]
    assert by_image == by_text == "a cat  (cats.txt:7)\n"
    assert unknown == "never written\n"
    assert done.stderr.count(" MB\n") == 6
    assert done.stderr.count(" tokens are unknown to the model\n") == 1
    assert "is not a readable image" in bad[0]
    assert "there is no image in" in bad[1]
    assert bad[2] == "exit 2\n"
    assert bad[3] == "exit error: nothing of 'шар' is in the model's vocabulary\n"


@pytest.mark.slow
def test_without_a_record_the_model_says_what_it_remembers(made, packages, tmp_path):
    folder, *_ = made
    for file in folder.iterdir():
        if file.name != "memory.json":
            (tmp_path / file.name).symlink_to(file)
    done = subprocess.run(
        [sys.executable, "-S", "-P", str(EDGE), str(tmp_path), "recall", "a cat"],
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(packages), "PYTHONUTF8": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
