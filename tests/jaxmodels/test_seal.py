"""digests.json: damage stays reported, and other files are not reported as damage."""

import hashlib
import json

import pytest

from jaxmodels.runtime.manifest import write_sealed
from jaxmodels.runtime.metrics import JsonLines, MetricsLog, read
from jaxmodels.runtime.runs.seal import DIGESTS, damage_to_record, file_damage, seal, unseal


@pytest.fixture
def run(tmp_path):
    """What a call of `train` leaves, without the checkpoints; the data has files beside those
    that its manifest tells, as drawn shapes do."""
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "characters.json").write_text("{}")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.5}\n')
    (tmp_path / "loss.png").write_bytes(b"PNG")
    for name in ("data/shapes/1.0.0", "tensorboard", "samples"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "samples" / "1.txt").write_text("The")
    (tmp_path / "data" / "images.bin").write_bytes(b"pixels")
    (tmp_path / "data" / "shapes" / "1.0.0" / "features.json").write_text("{}")
    told = {"images.bin": hashlib.sha256(b"pixels").hexdigest()}
    (tmp_path / "data" / "manifest.json").write_text(json.dumps({"sha256": told}))
    seal(tmp_path)
    return tmp_path


def test_the_parts_of_a_mixture_are_checked_by_their_own_manifests(run):
    part = run / "data" / "2"
    part.mkdir()
    (part / "tokens.bin").write_bytes(b"tokens")
    told = {"tokens.bin": hashlib.sha256(b"tokens").hexdigest()}
    (part / "manifest.json").write_text(json.dumps({"sha256": told}))
    seal(run)
    sealed = json.loads((run / DIGESTS).read_text())["files"]
    assert "data/2/manifest.json" in sealed
    assert "data/2/tokens.bin" not in sealed
    assert file_damage(run) == []
    (part / "tokens.bin").write_bytes(b"Tokens")
    assert [line.split(" (")[0] for line in file_damage(run)] == ["data/2/tokens.bin is damaged"]


def test_what_other_verbs_write_into_a_sound_run_is_no_damage(run):
    assert file_damage(run) == []
    names = ("report.html", "find_lr.json", "find_lr.png", "samples/.DS_Store", ".lock")
    for name in names:
        (run / name).write_text("one")
    assert file_damage(run) == []
    seal(run)
    for name in names:
        (run / name).write_text("two")
    assert file_damage(run) == []


def test_a_strange_file_is_told_and_not_kept_against_the_run(run):
    for name in ("notes.txt", "data/more.bin", "samples/x"):
        (run / name).write_text("stray")
        assert file_damage(run) == [f"{name} is not in the manifest"]
        assert damage_to_record(run) == []
        seal(run)
        assert file_damage(run) == []


def test_a_seal_of_an_earlier_version_knew_the_report_and_not_the_drawn_shapes(run):
    sealed = json.loads((run / DIGESTS).read_text())
    sealed["files"]["report.html"] = {"bytes": 1, "sha256": "0" * 64}
    del sealed["files"]["data/shapes/1.0.0/features.json"]
    write_sealed(run / DIGESTS, {"files": sealed["files"]})
    assert file_damage(run) == []


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "metrics.jsonl",
        "loss.png",
        "samples/1.txt",
        "data/manifest.json",
        "data/images.bin",
        "data/shapes/1.0.0/features.json",
    ],
)
def test_whatever_train_wrote_is_checked(run, name):
    (run / name).write_bytes((run / name).read_bytes() + b" ")
    assert any(line.startswith(f"{name} is damaged") for line in file_damage(run) or [])


def test_a_second_vocabulary_is_damage(run):
    (run / "tokenizer.json").write_text("{}")
    assert file_damage(run) == ["tokenizer.json is not in the manifest"]


def test_damage_stays_known_when_training_goes_on(run):
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 2.6}\n')
    (run / "loss.png").write_bytes(b"is drawn anew")
    damaged = damage_to_record(run)
    assert [line.split(" (")[0] for line in damaged] == ["metrics.jsonl is damaged"]
    unseal(run, damaged)
    assert file_damage(run) == damaged == damage_to_record(run)  # also if this call is killed
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 2.6}\n{"step": 2, "loss": 2}\n')
    seal(run)
    assert file_damage(run) == damaged == damage_to_record(run)
    unseal(run, damaged)
    seal(run)
    assert file_damage(run) == damaged


def test_a_call_that_ends_before_it_began_seals_no_damage(run):
    """One of too few hours, or stopped while it starts: it never unsealed the run."""
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 2.6}\n')
    (run / "summary.json").write_text("{}")
    seal(run)
    assert [line.split(" (")[0] for line in file_damage(run)] == ["metrics.jsonl is damaged"]


def test_a_sound_run_is_unsealed_as_ever(run):
    assert damage_to_record(run) == []
    unseal(run, [])
    assert not (run / DIGESTS).exists()
    assert file_damage(run) is None


def test_a_damaged_seal_is_damage_too(run):
    whole = (run / DIGESTS).read_bytes()
    (run / DIGESTS).write_bytes(whole.replace(b"PNG", b"PNH").replace(b"bytes", b"bites", 1))
    assert damage_to_record(run)[0].startswith(f"{DIGESTS} is damaged")


DAMAGED = [
    b'\xff\xfe{"step": 2, "loss": 1.0}',
    b'{"step": 2, "lo',
    b'{"step": "2", "loss": 1.0}',
    b'{"step": true, "loss": 1.0}',
    b'{"step": 2, "loss": "1.0"}',
    b'{"step": 2, "valid_loss": {}}',
    b'{"step": 1, "loss": 1.0}',
    b"[2]",
    b"null",
    b"",
    b"\0" * 1000,
    b"[" * 100_000,
    b'{"step": 2, "loss": 1' + b"0" * 5000 + b"}",
]


@pytest.mark.parametrize("line", DAMAGED, ids=lambda line: repr(line[:30]))
def test_a_damaged_line_is_said_kept_and_left_out(tmp_path, capsys, line):
    path = tmp_path / "metrics.jsonl"
    records = [{"step": step, "loss": 1.0 / step} for step in (1, 3, 4)]
    lines = [json.dumps(record).encode() for record in records]
    content = b"\n".join([lines[0], line, *lines[1:], b'{"step": 5, "los'])
    path.write_bytes(content)
    log = JsonLines(path, 3)
    assert log.last == records[1]
    log.write({"step": 4, "loss": float("nan")})
    log.close()
    assert path.read_text().splitlines()[-1] == '{"step": 4, "loss": null}'
    assert read(path) == [*records[:2], {"step": 4, "loss": None}]
    assert (tmp_path / "metrics.jsonl.damaged").read_bytes() == content
    assert "metrics.jsonl: line 2 cannot be read and is left out" in capsys.readouterr().err


def test_what_a_kill_cut_off_is_no_damage(tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "loss": 1.0}\n' + b"\0" * 50)
    MetricsLog(tmp_path, 1).close()
    assert read(path) == [{"step": 1, "loss": 1.0}]
    assert [p.name for p in tmp_path.glob("metrics*")] == ["metrics.jsonl"]
    assert capsys.readouterr().err == ""


def test_a_line_without_end_is_not_read_into_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxmodels.runtime.metrics.LINE", 100)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2, "loss": 1' + b"0" * 1000 + b'}\n{"step": 3}\n')
    assert read(path) == [{"step": 1}, {"step": 3}]
