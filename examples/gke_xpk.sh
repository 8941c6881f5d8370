#!/usr/bin/env bash
# Submits a training run to a GKE cluster with XPK: one process on each host of a TPU slice.
#
#   CLUSTER=my-cluster ZONE=us-east5-b IMAGE=gcr.io/my-project/jaxmodels TPU_TYPE=v5litepod-16 \
#     NAME=first OUT=/mnt/shared/runs/first examples/gke_xpk.sh wigip:1.7b --data c4
#
# The cluster restarts the run after exit code 75 (stopped, resumable), a killed process (XPK: 127 to
# 255) or a lost host, a hundred times at most; any other failure ends it.
#
# Requires: IMAGE is any image with Python 3.11 or later in which `pip install '.[tpu]'` was run, and
# OUT is on a disk that the cluster mounts into every workload:
#   xpk storage attach shared --cluster CLUSTER --zone ZONE --type gcpfilestore --auto-mount true \
#     --mount-point /mnt/shared --readonly false --instance INSTANCE --vol VOLUME
set -euo pipefail
: "${CLUSTER:?the cluster}" "${ZONE:?its zone}" "${IMAGE:?the image}" "${TPU_TYPE:?v5litepod-16, say}"
: "${NAME:?a name for the workload}" "${OUT:?the run directory, on a shared disk}"

printf -v train '%q ' env TFDS_DATA_DIR="${TFDS_DATA_DIR-}" jaxmodels train "$@" --out "$OUT"
# XPK runs the command in a subshell, which gets SIGTERM: exec replaces it by training, so that this
# can save before the host goes.
xpk workload create --cluster "$CLUSTER" --zone "$ZONE" --workload "$NAME" \
  --docker-image "$IMAGE" --tpu-type "$TPU_TYPE" --num-slices 1 --command "exec $train" \
  --max-restarts 100 --restart-on-exit-codes 75 --termination-grace-period-seconds 120
