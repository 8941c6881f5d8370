"""From every source to every target of its architecture: the tensors and sizes stay the same."""

import numpy as np
import pytest
import torch

import bridge
from bridge.core.tensors import digest_of
from bridge.formats import targets
from jaxmodels.errors import Problem
from tests.bridge.helpers import GOLDEN, HEADS, SEED, write_run
from tests.jaxmodels.stage1 import state_dict

SEEDS = GOLDEN.parent
TARGETS = {
    name: format.arch
    for name, format in targets().items()
    if not (format.adapters or format.run or format.packed)  # packed ones round: test_packed
}
TOWER = {"dinov2.heads": 4}
FIRST = {
    "charlm": (SEED, HEADS),
    "wikigpt": (SEEDS / "nanogpt_bias", {}),
    "bwetaf": (SEEDS / "bwetaf_rope", {}),
    "wigip": (SEEDS / "wigip", {}),
    "dinov2": (SEEDS / "dinov2" / "hf", {}),
    "bitgen_stage1": ("checkpoint-1000.pt", TOWER),  # made of its rule
    "bitgen": ("run", {}),
}
"""Architecture → its seed's own checkpoint, and what that does not say; bitgen has no seed."""
NEVER = {("bitgen", "seed"), ("dinov2", "run")}  # dinov2 is not trained alone
UNSAID = {("dinov2", "dinov2-pth"): HEADS, ("bitgen_stage1", "bitgen"): TOWER}
"""What a target cannot say, and its reader must be told."""
REFUSED = {
    # The preset's feed-forward is narrower than any of nanoGPT's; its queue is shorter.
    ("wikigpt", "run", "nanogpt"): "nanoGPT cannot compute",
    ("bitgen_stage1", "run", "bitgen"): "BitGen Stage 1's code cannot compute",
}


def is_way(arch, source, target):
    """A cell of the table; two take ten seconds for each, and leave out what others show."""
    if TARGETS[target] not in ("", arch) or (arch, source) in NEVER:
        return False
    return not arch.startswith("bitgen") or source not in ("shards", target)


WAYS = [
    (arch, source, target)
    for arch in FIRST
    for source in ("seed", "run", "shards", *(t for t in TARGETS if TARGETS[t] in ("", arch)))
    for target in TARGETS
    if is_way(arch, source, target)
]


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """(architecture, source) → its path and what it does not say; made when it is asked for."""
    folder, made = tmp_path_factory.mktemp("sources"), {}

    def seed(arch):
        path, config = FIRST[arch]
        if path == "run":
            return get(arch, "run")
        if arch == "bitgen_stage1" and not (folder / path).exists():
            state = {name: torch.from_numpy(np.array(x)) for name, x in state_dict().items()}
            said = {"vocab_size": 97, "num_heads": 4}
            torch.save({"model_state_dict": state, "config": said}, folder / path)
        return folder / path, config  # an absolute one stays what it is

    def get(arch, source):
        if source == "seed":
            return seed(arch)
        path = folder / f"{arch}-{source}"
        if (arch, source) not in made:
            first, config = (None, {}) if source == "run" else seed(arch)
            if source == "run":
                write_run(path, {1: 2.0}, spec=f"{arch}:smallest")
            elif source == "shards":
                bridge.convert(first, path, config=config, max_shard_size="30KB")
                assert len(list(path.glob("*-of-*"))) > 1
            else:
                bridge.convert(first, path, to=source, config=config)
        made[arch, source] = path
        return path, UNSAID.get((arch, source), {})

    return get


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "source", "target"), WAYS)
def test_every_source_goes_to_every_target(sources, tmp_path, arch, source, target):
    path, config = sources(arch, source)
    if said := REFUSED.get((arch, source, target)):
        with pytest.raises(Problem, match=said):
            bridge.convert(path, tmp_path / "out", to=target)
        return
    report = bridge.convert(path, tmp_path / "out", to=target, config=config, verify="roundtrip")
    before = bridge.open_checkpoint(path, config=config)
    after = bridge.open_checkpoint(tmp_path / "out", config=UNSAID.get((arch, target)))
    assert (report.arch, after.arch, report.verified) == (arch, arch, "roundtrip")
    assert after.tensors.keys() == before.tensors.keys()
    for name, tensor in before.tensors.items():
        assert digest_of(after.tensors[name].read()) == digest_of(tensor.read()), name
