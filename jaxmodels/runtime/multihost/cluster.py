"""Which process of how many this one is: from flags, or from the cluster that started it.

Clusters are TPU pods, Slurm, Open MPI and indexed Kubernetes jobs, as JAX detects them. A machine
that is none of them is asked nothing and waits for nothing.
"""

import os
import re
import warnings
from contextlib import suppress
from typing import Any, NamedTuple

from jaxmodels.errors import USAGE, Problem


class Place(NamedTuple):
    """Where a process stands among the others."""

    coordinator: str
    """HOST:PORT of process 0."""
    processes: int
    process: int
    devices: list[int] | None
    """Which of the machine's devices are this process's; None for all."""


def find(coordinator: str, processes: int, process: int | None) -> Place | None:
    """From the flags, else from the cluster; None for a process that is alone.

    Args:
        coordinator: HOST:PORT of process 0; "" if the cluster knows.
        processes: how many; 0 if the cluster knows, 1 to ask nobody.
        process: the number of this one; None if the cluster knows.

    Raises:
        Problem: (usage) flags and cluster together do not say enough.
    """
    if processes == 1 or (processes == 0 and (coordinator or process is not None)):
        if processes == 1 and not process:
            return None
        raise Problem(
            "--coordinator and --process need --processes, of two or more",
            fix="give all three; on TPU pods, Slurm and Open MPI none of them",
            exit_code=USAGE,
        )
    found = None if coordinator and process is not None else _cluster()
    if found is None and not processes:
        return None
    given = Place(
        coordinator or (found.coordinator if found else ""),
        processes or (found.processes if found else 0),
        process if process is not None else (found.process if found else -1),
        found.devices if found else None,
    )
    if not given.coordinator or not 0 <= given.process < given.processes:
        raise Problem(
            f"there is no process {process} of {processes}"
            if process is not None and coordinator
            else "--processes needs --coordinator HOST:PORT and --process I too",
            why="no cluster was found that provides them" if found is None else "",
            fix="number the processes from 0 on, and give all of them process 0's address",
            exit_code=USAGE,
        )
    return given


def _cluster() -> Place | None:
    """What JAX's cluster detection says; None without a cluster, or in one of one process."""
    try:
        from jax._src.clusters import ClusterEnv

        environments = ClusterEnv._cluster_types
    except (ImportError, AttributeError):  # its place is private and may change
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Kubernetes without its package: no concern of one machine
        for environment in environments:
            # A Kubernetes pod is one of several only in an indexed job.
            kubernetes = environment.name == "k8s" and "JOB_COMPLETION_INDEX" not in os.environ
            if environment.opt_in_only_method or kubernetes:
                continue
            with suppress(Exception):  # no answer from a service that only clusters have
                if environment.is_env_present():
                    return _ask(environment)
    return None


def _ask(environment: Any) -> Place | None:
    processes = environment.get_process_count()
    if processes < 2:
        return None
    port = os.environ.get("JAX_COORDINATOR_PORT")
    address = environment.get_coordinator_address(timeout_secs=60, override_coordinator_port=port)
    local = environment.get_local_process_id()
    # One process a node takes all of the node's devices; JAX would give it the first only.
    alone = re.fullmatch(r"1(\(x\d+\))?", os.environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
    devices = None if local is None or alone else [local]
    return Place(address, processes, environment.get_process_id(), devices)
