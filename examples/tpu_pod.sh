#!/usr/bin/env bash
# Trains on all hosts of a TPU pod: one process on each, the same command, over ssh.
#
#   TPU=my-pod ZONE=us-central2-b OUT=/mnt/shared/runs/first examples/tpu_pod.sh wigip:1.7b --data c4
#
# Repeats the command while the run exits with 75 (stopped, resumable; also after a lost host), and
# ten times at most after a process was killed (129 to 254); any other code ends it. If ssh itself
# fails (255), the processes keep training: call this again after they have ended.
# Start it in tmux on a machine that stays on. To save and stop the run:
#   gcloud compute tpus tpu-vm ssh my-pod --zone us-central2-b --worker=all --command "pkill -TERM jaxmodels"
#
# Requires: every host has Python 3.11 or later and this repository in ~/jaxmodels, with
#   cd ~/jaxmodels && python3 -m venv .venv && .venv/bin/pip install -c constraints.txt -e '.[tpu]'
# and OUT is on a disk that all of them share (such as Filestore). So is c4, or any TFDS dataset:
# export TFDS_DATA_DIR here, it is passed on.
set -euo pipefail
: "${TPU:?the name of the TPU}" "${ZONE:?its zone}" "${OUT:?the run directory, on a shared disk}"

printf -v train '%q ' env TFDS_DATA_DIR="${TFDS_DATA_DIR-}" jaxmodels train "$@" --out "$OUT"
code=75 killed=0
while [ "$code" -eq 75 ] || { [ "$code" -gt 128 ] && [ "$code" -lt 255 ] && [ "$killed" -le 10 ]; }; do
  code=0
  gcloud compute tpus tpu-vm ssh "$TPU" --zone "$ZONE" --worker=all \
    --command "PATH=\$HOME/jaxmodels/.venv/bin:\$PATH $train" || code=$?
  [ "$code" -le 128 ] || killed=$((killed + 1))
done
exit "$code"
