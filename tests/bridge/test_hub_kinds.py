"""What else is published: packed models, ONNX graphs, cards with results; on a local hub."""

import shutil
from importlib.util import find_spec

import pytest

import bridge
from jaxmodels.__main__ import main
from jaxmodels.errors import UNVERIFIED, Problem
from jaxmodels.runtime.manifest import MANIFEST, damage, digests
from tests.bridge.helpers import flip, write_run
from tests.bridge.hub_server import logged_in

ADDRESS = "hf://someone/model"


@pytest.fixture
def server(monkeypatch):
    with logged_in(monkeypatch) as found:
        yield found


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    """A folder of each kind."""
    path = tmp_path_factory.mktemp("kinds")
    write_run(path / "language", {1: None})
    write_run(path / "pairs", {1: None}, spec="bitgen:smallest", vocab=True)
    bridge.convert(path / "pairs", path / "packed", to="packed", verify="digest")
    if find_spec("onnx") and find_spec("onnxruntime"):
        bridge.convert(path / "language", path / "onnx", to="onnx", verify="digest")
        bridge.convert(path / "language", path / "onnx8", to="onnx", dtype="int8", verify="digest")
    return path


def as_published(server, folder):
    """The repository as git or the hub's own client gives it, in a folder."""
    folder.mkdir()
    for name, content in server.repositories["someone/model"]["main"].items():
        if not name.startswith("."):
            (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("kind", ["packed", "onnx", "onnx8"])
def test_a_folder_of_any_kind_comes_back_the_same(server, kinds, tmp_path, capsys, kind):
    if kind != "packed":
        pytest.importorskip("onnxruntime")
    folder = kinds / kind
    assert main(["push", str(folder), ADDRESS]) == 0
    assert main(["pull", ADDRESS, str(tmp_path / "new")]) == 0
    shown = capsys.readouterr()
    assert "left out" not in shown.err
    assert f": {'safetensors' if kind == 'packed' else 'onnx'}, " in shown.out
    assert digests(tmp_path / "new") == digests(folder)
    assert damage(as_published(server, tmp_path / "clone")) == []


def test_graphs_are_verified_and_damaged_ones_not_published(server, kinds, tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    assert main(["verify", str(kinds / "onnx")]) == 0
    assert "checked by their digests" in "".join(capsys.readouterr())
    broken = shutil.copytree(kinds / "onnx", tmp_path / "broken")
    flip(broken / "weights.bin")
    assert main(["verify", str(broken)]) == UNVERIFIED
    with pytest.raises(Problem, match="manifest promises"):
        bridge.push(broken, ADDRESS)
    assert server.repositories == {}


@pytest.mark.parametrize("edited", ["by hand", "with a table", "both"])
def test_a_published_card_is_sealed_as_it_is(server, kinds, tmp_path, edited):
    """Whoever clones the repository finds every digest right; nothing changes here."""
    folder = shutil.copytree(kinds / "packed", tmp_path / "model")
    table = None
    if edited != "by hand":
        table = tmp_path / "table.md"
        table.write_text("| colour | 91.0% |\n", encoding="utf-8")
    if edited != "with a table":
        card = folder / "README.md"
        card.write_text(card.read_text() + "\nMine: naïve.\n", encoding="utf-8")
    before = digests(folder), (folder / MANIFEST).read_bytes()
    bridge.push(folder, ADDRESS, table=table)
    assert (digests(folder), (folder / MANIFEST).read_bytes()) == before
    clone = as_published(server, tmp_path / "clone")
    assert damage(clone) == []
    card = (clone / "README.md").read_text()
    assert ("91.0%" in card, "Mine: naïve." in card) == (
        table is not None,
        edited != "with a table",
    )
    assert bridge.pull(ADDRESS, tmp_path / "new").digests_ok
    for name in digests(folder).keys() - {"README.md"}:
        assert (clone / name).read_bytes() == (folder / name).read_bytes()
