import pytest

import bridge
from tests.bridge.helpers import HEADS, SEED, in_this_process, write_run


@pytest.fixture(scope="session")
def converted(tmp_path_factory):
    """The golden seed checkpoint as a model directory; not to be changed."""
    target = tmp_path_factory.mktemp("golden") / "model"
    bridge.convert(SEED, target, config=HEADS)
    return target


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """A run directory with three checkpoints, the second of them the best; not to be changed."""
    return write_run(tmp_path_factory.mktemp("run") / "run", {100: 2.0, 200: 1.5, 300: None})


@pytest.fixture(scope="session")
def model_directory(run, tmp_path_factory):
    """The run as a model directory, with vocabulary; not to be changed."""
    target = tmp_path_factory.mktemp("directory") / "model"
    bridge.convert(run, target)
    return target


@pytest.fixture(scope="module")
def readers_here():
    """Legacy files are read in this process, so that tests can watch the readers."""
    with in_this_process():
        yield
