"""Processes that train together notice when one is lost or frozen."""

import queue
import signal
import socket

import pytest

from jaxmodels.errors import STOPPED
from jaxmodels.runtime.manifest import damage
from jaxmodels.runtime.multihost.lifeline import Lifelines
from jaxmodels.runtime.runs.rundir import steps
from tests.jaxmodels.test_processes import two, wait_for


class Team:
    """Three processes' lifelines in one process, with what each of them heard."""

    def __init__(self, silence: float = 60):
        pairs = {number: socket.socketpair() for number in (1, 2)}
        ends = {0: {n: pair[0] for n, pair in pairs.items()}}
        ends |= {n: {0: pair[1]} for n, pair in pairs.items()}
        self.heard = {index: queue.Queue() for index in ends}
        self.lines = {
            index: Lifelines(
                index,
                peers,
                silence,
                self.heard[index].put,
                lambda *lost, index=index: self.heard[index].put(lost),
            )
            for index, peers in ends.items()
        }

    def start(self, *indices: int) -> None:
        for index in indices:
            self.lines[index].start()

    def close(self, index: int) -> None:
        for peer in self.lines[index].peers.values():
            peer.shutdown(socket.SHUT_RDWR)

    def end(self) -> None:
        for line in self.lines.values():
            line.end()


def test_what_one_tells_all_others_hear():
    team = Team()
    team.start(0, 1, 2)
    team.lines[1].tell({"what": "a"})
    assert [team.heard[index].get(timeout=10) for index in (0, 2)] == [{"what": "a"}] * 2
    team.lines[0].tell({"what": "b"})
    assert [team.heard[index].get(timeout=10) for index in (1, 2)] == [{"what": "b"}] * 2
    team.end()
    for line in team.lines.values():
        line.join(10)
    assert all(heard.empty() for heard in team.heard.values())  # nobody was missed


@pytest.mark.parametrize(("gone", "noticed"), [(2, 0), (0, 1)])
def test_who_ends_is_missed_at_once(gone, noticed):
    team = Team()
    team.start(noticed)
    team.close(gone)
    number, how = team.heard[noticed].get(timeout=10)
    assert (number, "connection was closed" in how) == (gone, True)
    team.end()


def test_who_is_frozen_is_missed_after_the_time_of_silence():
    team = Team(silence=0.5)
    team.start(0, 1)  # 2 gives no sign
    assert team.heard[0].get(timeout=10) == (2, "it gave no sign for 0 s")
    assert team.heard[1].empty()
    team.end()


def test_who_stood_still_itself_does_not_blame_the_others():
    team = Team(silence=1)
    team.lines[0]._looked -= 10
    team.lines[0]._heard = dict.fromkeys((1, 2), team.lines[0]._looked)
    team.lines[0]._look(0.0)
    assert team.heard[0].empty()
    team.lines[0]._looked -= 10
    team.close(1)
    team.lines[0]._look(0.0)
    number, how = team.heard[0].get(timeout=10)
    assert (number, how) == (1, "this process stood still for 10 s, and was not waited for")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "victim"), [(signal.SIGKILL, 0), (signal.SIGSTOP, 0), (signal.SIGSTOP, 1)]
)
def test_the_others_end_resumable_and_say_who_was_lost(tmp_path, victim, number):
    run = tmp_path / "run"
    both = two(run, flags=("--steps", "1000000", "--heartbeat", "3"))
    try:
        wait_for(lambda: (run / "checkpoints" / "4").is_dir(), both)
        both[victim].send_signal(number)
        said = both[1 - victim].communicate(timeout=100)[1]
        assert both[1 - victim].returncode == STOPPED, said
        assert f"process {victim} was lost" in said
        how = "connection was closed" if number == signal.SIGKILL else "gave no sign for 3 s"
        assert how in said
        both[victim].send_signal(signal.SIGCONT)
        both[victim].wait(60)
        assert both[victim].returncode == (-number if number == signal.SIGKILL else STOPPED)
        kept = steps(run / "checkpoints")
        assert kept
        assert not any(damage(run / "checkpoints" / str(step)) for step in kept)
    finally:
        for process in both:
            process.kill()
