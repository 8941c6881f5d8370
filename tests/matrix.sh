#!/usr/bin/env bash
# The quick tests with each Python from 3.11 to 3.13 that is installed, twice: with the versions of
# constraints.txt (the lower end of JAX's range), and with the newest that pyproject.toml allows.
# Words are passed to pytest: tests/matrix.sh tests/jaxmodels/test_layers.py
set -uo pipefail
cd "$(dirname "$0")/.."

results=()
for version in 3.11 3.12 3.13; do
  python=python$version
  if ! "$python" -c '' 2>/dev/null; then
    results+=("$version: not installed")
    continue
  fi
  for end in tested newest; do
    environment=.venv/matrix/$version-$end
    constraint=()
    [ $end = newest ] || constraint=(--constraint constraints.txt)
    if "$python" -m venv "$environment" &&
      "$environment/bin/pip" install --quiet --disable-pip-version-check --upgrade \
        --upgrade-strategy eager "${constraint[@]}" --editable '.[dev]' &&
      "$environment/bin/python" -m pytest -m "not slow" "$@"; then
      outcome=passed
    else
      outcome=FAILED
    fi
    jax=$("$environment/bin/python" -c 'import jax, flax; print("jax", jax.__version__, "flax", flax.__version__)')
    results+=("$version $end: $outcome with $jax")
  done
done

printf '%s\n' "${results[@]}"
[[ "${results[*]}" != *FAILED* ]]
