"""Tries a tokenizer.json on texts that are hard for expressions, in a process with limits."""

import json
import signal
import subprocess
import sys
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

LENGTH = 5_000  # characters of a text: enough to notice cubic time
MEMORY = 2**30  # bytes, beyond what the file takes
SECONDS, BYTES_PER_SECOND = 2, 5_000_000  # of processor time
WAIT = 6  # additional seconds of wall time
# Each text repeats one of these, or a character of the expressions.
USUAL, MOST = "a A1 .\n_'é漢", 24

_TRIAL = """
import json, resource, sys
sys.path.append(sys.argv[1])
memory, seconds, length = map(int, sys.argv[2:5])
import tokenizers
for name, most in (("AS", memory), ("CPU", seconds), ("FSIZE", 0), ("CORE", 0)):
    resource.setrlimit(getattr(resource, "RLIMIT_" + name), (most, most))
request = json.load(sys.stdin)
try:
    made = tokenizers.Tokenizer.from_str(request["content"])
except Exception:
    sys.exit(0)  # reported where it is used
made.encode_special_tokens = True
for text in request["texts"]:
    # The end makes an expression's match fail late.
    hard = text * (length // len(text)) + "!" + "".join(request["texts"])
    ids = made.encode(hard, add_special_tokens=False).ids
    made.decode(ids[:length])
    print(len(ids))
"""


def trial_fault(data: dict[str, Any], alphabet: str) -> str:
    """Why a tokeniser is not safe to use; empty if it encodes hard texts within the limits.

    Args:
        data: the parsed tokenizer.json.
        alphabet: characters that may be hard for it.
    """
    texts = [*dict.fromkeys(USUAL + alphabet)][:MOST]
    content = json.dumps(data | {"truncation": None, "padding": None})
    return _trial_fault(content, (*texts, "ab", " \n"))


@lru_cache(maxsize=8)
def _trial_fault(content: str, texts: tuple[str, ...]) -> str:
    spec = find_spec("tokenizers")
    folder = str(Path(spec.origin).parents[1]) if spec and spec.origin else ""
    seconds = SECONDS + len(content) // BYTES_PER_SECOND
    limits = map(str, (MEMORY + 20 * len(content), seconds, LENGTH))
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-X", "utf8", "-c", _TRIAL, folder, *limits],
            input=json.dumps({"content": content, "texts": texts}).encode(),
            capture_output=True,
            timeout=WAIT + seconds,
            env={"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"a text of {LENGTH:,} characters takes more than {WAIT + seconds} s"
    counts = [int(line) for line in done.stdout.split() if line.isdigit()]
    if done.returncode == -signal.SIGXCPU or done.returncode == -signal.SIGKILL:
        return f"texts of {LENGTH:,} characters take more than {seconds} s"
    if max(counts, default=0) > 100 * LENGTH:
        return f"a text of {LENGTH:,} characters becomes {max(counts):,} tokens"
    if done.returncode != 0:
        return f"a text of {LENGTH:,} characters takes too much memory, or crashes the process"
    return ""
