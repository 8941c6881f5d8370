#!/usr/bin/env bash
# What this machine's GPU reaches, in at most six minutes: the test of cuDNN's attention, then the
# train steps whose speed is a goal, against compiled PyTorch. Prints one table and adds records to
# benchmarks/results/step.jsonl.
#
#   bash benchmarks/gpu.sh [--tiny] [other options of `jaxmodels bench gpu`]
#
# --tiny tries the script on any machine, with tiny models. PYTHON names the interpreter, by default
# that of .venv or else python3; the packages: pip install -e '.[cuda,dev]', and a PyTorch for CUDA.
# Exit codes: 0 done; 2 there is no GPU, or an option is wrong; 124 six minutes were not enough; else
# that of the last part that failed.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-}
if [[ -z $python ]]; then
    python=python3
    [[ -x .venv/bin/python ]] && python=.venv/bin/python
fi
tiny=
for word in "$@"; do [[ $word == --tiny ]] && tiny=yes; done

# One GPU: the goals are those of one, and PyTorch uses no more here.
export CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES:-0}
export XLA_PYTHON_CLIENT_PREALLOCATE=false # both sides share its memory

if [[ -z $tiny ]] && ! "$python" -c 'import sys, jax; sys.exit(jax.default_backend() != "gpu")'; then
    echo "error: JAX finds no GPU on this machine" >&2
    echo "  fix:   on a machine with an NVIDIA GPU, pip install 'jaxmodels[cuda]'; to try the" >&2
    echo "         script without one, bash benchmarks/gpu.sh --tiny" >&2
    exit 2
fi

code=0
began=$SECONDS
JAX_PLATFORMS=${tiny:+cpu} timeout 90 "$python" -m pytest -n 0 -p no:cacheprovider -q -rs \
    tests/jaxmodels/test_kernels.py -k test_cudnn_is_the_plain_form || code=$?
timeout $((350 - SECONDS + began)) "$python" -m jaxmodels bench gpu "$@" || code=$?
exit "$code"
