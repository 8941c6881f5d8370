#!/usr/bin/env bash
# Trains a character model on the prose of the Python reference, stops and resumes it, samples from it,
# and converts it for PyTorch: about five minutes on two cores.
set -euo pipefail

RUN=${1:-runs/demo}

step() { printf '\n\033[1m$ %s\033[0m\n' "$(printf '%q ' "$@")"; "$@"; }

# The time is up in the middle of the run (after 20 seconds): it saves and stops, …
code=0
step jaxmodels train charlm:notebook --data pydoc --out "$RUN" \
  --batch 64 --steps 600 --eval-every 200 --save-every 200 --sample-every 200 \
  --max-hours 0.006 || code=$?
[ $code -eq 0 ] || [ $code -eq 75 ] || exit $code # 75: stopped, resumable

# … and the next call continues it.
step jaxmodels train --out "$RUN"

step jaxmodels generate "$RUN" --prompt "The value of" --max-new-tokens 300

step jaxmodels convert "$RUN" "$RUN-pytorch" --force

# Loads the result in PyTorch, and compares its logits with those of JAX.
step jaxmodels verify "$RUN-pytorch" --against "$RUN"
