"""Encoding in shards: in several processes, and resumable after a kill.

A token folder is encoded in shards of 16 MB of text, each a file and, written after it, a record
with its sha256. A later call checks the finished ones and encodes the rest; concatenation puts
separators where shards meet, so the result has the same bytes for any number of workers and kills.
A shard is made of a source's parts: ranges of bytes of JSON files, row groups of Parquet files,
ranges of examples of TFDS. A text file is one document and one part, however large: GPT-2 cuts it
before white space, where no token reaches over, and threads encode the pieces; another
`tokenizer.json` takes it in one piece, in memory.
"""

import fcntl
import json
import os
import shutil
import signal
import threading
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict
from itertools import islice
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.encoding import Shard, Writer, encode
from data_pipelines.files import digest, read_limited, sync, write_text
from data_pipelines.limits import MAX_MANIFEST
from data_pipelines.reading import CHUNK, Part, Progress, Source
from data_pipelines.tokenizers import Tokenizer

SHARD = 1 << 24
"""Bytes of text in a shard, at least."""

Parts = tuple[Part, ...]


def shards_of(source: Source, size: int) -> list[Parts]:
    """The parts of a source in order, in groups of about `size` bytes or more."""
    groups: list[list[Part]] = [[]]
    for part in source.parts:
        if sum(p.bytes for p in groups[-1]) >= size:
            groups.append([])
        groups[-1].append(part)
    return [tuple(group) for group in groups]


def encode_all(
    shards: Sequence[Parts],
    plan: dict[str, Any],
    tokenizer: Tokenizer,
    dtype: str,
    work: Path,
    workers: int,
    progress: Progress | None = None,
) -> list[Shard]:
    """Encodes the shards that are not complete in `work` yet.

    A shard is a file NUMBER.bin and, written after it, NUMBER.json. They are used again by a later
    call with the same plan.

    Args:
        shards: the parts of each.
        plan: all that determines the tokens, JSON-able.
        tokenizer: encodes.
        dtype: of the files, such as "<u2".
        work: the folder of the files, locked by the caller.
        workers: processes; where there are fewer shards, threads in them.
        progress: called as (stage, bytes done, bytes in all).
    """
    stored = work / "plan.json"
    if _json(stored) != plan:
        for path in work.glob("*.*"):
            path.unlink()
        write_text(stored, json.dumps(plan) + "\n")
    sizes = [sum(part.bytes for part in shard) for shard in shards]
    made = {i: found for i in range(len(shards)) if (found := _finished(work, i))}
    stage = f"encoding ({len(made)} of {len(shards)} parts done before)" if made else "encoding"
    done = sum(sizes[i] for i in made)
    missing = [i for i in range(len(shards)) if i not in made]
    processes = min(workers, len(missing))
    threads = workers // max(1, processes)
    jobs = {i: (shards[i], tokenizer, dtype, work, i, threads) for i in missing}
    with closing(_run(jobs, processes)) as results:
        for i, shard in results:
            made[i] = shard
            done += sizes[i]
            if progress:
                progress(stage, done, sum(sizes))
    return [made[i] for i in range(len(shards))]


def concatenate(
    shards: Sequence[Shard], work: Path, tokenizer: Tokenizer, dtype: str, path: Path
) -> Shard:
    """Concatenates the shards of a folder, with separators between their documents."""
    with path.open("wb") as file:
        writer, documents = Writer(file, tokenizer, dtype), 0
        for i, shard in enumerate(shards):
            if documents and shard.documents:
                writer.separate()
            documents += shard.documents
            writer.unknown += shard.unknown
            tokens = np.memmap(_file(work, i), dtype, "r") if shard.tokens else ()
            for start in range(0, shard.tokens, CHUNK):
                writer.add(np.asarray(tokens[start : start + CHUNK]), 0)
    return writer.done(documents)


@contextmanager
def locked(work: Path) -> Iterator[None]:
    """A working folder for one process at a time; others wait. Removed after success."""
    while True:
        work.mkdir(parents=True, exist_ok=True)
        try:
            file = (work / "lock").open("w")
            with suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(file.fileno()), (work / "lock").stat()):
                break
        except FileNotFoundError:
            pass  # its owner finished and removed it
    with file:
        yield
        shutil.rmtree(work)


def _run(
    jobs: dict[int, tuple[Any, ...]], workers: int
) -> Generator[tuple[int, Shard], None, None]:
    """The results as they are completed."""
    if workers <= 1:
        yield from ((i, _encode_shard(*job)) for i, job in jobs.items())
        return
    # Spawned: a process with JAX's threads in it must not be forked.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _begin_worker)
    left = iter(jobs.items())
    futures: dict[Future[Shard], int] = {}
    try:
        while True:
            # At most one job per worker is submitted: the pool runs submitted jobs to their end.
            for i, job in islice(left, workers - len(futures)):
                futures[pool.submit(_encode_shard, *job)] = i
            if not futures:
                return
            for future in wait(futures, return_when=FIRST_COMPLETED).done:
                yield futures.pop(future), future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _begin_worker() -> None:
    """Leaves Ctrl-C to the parent, and exits with it: an orphan would write into its files."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    assert parent is not None
    threading.Thread(target=_exit_with_parent, args=(parent.sentinel,), daemon=True).start()


def _exit_with_parent(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)


def _encode_shard(
    parts: Parts, tokenizer: Tokenizer, dtype: str, work: Path, i: int, threads: int
) -> Shard:
    path = _file(work, i)
    shard = encode(parts, tokenizer, dtype, path, threads=threads)
    sync(path)
    write_text(path.with_suffix(".json"), json.dumps(asdict(shard)) + "\n")
    return shard


def _finished(work: Path, i: int) -> Shard | None:
    """A shard of an earlier call, if it is intact."""
    path = _file(work, i)
    try:
        shard = Shard(**_json(path.with_suffix(".json")))
        return shard if digest(path) == shard.sha256 else None
    except (OSError, ValueError, TypeError):
        return None


def _json(path: Path) -> Any:
    """The content of a small file; None if it is missing or damaged."""
    try:
        return json.loads(read_limited(path, MAX_MANIFEST))
    except (OSError, ValueError, RecursionError):
        return None


def _file(work: Path, i: int) -> Path:
    return work / f"{i:06d}.bin"
