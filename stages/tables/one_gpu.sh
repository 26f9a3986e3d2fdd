#!/usr/bin/env bash
# A stage on a GPU that no other has, for queues with several workers on one machine:
#
#   make tables TABLES=--queue
#   LAUNCH=$PWD/stages/tables/one_gpu.sh dvc queue start -j 4
#
# Waits for the first GPU where all are taken; without GPUs it is python.
set -euo pipefail

count=$( (nvidia-smi --list-gpus 2>/dev/null || true) | wc -l)
for ((gpu = 0; gpu < count; gpu++)); do
  exec 9>"${TMPDIR:-/tmp}/flowprior-gpu-$gpu.lock"
  if flock --nonblock 9; then
    CUDA_VISIBLE_DEVICES=$gpu exec python "$@"
  fi
done
if ((count > 0)); then
  exec 9>"${TMPDIR:-/tmp}/flowprior-gpu-0.lock"
  flock 9
  export CUDA_VISIBLE_DEVICES=0
fi
exec python "$@"
