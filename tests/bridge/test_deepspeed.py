"""DeepSpeed's folders: the step that `latest` names; weights in pieces are refused."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import bridge
from jaxmodels.errors import CORRUPT, MISMATCH, Problem

pytestmark = pytest.mark.usefixtures("readers_here")
WHOLE, CUT = "mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_model_states.pt"
OPTIMIZER = "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"


@pytest.fixture(scope="module")
def module():
    config = GPT2Config(vocab_size=23, n_positions=8, n_embd=12, n_layer=2, n_head=3)
    return GPT2LMHeadModel(config).eval()


def step(folder, module, dtype=torch.float32, names=(WHOLE,), value=None):
    """`global_stepN` as DeepSpeed writes it."""
    folder.mkdir(parents=True)
    state = {f"module.{name}": x.to(dtype) for name, x in module.state_dict().items()}
    if value is not None:
        state["module.transformer.ln_f.bias"] = torch.full((12,), value)
    saved = {"module": state, "ds_version": "0.14.0", "mp_world_size": 1, "global_steps": 1,
             "optimizer": None, "lr_scheduler": {"last_lr": [1e-3]}}  # fmt: skip
    for name in names:
        torch.save(saved, folder / name)
    torch.save({"optimizer_state_dict": {"zero_stage": 1}}, folder / OPTIMIZER)


def refused(path, exit_code):
    with pytest.raises(Problem) as caught:
        bridge.open_checkpoint(path, config={"heads": 3, "gelu": "tanh"})
    assert caught.value.exit_code == exit_code
    return "\n".join([caught.value.what, caught.value.why, caught.value.fix])


def taken(path):
    source = bridge.open_checkpoint(path, config={"heads": 3, "gelu": "tanh"})
    return float(source.tensors["norm/bias"].read()[0]), source.notes


def test_the_step_that_latest_names(tmp_path, module):
    step(tmp_path / "global_step9", module, value=9.0)
    step(tmp_path / "global_step10", module, value=10.0)
    assert taken(tmp_path)[0] == 10
    (tmp_path / "latest").write_text("global_step9")
    value, notes = taken(tmp_path)
    assert value == 9
    assert "using global_step9, one of 2" in notes
    assert taken(tmp_path / "global_step10")[0] == 10
    for said in ("../global_step9", "global_step11", "\x00", ""):
        (tmp_path / "latest").write_text(said)
        assert "give one of the steps: global_step9, global_step10" in refused(tmp_path, CORRUPT)


def test_within_a_trainers_folder(tmp_path, module):
    module.config.save_pretrained(tmp_path)
    step(tmp_path / "global_step5", module, torch.bfloat16)
    (tmp_path / "latest").write_text("global_step5\n")
    (tmp_path / "zero_to_fp32.py").write_text("raise SystemExit('executed')")
    source = bridge.open_checkpoint(tmp_path)
    assert (source.config.heads, source.config.gelu) == (3, "tanh")
    assert any("in float32 with its optimiser" in note for note in source.notes)
    # What the Trainer wrote beside it is what transformers reads.
    module.save_pretrained(tmp_path)
    assert bridge.open_checkpoint(tmp_path).tensors["norm/bias"].dtype == "float32"


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ([CUT, CUT.replace("rank_0_", "rank_1_")], "zero_to_fp32.py . OUT"),
        ([WHOLE, WHOLE.replace("00", "01")], "several ranks"),
        (["layer_00-model_00-model_states.pt", WHOLE], "layers, has a file"),
    ],
)
def test_weights_in_pieces(tmp_path, module, names, says):
    step(tmp_path / "global_step5", module, names=names)
    (tmp_path / "latest").write_text("global_step5")
    for path in (tmp_path, tmp_path / "global_step5"):
        assert says in refused(path, MISMATCH)
    module.config.save_pretrained(tmp_path)
    assert says in refused(tmp_path, MISMATCH)
