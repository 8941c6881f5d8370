"""nanoGPT's meta.pkl: as its prepare.py writes it and as its sample.py reads what we write."""

import pickle

import numpy as np
import pytest
import torch
from tokenizers import AddedToken

import bridge
from bridge.formats.nanogpt_meta import places
from bridge.formats.tokenizer import given_tokenizer
from data_pipelines.characters import CharTokenizer
from jaxmodels.errors import UNSAFE, Problem
from tests.bridge.test_tokenizer_files import bare
from tests.bridge.tokenizer_folders import save_model

CHARS = sorted(set("\n !,.hello world\u00e4"))
META = {
    "vocab_size": len(CHARS),
    "itos": dict(enumerate(CHARS)),
    "stoi": {char: i for i, char in enumerate(CHARS)},
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """What torch.save holds in nanoGPT's out_dir."""
    folder = tmp_path_factory.mktemp("nanogpt")
    save_model(folder / "hf", len(CHARS))
    bridge.convert(folder / "hf", folder / "out", to="nanogpt", verify="none")
    return torch.load(folder / "out" / "ckpt.pt", weights_only=True)


@pytest.fixture
def folder(written, tmp_path):
    """nanoGPT's out_dir, of a model of the dataset "play"."""
    (tmp_path / "out").mkdir()
    torch.save(written | {"config": {"dataset": "play"}}, tmp_path / "out" / "ckpt.pt")
    return tmp_path / "out"


def put(path, value=META):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(value))


@pytest.mark.parametrize("place", ["out/meta.pkl", "data/play/meta.pkl"])
def test_it_is_read_where_it_lies(place, folder, tmp_path):
    assert bridge.open_checkpoint(folder).tokenizer is None
    put(tmp_path / place)
    for path in (folder, folder / "ckpt.pt"):
        tokenizer = bridge.open_checkpoint(path).tokenizer
        assert tokenizer == CharTokenizer(tuple(CHARS), specials=())
    assert tokenizer.encode("hello").tolist() == [META["stoi"][char] for char in "hello"]


def test_a_dataset_does_not_lead_elsewhere(tmp_path):
    assert len(list(places(tmp_path, "play"))) == 3
    for dataset in ("../../secret", "/secret", "..", ".", "", 3, None, "a\0b"):
        assert list(places(tmp_path, dataset)) == [tmp_path / "meta.pkl"]


@pytest.mark.parametrize("specials", [(), ("<PAD>", "<UNK>")])
def test_sample_py_finds_what_is_written(specials, tmp_path):
    tokenizer = CharTokenizer(tuple(CHARS), specials=specials)
    source = save_model(tmp_path / "hf", tokenizer.vocab_size)
    tokenizer.save(source)
    report = bridge.convert(source, tmp_path / "out", to="nanogpt", verify="roundtrip")
    # What nanoGPT's sample.py does.
    value = torch.load(tmp_path / "out" / "ckpt.pt", weights_only=True)
    dataset = value["config"]["dataset"]
    meta = pickle.loads((tmp_path / "out" / "meta.pkl").read_bytes())
    assert any(f"data/{dataset}: copy it there" in note for note in report.notes)
    assert meta["vocab_size"] == tokenizer.vocab_size
    ids = [meta["stoi"][char] for char in "hello world"]
    assert ids == tokenizer.encode("hello world").tolist()
    assert "".join(meta["itos"][i] for i in ids) == "hello world"
    (tmp_path / "out" / "characters.json").unlink()
    (tmp_path / "out" / "manifest.json").unlink()
    assert bridge.open_checkpoint(tmp_path / "out").tokenizer == tokenizer


def test_it_may_be_given(folder, tmp_path):
    put(tmp_path / "meta.pkl")
    source = given_tokenizer(bridge.open_checkpoint(folder), tmp_path / "meta.pkl")
    assert source.tokenizer == CharTokenizer(tuple(CHARS), specials=())


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ({"stoi": {"ab": 0}, "itos": {0: "ab"}}, "not single characters"),
        ({"stoi": {"a": 1}, "itos": {0: "a"}}, "stoi and itos do not number"),
        ({"vocab_size": 3}, "stoi and itos do not number"),
        ([1, 2], "stoi and itos do not number"),
        ({"stoi": {}, "itos": {}}, "not single characters"),
    ],
)
def test_what_is_not_read_is_said(value, why, folder):
    put(folder / "meta.pkl", value)
    source = bridge.open_checkpoint(folder)
    assert source.tokenizer is None
    assert any(why in note for note in source.notes)


def test_one_that_asks_to_run_code_is_refused(folder):
    put(folder / "meta.pkl", {"stoi": np.random.default_rng})
    with pytest.raises(Problem) as caught:
        bridge.open_checkpoint(folder)
    assert caught.value.exit_code == UNSAFE


@pytest.mark.slow
def test_what_sample_py_cannot_read_is_said(tmp_path):
    bare(tmp_path, [AddedToken("<a>")])
    report = bridge.convert(save_model(tmp_path, 281), tmp_path / "out", to="nanogpt")
    assert any("GPT-2's tokens only" in note for note in report.notes)
    assert not (tmp_path / "out" / "meta.pkl").exists()
