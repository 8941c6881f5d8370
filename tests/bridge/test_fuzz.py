"""A sample of `python -m tests.bridge.fuzz`, which runs 20,000 inputs: the hostile ones first."""

import pytest

from tests.bridge.fuzz import run


@pytest.mark.slow
def test_no_changed_input_does_what_it_must_not(capsys):
    outcomes, failures = run(seed=0, first=0, count=350)
    assert failures == []
    assert sum(outcomes.values()) == 350
    formats = {name.split(":")[0] for name in outcomes}
    assert {"hostile", "run", "directory", "gguf", "nanogpt", "bwetaf", "wigip"} <= formats
    assert any(name.endswith("accepted") for name in outcomes)
