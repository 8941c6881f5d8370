"""Mixtures of texts: parsing the spec, the order of rows, exact resumption."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.captions.opening import has_captions
from data_pipelines.errors import DataProblem
from data_pipelines.mixture import MixtureDataset
from data_pipelines.mixture_spec import parse_mixture
from data_pipelines.pipelines import open_data
from data_pipelines.prepare import prepare
from data_pipelines.sources import open_text
from data_pipelines.streamed_dataset import StreamedDataset
from data_pipelines.words import build_words
from tests.data_pipelines import tfds_on_disk

SIZES = {"context": 8, "batch": 8, "seed": 3, "valid_fraction": 0.2}
# Each text has letters of its own, so that a row tells its source.
TEXTS = {"low": "abcdefgh " * 60, "high": "ABCDEFGH " * 40, "digits": "0123456789 " * 50}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixture")
    for name, text in TEXTS.items():
        (folder / f"{name}.txt").write_text(text)
    (folder / "a,b").mkdir()
    (folder / "a,b" / "low.txt").write_text(TEXTS["low"])
    tfds_on_disk.write(folder / "tfds", [f"?!{'.' * (i % 5)}" for i in range(60)])
    return folder


@pytest.fixture(autouse=True)
def here(root, monkeypatch):
    monkeypatch.chdir(root)
    monkeypatch.setenv("TFDS_DATA_DIR", str(root / "tfds"))


def opened(spec, folder, **changes):
    data = open_data(spec, folder=folder, **(SIZES | changes))
    assert isinstance(data, MixtureDataset)
    return data


@pytest.fixture(scope="module")
def stored(root):
    """Three texts in files."""
    spec = f"mix:3*text:{root}/low.txt,1*text:{root}/high.txt,4*text:{root}/digits.txt"
    return opened(spec, root / "stored")


@pytest.fixture(scope="module")
def streamed(root):
    """Two texts, of which one is tokenised meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFDS_DATA_DIR", str(root / "tfds"))
        return opened(f"mix:1*text:{root}/low.txt,1*tfds:tiny_texts", root / "streamed")


@pytest.fixture(params=["stored", "streamed"])
def mixture(request):
    return request.getfixturevalue(request.param)


def kinds(data, batch):
    """Of each row, the source that its letters tell."""
    alphabets = [set("abcdefgh"), set("ABCDEFGH"), set("0123456789"), set("?!.")]
    found = []
    for row in batch["tokens"]:
        letters = set(data.tokenizer.decode(row)) - {" ", "\n"}
        found += [next(i for i, known in enumerate(alphabets) if letters <= known)]
    return np.array(found)


def same(one, two):
    return one.keys() == two.keys() and all((one[name] == two[name]).all() for name in one)


@pytest.mark.parametrize(
    ("spec", "sources", "shares"),
    [
        ("mix:3*pydoc,1*text:a,b/low.txt", ("pydoc", "text:a,b/low.txt"), (0.75, 0.25)),
        ("mix:2*text:a/*.txt, .5*jsonl:b#c", ("text:a/*.txt", "jsonl:b#c"), (0.8, 0.2)),
        ("mix:1e1*pydoc,1E1*pydoc", ("pydoc", "pydoc"), (0.5, 0.5)),
        ("mix:7*pydoc", ("pydoc",), (1.0,)),
    ],
)
def test_a_spec(spec, sources, shares):
    assert parse_mixture(spec) == (sources, shares)


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("mix:", "'' is not WEIGHT*SPEC"),
        ("mix:pydoc,pydoc", "'pydoc,pydoc' is not WEIGHT*SPEC"),
        ("mix:1*pydoc,pydoc", "no weight before pydoc"),
        ("mix:1*pydoc,text:low.txt", "no weight before text:low.txt"),
        ("mix:1*pydoc,2*", "'2*' is not WEIGHT*SPEC"),
        ("mix:0*pydoc,1*pydoc", "positive number, not 0"),
        ("mix:1*pydoc,-1*pydoc", "positive number, not -1"),
        ("mix:1*pydoc,nan*pydoc", "positive number, not nan"),
        ("mix:inf*pydoc,1*pydoc", "positive number, not inf"),
        ("mix:1e999*pydoc,1*pydoc", "positive number, not 1e999"),
        ("mix:1e308*pydoc,1e308*pydoc", "too far apart"),
        ("mix:1e300*pydoc,1e-300*pydoc", "too far apart"),
        ("mix:1*mix:1*pydoc,1*pydoc", "cannot be part of another"),
        ("mix:1*shapes,1*pydoc", "images with captions cannot be mixed"),
    ],
)
def test_what_is_no_mixture(tmp_path, spec, why):
    with pytest.raises(DataProblem, match="not a mixture") as caught:
        open_data(spec, folder=tmp_path, **SIZES)
    assert why in caught.value.why
    assert caught.value.exit_code == 2


def test_a_source_that_is_unknown_or_too_short_is_named(tmp_path, root):
    with pytest.raises(DataProblem, match="unknown data: 'txt:low'"):
        open_data("mix:1*pydoc,1*txt:low", folder=tmp_path / "a", **SIZES)
    (root / "short.txt").write_text("abc")
    with pytest.raises(DataProblem, match="too short for a context of 8") as caught:
        open_data("mix:1*text:low.txt,1*text:short.txt", folder=tmp_path / "b", **SIZES)
    assert caught.value.where == "text:short.txt"


def test_other_verbs_say_what_a_mixture_is_for():
    assert not has_captions("mix:1*pydoc,1*pydoc")
    with pytest.raises(DataProblem, match="mixture can only be trained on"):
        open_text("mix:1*pydoc,1*pydoc")


def mixed(shares, batch, seed):
    return MixtureDataset(
        spec="", tokenizer=None, sources=(), shares=shares,
        context=8, batch=batch, seed=seed, valid_fraction=0.0,
    )  # fmt: skip


@given(
    weights=st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=6),
    batch=st.integers(1, 40),
    seed=st.integers(0, 2**31 - 1),
    number=st.integers(0, 2**40),
)
def test_every_batch_has_the_shares_of_its_rows(weights, batch, seed, number):
    shares = tuple(weight / sum(weights) for weight in weights)
    data = mixed(shares, batch, seed)
    drawn = data.sources_of(number)
    assert len(drawn) == batch
    counts = np.bincount(drawn, minlength=len(shares))
    assert (np.abs(counts - np.array(shares) * batch) < 1 + 1e-9).all()
    assert (drawn == data.sources_of(number)).all()


def test_the_shares_are_exact_in_expectation():
    shares = (0.003, 0.35, 0.647)
    data = mixed(shares, 8, 5)
    drawn = np.stack([data.sources_of(i) for i in range(4_000)])
    found = np.bincount(drawn.ravel(), minlength=3) / drawn.size
    # A batch's count is one of two neighbours: its standard deviation is at most 1/2.
    assert np.abs(found - shares).max() < 5 * 0.5 / 8 / np.sqrt(len(drawn))
    # No place in a batch is any source's own.
    by_place = (drawn == 1).mean(axis=0)
    assert np.abs(by_place - 0.35).max() < 5 * 0.5 / np.sqrt(len(drawn))


def test_rows_come_from_the_sources_that_are_drawn(mixture):
    batches = mixture.train()
    names = [0, 1, 2] if mixture.spec.count("*") == 3 else [0, 3]
    for i in range(20):
        found = kinds(mixture, next(batches))
        assert found.tolist() == [names[source] for source in mixture.sources_of(i)]
    batches.close()


def test_an_epoch_of_a_source_takes_each_window_once(stored):
    source = stored.sources[1]  # "high": one row of eight
    windows = source.train_tokens - stored.context
    batches = stored.train()
    seen = []
    while len(seen) < windows:
        batch = next(batches)
        seen += batch["tokens"][kinds(stored, batch) == 1].tolist()
    batches.close()
    every = np.lib.stride_tricks.sliding_window_view(source.tokens, stored.context + 1)
    assert sorted(seen[:windows]) == sorted(every[:windows].tolist())


@pytest.mark.slow
@settings(max_examples=6)
@given(
    done=st.integers(0, 40),
    rows=st.sets(st.integers(0, 7), min_size=1, max_size=8).map(sorted),
    moves=st.lists(st.integers(0, 12), max_size=2),
)
@pytest.mark.parametrize("which", ["stored", "streamed"])
def test_going_on_is_exact_whichever_rows_are_taken(request, which, done, rows, moves):
    data = request.getfixturevalue(which)
    whole = data.train()
    for _ in range(done):
        next(whole)
    state = json.loads(json.dumps(whole.get_state()))
    following = [next(whole) for _ in range(4)]
    whole.close()
    again = data.train(np.array(rows))
    for count in moves:  # whatever was read, and is being read ahead, before
        for _ in range(count):
            next(again)
    again.set_state(state)
    assert again.get_state() == state
    for batch in following:
        assert same(next(again), {name: array[rows] for name, array in batch.items()})
    again.close()


def test_another_seed_is_another_order(root, stored, tmp_path):
    other = opened(stored.spec, root / "stored", seed=4)
    assert not (next(other.train())["tokens"] == next(stored.train())["tokens"]).all()
    assert other.identity != stored.identity


def test_one_vocabulary_for_all(mixture):
    known = "aA0 " if len(mixture.sources) == 3 else "a?!. "
    assert not mixture.tokenizer.unknown(known)
    assert mixture.vocab_size == mixture.vocab_needed
    assert {source.tokenizer.digest for source in mixture.sources} == {mixture.tokenizer.digest}
    assert len(mixture.sources) == 3 or isinstance(mixture.sources[1], StreamedDataset)


def test_min_freq_counts_in_all_texts(root, tmp_path):
    (root / "once.txt").write_text("q" + TEXTS["low"])
    spec = "mix:1*text:once.txt,1*text:once.txt"
    assert "q" in opened(spec, tmp_path / "a", min_freq=2).tokenizer.chars
    assert "q" not in opened(spec, tmp_path / "b", min_freq=3).tokenizer.chars
    assert opened(spec, tmp_path / "c", tokenizer="bare-chars").tokenizer.specials == ()


def test_segments(mixture, tmp_path):
    words = build_words(["Aa bB"], 1)
    data = opened(mixture.spec, tmp_path, tokenizer=words, segments=True, context=4)
    assert next(data.train()).keys() == data.valid()[0].keys() == {"tokens", "segments"}


def test_a_prepared_folder_gives_its_tokeniser(root, tmp_path):
    prepare(f"text:{root}/low.txt", tmp_path / "low")
    data = opened(f"mix:1*bin:{tmp_path}/low,1*text:{root}/high.txt", tmp_path / "a")
    assert not set("ABC") & set(data.tokenizer.chars)
    prepare(f"text:{root}/high.txt", tmp_path / "high")
    with pytest.raises(DataProblem, match="different vocabularies") as caught:
        opened(f"mix:1*bin:{tmp_path}/low,1*bin:{tmp_path}/high", tmp_path / "b")
    assert caught.value.exit_code == 5


def test_raw_token_files(root, tmp_path):
    for name, first in (("a", 0), ("b", 50)):
        (tmp_path / name).write_bytes(np.arange(first, first + 50, dtype="<u2").tobytes())
    data = opened(f"mix:1*bin:{tmp_path}/a,1*bin:{tmp_path}/b", tmp_path / "data")
    assert (data.tokenizer, data.vocab_needed) == (None, 100)
    with pytest.raises(DataProblem, match="vocabulary of a raw token file is unknown"):
        opened(f"mix:1*bin:{tmp_path}/a,1*text:{root}/low.txt", tmp_path / "data2")


def test_what_changes_the_identity(root, stored, tmp_path):
    assert opened(stored.spec, root / "stored").identity == stored.identity
    same_shares = stored.spec.replace("3*", "6*").replace("1*", "2*").replace("4*", "8*")
    assert opened(same_shares, root / "stored").identity == stored.identity
    other = opened(stored.spec.replace("3*", "2*"), root / "stored")
    assert other.identity != stored.identity
    json.dumps(stored.identity)


def test_each_source_has_held_out_batches_of_its_own(mixture):
    names = [0, 1, 2] if len(mixture.sources) == 3 else [0, 3]
    for most in (None, 2, 8):
        held_out = mixture.valid(most)
        assert tuple(part.share for part in held_out.parts) == mixture.shares
        assert [part.name for part in held_out.parts] == [x.spec for x in mixture.sources]
        for kind, part in zip(names, held_out.parts, strict=True):
            for batch in part.batches:
                assert set(kinds(mixture, batch)) == {kind}
            if most:
                assert len(part.batches) <= max(1, round(most * part.share))
        assert len(held_out) == len(list(held_out)) == sum(len(p.batches) for p in held_out.parts)
        assert same(list(held_out)[-1], held_out[len(held_out) - 1])


def test_sources_of_one_spec_have_names_of_their_own(root, tmp_path):
    data = opened("mix:1*text:low.txt,2*text:low.txt", tmp_path / "data")
    assert [part.name for part in data.valid(2).parts] == ["text:low.txt", "text:low.txt (2)"]


def test_held_out_windows_of_a_file_are_none_that_is_trained_on(stored):
    for source, part in zip(stored.sources, stored.valid().parts, strict=True):
        first = source.valid_range[0]
        every = np.lib.stride_tricks.sliding_window_view(source.tokens[first:], 9)
        for row in np.concatenate([batch["tokens"] for batch in part.batches]):
            assert (every == row).all(axis=1).any()


def test_nothing_held_out(root, tmp_path):
    data = opened("mix:1*text:low.txt,1*text:high.txt", tmp_path / "data", valid_fraction=0.0)
    assert len(data.valid()) == len(data.valid(3)) == 0
    assert list(data.valid()) == []


def test_what_is_said_of_it(stored, root):
    assert stored.notes[0] == f"37.50% of rows from text:{root}/low.txt: 432 tokens"
    assert stored.train_tokens == sum(source.train_tokens for source in stored.sources)
    assert Path(root / "stored" / "3" / "tokens.bin").is_file()
