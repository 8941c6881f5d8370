"""What an earlier version wrote (commit 38c3d40) is read, resumed and verified by this one.

`golden/previous` holds a token folder, a run of six steps on it, and the model directory made of
the run. The losses below are those of the same run continued by that version.
"""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

import bridge
from bridge.checkpoint.loading import load_moments
from data_pipelines.pipelines import open_data
from jaxmodels.__main__ import main
from jaxmodels.runtime.paths import params_of
from tests.conftest import GOLDEN

pytestmark = pytest.mark.slow
PREVIOUS = GOLDEN / "previous"
CONTINUED = {
    7: {"loss": 4.09653377532959, "lr": 0.0014730016700923443},
    8: {
        "loss": 4.052491188049316,
        "lr": 0.0003902212774846703,
        "valid_loss": 4.173091517554389,
    },
}


def test_the_run_and_the_model_directory_are_sound(tmp_path):
    run = shutil.copytree(PREVIOUS / "run", tmp_path / "run")
    report = bridge.verify(PREVIOUS / "model", against=run)
    assert report.ok
    assert report.digests_ok
    assert bridge.verify(run).ok


def test_the_model_is_the_run_s():
    of_run, of_model = (params_of(bridge.load(PREVIOUS / name)) for name in ("run", "model"))
    assert of_run.keys() == of_model.keys()
    for path, value in of_run.items():
        np.testing.assert_array_equal(value, of_model[path])
    assert load_moments(PREVIOUS / "model").count == load_moments(PREVIOUS / "run").count == 6


def test_pytorch_opens_the_model_directory_with_the_code_that_lies_in_it(tmp_path, monkeypatch):
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path))
    module = transformers.AutoModelForCausalLM.from_pretrained(
        PREVIOUS / "model", trust_remote_code=True
    )
    tokens = np.arange(12)[None]
    ours = bridge.load(PREVIOUS / "model")(jnp.asarray(tokens))[0]
    theirs = module(torch.from_numpy(tokens)).logits
    np.testing.assert_allclose(ours, theirs.detach().numpy(), atol=1e-5)


def test_the_token_folder_opens(tmp_path):
    data = open_data(f"bin:{PREVIOUS / 'tokens'}", folder=tmp_path, context=32, batch=4)
    assert len(data.tokens) == 5999
    assert data.vocab_size == 84


def test_the_run_goes_on_as_it_would_have(tmp_path, monkeypatch, capsys):
    for name in ("run", "tokens"):
        shutil.copytree(PREVIOUS / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--out", "run", "--steps", "8"]) == 0
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    found = {row["step"]: row for row in map(json.loads, lines)}
    for step, wanted in CONTINUED.items():
        for name, value in wanted.items():
            assert found[step][name] == pytest.approx(value, rel=1e-5)
    assert bridge.verify(tmp_path / "run").ok
    optim = json.loads((tmp_path / "run" / "config.json").read_text())["recipe"]["optim"]
    assert optim["min_lr"] == 1e-5  # was called least_lr
    assert "least_lr" not in optim


def test_flags_have_their_former_names(capsys):
    for flag in ("--optim.least-lr", "--optim.least_lr", "--optim.min-lr"):
        assert main(["train", "charlm:tiny", flag, "0.25", "--print-config"]) == 0
        assert json.loads(capsys.readouterr().out)["recipe"]["optim"]["min_lr"] == 0.25
