"""Killed, on a full disk, or in parallel: there is the old output or the new one."""

import json
import os
import subprocess
import sys

import pytest

import bridge
from bridge.core.tensors import digest_of
from jaxmodels.errors import CORRUPT, EXISTS, NO_SPACE
from jaxmodels.runtime.manifest import digests
from tests.bridge.helpers import GOLDEN, HEADS, SEED, command

SEEDS = GOLDEN.parent
# A process that has imported everything, and forks for every task on standard input.
SERVER = """
import json, os, random, resource, signal, sys
sys.dont_write_bytecode = True  # a cut .pyc would fail whatever is imported after this
import bridge, bridge.conversion.convert, bridge.torch, bridge.storage.orbax, torch, gguf
from jaxmodels.__main__ import main

def work(task):
    sys.stdout = sys.stderr = open(os.devnull, "w")
    if room := task.get("room"):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
    left, seen, below = task.get("kill", 0), 0, task.get("below", "")
    def count(event, args):
        nonlocal left, seen
        if event in ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate"):
            if below in str(args[0]):
                seen += 1
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(count)
    code = main(task["words"])
    os.write(task["pipe"], json.dumps([code, seen]).encode())
    os._exit(0)

for line in sys.stdin:
    running = []
    for task in json.loads(line):
        reads, task["pipe"] = os.pipe()
        if not (child := os.fork()):
            work(task)
        os.close(task["pipe"])
        running.append((child, reads))
    told = []
    for child, reads in running:
        said = os.read(reads, 1000)
        os.close(reads)
        os.waitpid(child, 0)
        told.append(json.loads(said) if said else None)
    print(json.dumps(told), flush=True)
"""


@pytest.fixture(scope="module")
def server():
    """call(task, …): each in a process of its own, all at once; [exit code, events] or None."""
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )

    def call(*tasks):
        process.stdin.write(json.dumps(tasks) + "\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())

    yield call
    process.stdin.close()
    process.wait()
    process.stdout.close()


def words(source, target, *options):
    return ["convert", *map(str, (source, target, *options))]


def left(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("shards", [(), ("--max-shard-size", "30KB")], ids=["one", "many"])
def test_a_kill_at_any_moment_leaves_the_old_output_or_the_new_one(
    server, run, converted, tmp_path, shards
):
    target = tmp_path / "out"
    call = {"words": words(run, target, "--force", *shards), "below": str(tmp_path)}
    bridge.convert(converted, target)
    old = digests(target)
    [[code, events]] = server(call)
    assert (code, left(tmp_path)) == (0, ["out"])
    new = digests(target)
    assert new.keys() != old.keys() or new != old
    moments = range(1, events + 1, max(1, events // 8))
    seen = set()
    for moment in moments:
        bridge.convert(converted, target, force=True)
        assert server({**call, "kill": moment}) == [None]
        now = digests(target)
        assert now in (old, new)
        seen.add(now == new)
        assert bridge.verify(target).digests_ok
    assert False in seen
    assert server(call)[0][0] == 0
    assert (digests(target), left(tmp_path)) == (new, ["out"])


def test_a_killed_conversion_goes_on_with_the_shards_that_are_whole(server, run, tmp_path, capsys):
    target, parts = tmp_path / "out", tmp_path / ".out.parts"
    call = words(run, target, "--max-shard-size", "30KB")
    moment = 0
    while len(list(parts.glob("*.json"))) < 3:  # three of them are finished
        moment += 10
        for path in tmp_path.glob(".out*"):
            subprocess.run(["rm", "-r", path], check=True)
        assert server({"words": call, "kill": moment, "below": str(tmp_path)}) == [None]
    assert not target.exists()
    finished = sorted(path.name.removesuffix(".json") for path in parts.glob("*.json"))
    spoilt = parts / finished[0]
    spoilt.write_bytes(spoilt.read_bytes()[:-1] + b"x")
    code, report, err = command(capsys, *call, "--json")
    assert code == 0
    told = f"{len(finished) - 1} of {len(list(target.glob('*-of-*')))} shards were finished"
    assert told in err
    assert left(tmp_path) == ["out"]
    bridge.convert(run, tmp_path / "fresh", max_shard_size="30KB")
    assert digests(target) == digests(tmp_path / "fresh")
    assert report["optimizer"] is False


def test_shards_of_another_plan_are_not_taken(server, run, tmp_path):
    target = tmp_path / "out"
    call = {"words": words(run, target, "--max-shard-size", "30KB"), "below": str(tmp_path)}
    [[_, events]] = server(call)
    subprocess.run(["rm", "-r", target], check=True)
    server({**call, "kill": events // 2})
    report = bridge.convert(run, target, max_shard_size="30KB", dtype="bfloat16")
    assert not any("earlier call" in note for note in report.notes)
    assert left(tmp_path) == ["out"]
    assert {str(t.dtype) for t in bridge.open_checkpoint(target).tensors.values()} == {
        "bfloat16",
        "float32",
    }


TARGETS = {
    "safetensors": (SEED, ["--set", "heads=4"]),
    "shards": (SEED, ["--set", "heads=4", "--max-shard-size", "60KB"]),
    "orbax": (SEED, ["--set", "heads=4"]),
    "gpt2": (SEEDS / "nanogpt_bias" / "ckpt.pt", []),
    "gguf": (SEEDS / "nanogpt_bias" / "ckpt.pt", []),
    "nanogpt": (SEEDS / "nanogpt_bias" / "ckpt.pt", []),
    "bwetaf": (SEEDS / "bwetaf_rope", []),
    "wigip-zip": (SEEDS / "wigip" / "step_7.zip", []),
}


def to(name):
    return "safetensors" if name == "shards" else name


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_a_disk_that_fills_up_leaves_nothing(server, tmp_path, name):
    source, options = TARGETS[name]
    call = words(source, tmp_path / "out", *options, "--to", to(name))
    for room in (1_000, 5_000 if name == "orbax" else 40_000):
        [[code, _]] = server({"words": call, "room": room})
        assert code == NO_SPACE
        assert left(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in TARGETS if name != "orbax"])
def test_the_same_conversion_gives_the_same_bytes(tmp_path, name):
    source, options = TARGETS[name]
    config = HEADS if "heads=4" in options else None
    size = options[-1] if name == "shards" else "5GB"
    for folder in ("a", "b"):
        target = tmp_path / folder
        bridge.convert(source, target, to=to(name), config=config, max_shard_size=size)
    files = digests(tmp_path / "a", lambda name: True)
    assert files == digests(tmp_path / "b", lambda name: True)
    assert "manifest.json" in files


@pytest.mark.slow
def test_two_conversions_at_once(server, run, tmp_path):
    target = tmp_path / "out"
    for options in ([], ["--max-shard-size", "30KB"]):
        call = {"words": words(run, target, *options)}
        codes = sorted(code for code, _ in server(call, call, call))
        assert codes == [0, EXISTS, EXISTS]
        assert (left(tmp_path), bridge.verify(target).digests_ok) == (["out"], True)
        forced = {"words": [*call["words"], "--force"]}
        codes = [code for code, _ in server(forced, forced, forced)]
        assert codes == [0, 0, 0]
        assert (left(tmp_path), bridge.verify(target).digests_ok) == (["out"], True)
        subprocess.run(["rm", "-r", target], check=True)


@pytest.mark.parametrize("place", ["/proc/out", "/proc/1/x/out", "FILE/out"])
def test_a_target_that_cannot_be_written(tmp_path, capsys, place):
    (tmp_path / "file").write_text("mine")
    target = place.replace("FILE", str(tmp_path / "file"))
    code, _, err = command(capsys, "convert", SEED, target, "--set", "heads=4")
    assert code in (CORRUPT, NO_SPACE)
    assert err.count("error:") == 1
    assert "Traceback" not in err
    assert (tmp_path / "file").read_text() == "mine"
    assert left(tmp_path) == ["file"]


@pytest.mark.slow
def test_a_source_is_never_changed(run, tmp_path):
    before = digests(run, lambda name: True)
    bridge.convert(run, tmp_path / "out", verify="logits")
    bridge.inspect(run)
    assert digests(run, lambda name: True) == before
    source = bridge.open_checkpoint(tmp_path / "out")
    again = bridge.open_checkpoint(run)
    for path, tensor in source.tensors.items():
        assert digest_of(tensor.read()) == digest_of(again.tensors[path].read())
    assert os.listdir(tmp_path) == ["out"]
