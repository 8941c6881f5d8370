import numpy as np
import pytest

from bridge.core import table
from bridge.core.ops import OPS
from bridge.core.tensors import DTYPES, Tensor
from jaxmodels.errors import MISMATCH, Problem

ROWS = (
    ("embed/embedding", "embed.weight", "same"),
    ("blocks/{i}/kernel", "blocks.{i}.weight", "transpose"),
    ("blocks/{i}/bias", "blocks.{i}.bias", "same"),
)
OURS = {
    "embed/embedding": (5, 3),
    **{f"blocks/{i}/kernel": (3, 4) for i in range(12)},
    **{f"blocks/{i}/bias": (4,) for i in range(12)},
}
THEIRS = {
    "embed.weight": (5, 3),
    **{f"blocks.{i}.weight": (4, 3) for i in range(12)},
    **{f"blocks.{i}.bias": (4,) for i in range(12)},
}


def refusal(found, rows=ROWS, ours=OURS):
    with pytest.raises(Problem) as caught:
        table.check(table.pairs(rows, ours), ours, found, "FILE")
    assert caught.value.exit_code == MISMATCH
    return f"{caught.value.why}\n{caught.value.fix}"


def test_both_directions_agree():
    pairs = table.pairs(ROWS, OURS)
    table.check(pairs, OURS, THEIRS, "FILE")
    assert table.ours_of(ROWS, THEIRS) == OURS
    assert table.coverage(ROWS, THEIRS) == 1
    for pair in pairs:
        values = np.random.default_rng(0).random(OURS[pair.ours], np.float32)
        ours = Tensor(pair.ours, values.shape, DTYPES["F32"], lambda values=values: values)
        theirs = pair.export(ours)
        assert (theirs.name, theirs.shape) == (pair.theirs, THEIRS[pair.theirs])
        assert theirs.read().shape == theirs.shape
        back = pair.load(theirs, values.shape)
        assert (back.name, back.shape) == (pair.ours, values.shape)
        np.testing.assert_array_equal(back.read(), values)


@pytest.mark.parametrize("name", OPS)
def test_ops_are_inverse(name):
    shape = {"convolution": (2, 3, 4, 5), "counter": ()}.get(name, (3, 4))
    values = np.arange(np.prod(shape)).reshape(shape)
    back = OPS[name].inverse(OPS[name].forward(values))
    if name == "flat":  # whoever knows our shape restores it
        back = back.reshape(shape)
    np.testing.assert_array_equal(back, values)
    assert OPS[name].forward(values).shape == OPS[name].their_shape(shape)


def test_a_bias_of_another_shape_is_reported_as_it_is():
    rows = (("bias", "b", "row"),)
    assert table.ours_of(rows, {"b": (1, 1, 4)}) == {"bias": (4,)}
    assert table.ours_of(rows, {"b": (4,)}) == {"bias": (4,)}
    assert "b  is (4,), must be (1, 1, 4)" in refusal({"b": (4,)}, rows, {"bias": (4,)})


def test_missing_tensors_are_all_told():
    told = refusal({"embed.weight": (5, 3)})
    assert "missing, 24 of 25" in told
    assert "blocks.0.weight  (4, 3)" in told
    assert "and 14 more" in told


def test_unexpected_tensor_with_its_near_name():
    found = {name: shape for name, shape in THEIRS.items() if name != "embed.weight"}
    told = refusal({**found, "embed.weights": (5, 3)})
    assert "unexpected, 1 tensors" in told
    assert "embed.weights  (5, 3)  (is it embed.weight?)" in told


def test_wrong_shape_and_transpose():
    told = refusal({**THEIRS, "blocks.3.weight": (3, 4), "embed.weight": (6, 3)})
    assert "wrong shape, 2 tensors" in told
    assert "blocks.3.weight  is (3, 4), must be (4, 3); a transpose would fit" in told
    assert "embed.weight  is (6, 3), must be (5, 3)\n" in told


def test_a_path_needs_exactly_one_row():
    told = refusal(THEIRS, ours={**OURS, "extra/bias": (1,)})
    assert "extra/bias is matched by no rows" in told
    told = refusal(THEIRS, rows=(*ROWS, ("blocks/*/bias", "other", "same")))
    assert "blocks/0/bias is matched by 2 rows: blocks.0.bias, other" in told


def test_two_parameters_never_share_a_name():
    rows = (*ROWS[:2], ("blocks/{i}/bias", "bias", "same"))
    assert "bias stands for 12 parameters: blocks/0/bias" in refusal(THEIRS, rows=rows)


def test_coverage_falls_with_every_stranger():
    names = list(THEIRS)
    assert table.coverage(ROWS, [*names, "stranger"]) < 1
    assert table.coverage(ROWS, names[1:]) < 1
    assert table.coverage(ROWS, []) == 0


def test_a_model_without_biases_fits_as_well():
    assert table.coverage(ROWS, [name for name in THEIRS if not name.endswith("bias")]) == 1


def test_names_come_in_the_order_of_the_rows_block_by_block():
    names = ["blocks.10.bias", "blocks.2.bias", "blocks.10.weight", "embed.weight"]
    assert table.in_order(ROWS, [*names, "blocks.2.weight"]) == [
        "embed.weight",
        "blocks.2.weight",
        "blocks.2.bias",
        "blocks.10.weight",
        "blocks.10.bias",
    ]
