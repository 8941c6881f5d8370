"""BwETAF's quickstart, as its page translates it, on a hub of this machine."""

import re
import shlex
import shutil
from contextlib import chdir

import jax.numpy as jnp
import pytest

import bridge
import jaxmodels
from jaxmodels.__main__ import main
from tests.bridge.helpers import write_run
from tests.bridge.hub_server import logged_in
from tests.docs.pages import ROOT

PAGE = (ROOT / "docs" / "from-bwetaf.md").read_text(encoding="utf-8")
NAME = "BwETAFv2-53M"


def rows() -> list[tuple[str, list[str]]]:
    """Its calls, each with the code of the right column."""
    table = PAGE.split("## Its quickstart")[1].split("## ")[0]
    cells = [line.split("|")[1:3] for line in table.splitlines() if line.startswith("| `")]
    return [(left.strip(" `"), re.findall(r"`([^`]+)`", right)) for left, right in cells]


@pytest.fixture
def hub(monkeypatch):
    with logged_in(monkeypatch) as found:
        yield found


def test_the_quickstart(hub, tmp_path, capsys):
    run = write_run(tmp_path / "run", {1: 1.0}, spec="bwetaf:tiny")
    bridge.convert(run, tmp_path / "folder", to="bwetaf", verify="none")
    bridge.push(tmp_path / "folder", f"hf://WICKED4950/{NAME}")
    shutil.copytree(tmp_path / "folder", tmp_path / "path" / "to" / "model")
    names = {"bridge": bridge, "jaxmodels": jaxmodels}
    asked = [left for left, _ in rows()]
    for call in ("SetUpAPI", "load_hf", "load_model", "save_model", "trainable_variables",
                 "model_struct"):  # fmt: skip
        assert any(call in left for left in asked)
    with chdir(tmp_path):
        for _, (first, *more) in rows():
            if first.startswith("jaxmodels "):
                for command in (first, *more):
                    assert main([*shlex.split(command)[1:]]) == 0
            else:
                exec(first, names)
        assert "The meaning of life is" in capsys.readouterr().out
        saved = bridge.load("path/to/save")
    tokens = jnp.zeros((1, 4), jnp.int32)
    assert (saved(tokens)[0] == names["model"](tokens)[0]).all()
    assert names["params"]["embed/embedding"].shape == (64, 32)
    assert names["structure"] == saved.config
