"""Vision models as a user runs them, from training to captions."""

import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import bridge
from benchmarks.scenes import measured, things
from jaxmodels.__main__ import main
from jaxmodels.errors import CORRUPT, DONE, EXISTS, USAGE
from jaxmodels.runtime.metrics import read
from jaxmodels.runtime.planning.plan import Workload
from jaxmodels.runtime.sharding import head_counts
from tests.jaxmodels import scenes
from tests.jaxmodels.helpers import losses, params, same, train

pytestmark = pytest.mark.slow

TOWER = Path(__file__).parents[1] / "golden" / "dinov2" / "hf"
CARD = {"contrastive_loss", "acc_t2i", "acc_i2t", "itm_loss", "itm_acc", "text_loss", "perplexity"}
CARD |= {"token_accuracy", "memory_kl_loss", "memory_utilization", "memory_quality", "temperature"}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    return scenes.folder(tmp_path_factory.mktemp("scenes") / "scenes")


@pytest.fixture(scope="module")
def bitgen(data, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("bitgen") / "run"
    assert scenes.train("bitgen", data, run, "--sample-every", "2") == DONE
    return run


@pytest.fixture(scope="module")
def stage1(data, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("stage1") / "run"
    assert scenes.train("bitgen_stage1", data, run) == DONE
    return run


@pytest.mark.slow
def test_a_run_begins_with_a_published_tower_which_may_be_frozen(data, tmp_path):
    run, sizes = tmp_path / "run", scenes.SIZES["bitgen"]
    words = ["train", "bitgen:tiny", "--data", data, "--out", str(run), *scenes.FLAGS]
    words += sizes[: sizes.index("--model.dinov2.dim")]  # the tower brings its own
    assert main([*words, "--init", str(TOWER), "--optim.lr-scale", "vision/*", "0"]) == DONE
    tower = bridge.open_checkpoint(TOWER)
    begun = {f"vision/{path}": tensor.read() for path, tensor in tower.tensors.items()}
    ended = params(run, 4)
    assert same({path: ended[path] for path in begun}, begun)
    shutil.rmtree(run / "checkpoints" / "4")
    assert main(["train", "--out", str(run)]) == DONE  # it goes on from 2
    config = bridge.load(run).config
    assert config.dinov2 == tower.config
    assert config.vocab == len(ended["embed/embedding"]) < 64  # of the words in the captions


@pytest.mark.slow
def test_a_run_of_an_earlier_version_goes_on_as_it_began(data, tmp_path):
    """It said nothing of Muon and of weights; what the preset says of them now is not for it."""
    run = tmp_path / "run"
    flags = ["--optim.muon-rms", "0.2"]
    flags += ["--model.weights", "1", "0.5", "0.5", "0.1"]
    assert scenes.train("bitgen", data, run, *flags) == DONE
    config = json.loads((run / "config.json").read_text())
    del config["model"]["weights"], config["recipe"]["optim"]["muon_rms"]
    (run / "config.json").write_text(json.dumps(config))
    assert main(["train", "--out", str(run), "--steps", "5"]) == DONE
    assert bridge.load(run).config.weights == (1.0, 0.5, 0.5, 0.1)


def answer(capsys, *words: str) -> dict:
    capsys.readouterr()
    assert main([*words, "--json"]) == DONE
    return json.loads(capsys.readouterr().out)


def image(data: str, number: int = 0) -> str:
    return f"{data.removeprefix('images:')}/{number}.png"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bitgen", "stage1"])
def test_a_run_tells_the_cards_metrics_and_its_speed_in_images(name, request):
    run = request.getfixturevalue(name)
    records = read(run / "metrics.jsonl")
    assert [record["step"] for record in records] == [1, 2, 3, 4]
    assert all(
        record.keys() >= CARD | {"images_per_second", "tokens_per_second"} for record in records
    )
    assert all(f"valid_{metric}" in records[-1] for metric in CARD)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["images_per_second"] > 0
    assert (run / "metrics.png").is_file()


@pytest.mark.slow
def test_what_a_run_learned_of_scenes_is_measured(bitgen, data):
    learned = measured(bitgen, data, asked=8, valid_fraction=0.3)
    assert len(learned) == 18  # retrieval, captions, memory by text and image, packed
    assert all(0 <= share <= 1 for share in learned.values())
    assert learned["captions recalled by their images"] > 0


def test_a_caption_names_things_where_colour_and_shape_stand_together():
    said = "a small red circle is left of a large green cross"
    assert things(said) == {("red", "circle"), ("green", "cross")}
    assert things("circle red green a cross") == set()


@pytest.mark.slow
def test_samples_are_captions_of_held_out_images(bitgen):
    assert {path.name for path in (bitgen / "samples").iterdir()} == {
        f"{step}.{kind}" for step in (2, 4) for kind in ("txt", "png")
    }
    assert (bitgen / "samples" / "4.png").read_bytes().startswith(b"\x89PNG")
    lines = (bitgen / "samples" / "4.txt").read_text().splitlines()
    assert len(lines) == 8
    assert all(" (a" in line or " (the" in line for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bitgen", "stage1"])
def test_resuming_is_exact_with_queue_and_memory(name, request, tmp_path):
    whole = request.getfixturevalue(name)
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    shutil.rmtree(run / "checkpoints" / "4")
    assert main(["train", "--out", str(run)]) == DONE
    assert losses(run) == losses(whole)
    held = params(whole, 4)
    assert same(params(run, 4), held)
    state = bridge.open_checkpoint(whole / "checkpoints" / "4").state
    assert {path.split("/")[-1] for path in state} & {"ids", "text_queue"}  # it is among them
    assert state <= held.keys()


def test_text_and_images_are_not_mixed_up(data, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["train", "bitgen:tiny", "--data", "pydoc", "--out", str(run)]) == USAGE
    assert (
        "bitgen learns from images with captions, and the data is text" in capsys.readouterr().err
    )
    assert train(run, "--data", data) == USAGE
    assert "charlm learns from text, and the data is images" in capsys.readouterr().err
    assert not (run / "data").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bitgen", "stage1"])
def test_eval_tells_losses_and_recall(name, request, capsys, tmp_path):
    run = request.getfixturevalue(name)
    found = answer(capsys, "eval", str(run), "--batch", "8")
    assert found.keys() >= CARD | {"loss", "images", "captions"}
    assert (found["images"], found["captions"]) == (12, 60)
    for way in ("t2i", "i2t"):
        recall = [found[f"{way}_recall_at_{k}"] for k in (1, 5, 10)]
        assert 0 <= recall[0] <= recall[1] <= recall[2] <= 1
    best = json.loads((run / "summary.json").read_text())["best_valid_loss"]
    assert found["loss"] == pytest.approx(best, rel=1e-4)
    few = answer(capsys, "eval", str(run), "--batch", "8", "--max-images", "5")
    if name == "bitgen":
        words = ["--batch", "8", "--max-images", "5", "--caption-metrics"]
        words += ["--table", str(tmp_path / "table.md")]
        more = answer(capsys, "eval", str(run), *words)
        assert more.keys() - few.keys() == {"bleu_4", "rouge_l", "cider"}
        assert "| CIDEr-D |" in (tmp_path / "table.md").read_text()
        assert main(["eval", str(run), *words]) == EXISTS
    assert (few["images"], few["captions"]) == (5, 25)
    assert main(["eval", str(run), "--batch", "8"]) == DONE
    assert "R@10" in capsys.readouterr().out


@pytest.mark.slow
def test_how_similar_images_and_captions_are(bitgen, data, capsys):
    words = ["eval", str(bitgen), "--image", image(data, 1), image(data, 2)]
    words += ["--caption", "a small red circle", "--caption", "a large blue square"]
    found = answer(capsys, *words)["similarities"]
    assert [(Path(row["image"]).name, row["caption"][2:7]) for row in found] == [
        ("1.png", "small"),
        ("1.png", "large"),
        ("2.png", "small"),
        ("2.png", "large"),
    ]
    assert all(-1 <= row["similarity"] <= 1 for row in found)
    assert len({row["similarity"] for row in found}) == 4
    assert main(words) == DONE
    best = max(found[:2], key=lambda row: row["similarity"])
    first = f"{best['similarity']:+.4f}  {best['image']}  {best['caption']}\n"
    assert capsys.readouterr().out.startswith(first)
    assert main(words[:4]) == USAGE
    assert "go together" in capsys.readouterr().err


@pytest.mark.slow
def test_a_caption_is_written_and_stays_the_same(bitgen, data, capsys):
    words = ("generate", str(bitgen), "--image", image(data))
    one = answer(capsys, *words)["samples"]
    assert one == answer(capsys, *words, "--seed", "1")["samples"]
    assert len(one[0]["tokens"]) <= 24
    assert main([*words]) == DONE
    assert capsys.readouterr().out == one[0]["text"] + "\n"
    hot = answer(capsys, *words, "--temperature", "5", "--num-samples", "3")["samples"]
    assert len({sample["text"] for sample in hot}) == 3


@pytest.mark.slow
def test_a_caption_is_of_its_image_and_goes_on_a_prompt(bitgen, data, capsys):
    from jaxmodels.commands.eval_images import read_images
    from jaxmodels.layers.sampling import Sampling
    from jaxmodels.runtime.training.samples import caption

    model, tokenizer = bridge.load(bitgen), bridge.open_checkpoint(bitgen).tokenizer
    files = tuple(Path(image(data, i)) for i in range(6))
    pixels = read_images(files, model.config.image_size)
    rows = caption(model, tokenizer, pixels, sampling=Sampling(1.0))
    alone = caption(model, tokenizer, pixels[:1], sampling=Sampling(1.0))
    np.testing.assert_array_equal(alone[0], rows[0])
    empty, seen = jnp.zeros((6, 16), jnp.int32), jnp.asarray(pixels, jnp.float32) / 255
    logits, _ = model.prefill(empty, 0, 24, images=seen)
    assert np.abs(np.diff(logits, axis=0)).max() > 1e-4
    text = answer(capsys, "generate", str(bitgen), "--image", str(files[0]), "--prompt", "a small")
    assert text["samples"][0]["text"].startswith(" ")
    assert len(text["samples"][0]["tokens"]) <= 22


@pytest.mark.slow
def test_what_a_model_cannot_do_is_refused(bitgen, stage1, data, tmp_path, capsys):
    for words, said in (
        (["generate", str(bitgen)], "give one with --image FILE"),
        (["generate", str(bitgen), "--image", image(data), "--prompt", "a " * 24], "no room"),
        (["generate", str(stage1), "--image", image(data)], "--caption TEXT"),
    ):
        assert main(words) == USAGE
        assert said in capsys.readouterr().err
    language = tmp_path / "language"
    assert train(language, "--steps", "1") == DONE
    for verb in (["generate"], ["eval", "--caption", "a"]):
        assert main([verb[0], str(language), "--image", image(data), *verb[1:]]) == USAGE
        assert "takes no images" in capsys.readouterr().err


@pytest.mark.slow
def test_unreadable_images_are_named(bitgen, tmp_path, capsys):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    for file in (broken, tmp_path / "missing.png"):
        assert main(["generate", str(bitgen), "--image", str(file)]) == CORRUPT
        assert file.name in capsys.readouterr().err
        assert main(["eval", str(bitgen), "--image", str(file), "--caption", "a"]) == CORRUPT
        assert file.name in capsys.readouterr().err


@pytest.mark.slow
def test_plan_knows_what_batches_hold():
    import jaxmodels

    package = jaxmodels.arch("bitgen")
    job = Workload(package, package.PRESETS["card"], package.RECIPES["card"])
    shapes = {name: (leaf.shape, leaf.dtype.name) for name, leaf in job.batch.items()}
    assert shapes == {
        "tokens": ((256, 256), "int32"),
        "mask": ((256, 256), "int32"),
        "images": ((256, 224, 224, 3), "uint8"),
        "image_id": ((256,), "int32"),
    }
    assert set(head_counts(package.PRESETS["card"])) == {4, 12}
