"""From every source to every target of its architecture: the tensors and sizes stay the same."""

import pytest

import bridge
from bridge.targets import TARGETS
from bridge.tensors import digest_of
from jaxmodels.errors import Problem
from tests.bridge.helpers import GOLDEN, HEADS, SEED, write_run

SEEDS = GOLDEN.parent
FIRST = {
    "charlm": (SEED, HEADS),
    "wikigpt": (SEEDS / "nanogpt_bias", {}),
    "bwetaf": (SEEDS / "bwetaf_rope", {}),
    "wigip": (SEEDS / "wigip", {}),
}
"""Architecture → its seed's own checkpoint, and what that does not say."""

WAYS = [
    (arch, source, target)
    for arch in FIRST
    for source in ("seed", "run", "shards", *(t for t in TARGETS if TARGETS[t] in ("", arch)))
    for target in TARGETS
    if TARGETS[target] in ("", arch)
]


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """(architecture, source) → its path and what it does not say; made when it is asked for."""
    folder, made = tmp_path_factory.mktemp("sources"), {}

    def get(arch, source):
        if source == "seed":
            return FIRST[arch]
        path = folder / f"{arch}-{source}"
        if (arch, source) not in made:
            first, config = FIRST[arch]
            if source == "run":
                write_run(path, {1: 2.0}, spec=f"{arch}:tiny")
            elif source == "shards":
                bridge.convert(first, path, config=config, max_shard_size="30KB")
                assert len(list(path.glob("*-of-*"))) > 1
            else:
                bridge.convert(first, path, to=source, config=config)
        made[arch, source] = path
        return path, {}

    return get


@pytest.mark.parametrize(("arch", "source", "target"), WAYS)
def test_every_source_goes_to_every_target(sources, tmp_path, arch, source, target):
    path, config = sources(arch, source)
    if (arch, source, target) == ("wikigpt", "run", "nanogpt"):
        # The preset's feed-forward is narrower than any of nanoGPT's.
        with pytest.raises(Problem, match="nanoGPT cannot compute"):
            bridge.convert(path, tmp_path / "out", to=target)
        return
    report = bridge.convert(path, tmp_path / "out", to=target, config=config, verify="roundtrip")
    before = bridge.open_source(path, config=config)
    after = bridge.open_source(tmp_path / "out")
    assert (report.arch, after.arch, report.verified) == (arch, arch, "roundtrip")
    assert after.tensors.keys() == before.tensors.keys()
    for name, tensor in before.tensors.items():
        assert digest_of(after.tensors[name].read()) == digest_of(tensor.read()), name
