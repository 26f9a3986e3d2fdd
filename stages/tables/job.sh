#!/usr/bin/env bash
# One experiment in a clone of its own, pushed when it is done: for Slurm, or any scheduler of jobs. Run it again after
# a failure or an interruption: it goes on.
#
#   stages/tables/job.sh semantic-s0
#   sbatch --gpus=1 --array=1-72 stages/tables/job.sh      # the number of a line of `make tables TABLES=--list`
#
# The clone is of this repository's git remote `origin`, at this HEAD, which must be there. Outputs and the
# run cache go to DVC's default remote, the experiment to origin; runs to MLFLOW_TRACKING_URI. Fetch with
#
#   git fetch origin 'refs/exps/*:refs/exps/*' && make report
#
# SCRATCH: where clones are made (default: TMPDIR, /tmp). LISTING: another list than tables.yaml.
set -euo pipefail

here=$(git rev-parse --show-toplevel)
origin=$(git -C "$here" remote get-url origin)
head=$(git -C "$here" rev-parse HEAD)
listing=$(realpath "${LISTING:-$here/stages/tables/tables.yaml}")
campaign() { PYTHONPATH=src:stages python stages/tables/campaign.py --listing "$listing" "$@"; }

name=${1:-}
if [ -z "$name" ]; then
  : "${SLURM_ARRAY_TASK_ID:?name an experiment, or start this as an array of jobs}"
  cd "$here"
  name=$(campaign --list | sed -n "${SLURM_ARRAY_TASK_ID}p" | cut -d ' ' -f 1)
fi

# A job that was cut off goes on from its checkpoints, in the clone that it left.
clone=${SCRATCH:-${TMPDIR:-/tmp}}/flowprior-$name
[ -d "$clone/.git" ] || git clone --quiet "$origin" "$clone"
cd "$clone"
git fetch --quiet origin
git switch --quiet --force-create "job-$name" "$head"
[ ! -f "$here/.dvc/config.local" ] || cp "$here/.dvc/config.local" .dvc/
# What others have made need not be made again; the first has nothing to fetch.
dvc fetch --quiet --run-cache || echo "$name: nothing in the DVC remote yet"
campaign --only "^$name\$" --workers 1
dvc exp push --quiet origin "$name"
dvc push --quiet --run-cache
cd "$here"
rm -rf "$clone"
