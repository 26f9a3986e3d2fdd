#!/usr/bin/env bash
# Training stages as on two nodes: two torchrun agents of one rank each that meet on the loopback. Not in CI.
#
#   tests/cluster/two_agents.sh /tmp/two-agents     # a copy of a repository in which `dvc repro` has run; it is changed
#
# Runs the training stages there on one rank, then on the two agents, and prints the held-out losses of both.
set -euo pipefail

cd "${1:?a copy of a repository in which dvc repro has run}"
export PYTHONPATH=src OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} FLOWPRIOR_MLFLOW=off
stages=(train_flow train_ae train_mar)

agent() {
  torchrun --nnodes=2 --node-rank="$1" --nproc-per-node=1 --rdzv-backend=c10d \
    --rdzv-endpoint="127.0.0.1:${PORT:-29511}" --rdzv-id="$2" "stages/$2.py"
}

losses() {
  python -c 'import json, pathlib, sys
keys = {"train_flow": "held_out_loss", "train_ae": "loss", "train_mar": "held_out_loss"}
read = lambda stage: json.loads(pathlib.Path(f"metrics/{stage}.json").read_text())
print(sys.argv[1], *(f"{stage} {read(stage)[key]:.6f}" for stage, key in keys.items()))' "$1"
}

rm -rf .ckpt
for stage in "${stages[@]}"; do python "stages/$stage.py" > "one-rank-$stage.log" 2>&1; done
losses "one rank:  "
rm -rf .ckpt
for stage in "${stages[@]}"; do
  agent 0 "$stage" > "agent-0-$stage.log" 2>&1 &
  agent 1 "$stage" > "agent-1-$stage.log" 2>&1 || { tail "agent-1-$stage.log"; exit 1; }
  wait $! || { tail "agent-0-$stage.log"; exit 1; }
done
losses "two agents:"
