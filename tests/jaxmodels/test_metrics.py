"""The logs of each step of a run."""

import struct
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event

from jaxmodels.runtime.metrics import MetricsLog, read


def events(folder: Path) -> list[Event]:
    """TensorBoard's files are TFRecords: length (8 bytes), its sum (4), the event, its sum (4)."""
    found = []
    for path in sorted(folder.iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            found.append(Event.FromString(data[at + 12 : at + 12 + length]))
            at += 16 + length
    return found


def test_lines_and_tensorboard_hold_the_same_numbers(tmp_path):
    records = [
        {"step": 1, "loss": 4.5, "lr": 0.25, "tokens_per_second": 1536.0},
        {"step": 2, "loss": 3.5, "lr": 0.5, "tokens_per_second": 2048.0, "valid_loss": 3.75},
    ]
    log = MetricsLog(tmp_path, 0)
    for record in records:
        log.write(record)
    log.close()
    assert read(tmp_path / "metrics.jsonl") == records
    told = [event for event in events(tmp_path / "tensorboard") if event.HasField("summary")]
    assert [event.step for event in told] == [1, 2]  # one event a step
    for event, record in zip(told, records, strict=True):
        values = {value.tag: value.simple_value for value in event.summary.value}
        assert values == {name: x for name, x in record.items() if name != "step"}
        assert event.wall_time > 0


def test_what_came_after_the_checkpoint_is_taken_back(tmp_path):
    log = MetricsLog(tmp_path, 0)
    for step in (1, 2, 3):
        log.write({"step": step, "loss": 1.0 / step})
    log.close()
    log = MetricsLog(tmp_path, 2)
    assert log.last == {"step": 2, "loss": pytest.approx(0.5)}
    log.write({"step": 3, "loss": 0.125})
    log.close()
    assert [record["loss"] for record in read(tmp_path / "metrics.jsonl")] == [1.0, 0.5, 0.125]
    told = [event.step for event in events(tmp_path / "tensorboard") if event.HasField("summary")]
    assert told == [1, 2, 3, 3]
    purged = [e.step for e in events(tmp_path / "tensorboard") if e.HasField("session_log")]
    assert purged[-1] == 3  # of this step and later ones TensorBoard drops what was told before
