#!/usr/bin/env bash
# From text to a trained character model to PyTorch, on the Python reference's own prose.
set -euo pipefail

RUN=${1:-runs/demo}

step() { printf '\n\033[1m$ %s\033[0m\n' "$(printf '%q ' "$@")"; "$@"; }

# A granted machine is taken away in the middle of the run …
code=0
step jaxmodels train charlm:notebook --data pydoc --out "$RUN" \
  --batch 64 --steps 600 --eval-every 200 --save-every 200 --sample-every 200 \
  --max-hours 0.006 || code=$?
[ $code -eq 0 ] || [ $code -eq 75 ] || exit $code # 75: stopped, resumable

# … and the next one resumes it.
step jaxmodels train --out "$RUN"

step jaxmodels generate "$RUN" --prompt "The value of" --max-new-tokens 300

step jaxmodels convert "$RUN" "$RUN-pytorch" --force

# Loads the directory in PyTorch and compares its logits with JAX's.
step jaxmodels verify "$RUN-pytorch" --against "$RUN"
