"""Runs a GGUF file with llama.cpp, in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

_RUN = """
import json, sys, xllamacpp
path, calls = sys.argv[1], json.loads(sys.argv[2])
params = xllamacpp.CommonParams()
params.model.path = path
params.n_ctx, params.n_parallel, params.n_gpu_layers, params.warmup = 32, 1, 0, False
params.cpuparams.n_threads = 1
params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
server = xllamacpp.Server(params)
answers = []
for prompt, new in calls:
    answer = server.handle_completions(
        {"prompt": prompt, "n_predict": new, "temperature": 0.0, "n_probs": 1, "ignore_eos": True}
    )
    answer = json.loads(answer) if isinstance(answer, str) else answer
    drawn = answer["choices"][0]["logprobs"]["content"]
    answers.append([answer["usage"]["prompt_tokens"], [token["id"] for token in drawn]])
print("\\n" + json.dumps(answers))
"""


def greedy(path: Path, calls: list[tuple[str | list[int], int]]) -> list[Any]:
    """For each prompt (text or ids) and number of tokens: [prompt's tokens, ids that follow]."""
    done = subprocess.run(
        [sys.executable, "-c", _RUN, str(path), json.dumps(calls)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])
