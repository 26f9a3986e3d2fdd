"""Experiments as a Slurm array job: one task runs one experiment in a clone of its own, and pushes what came of it."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from flowprior.experiments.git import GitError, git
from flowprior.experiments.planned import Experiment
from flowprior.experiments.results import FOLDER
from flowprior.experiments.runner import LOGS, ExperimentError

TEMPLATE = """\
#!/usr/bin/env bash
# Experiments as a Slurm array, one in each task, written by `flowprior tables --slurm`. Submit it with sbatch, and
# again after failures: tasks go on from their checkpoints. Then take the results, in a repository that lacks them:
#
#   git fetch origin 'refs/exps/*:refs/exps/*' && flowprior tables --collect
#
# SCRATCH: where tasks make their clones, on the node (default: TMPDIR, /tmp).
# FLOWPRIOR_HOME: where checkpoints go, on a disk that all nodes share (default: the repository that wrote this, where
# a node sees it). MLFLOW_TRACKING_URI: where runs are tracked; a database file is no good for many nodes.
#SBATCH --job-name=flowprior
#SBATCH --array=0-{last}
#SBATCH --output={logs}/slurm-%A_%a.out
{options}set -euo pipefail

names=(
{names}
)
name=${{names[$SLURM_ARRAY_TASK_ID]}}
home={home}
export PATH={tools}:$PATH
export OMP_NUM_THREADS=${{OMP_NUM_THREADS:-${{SLURM_CPUS_PER_TASK:-1}}}}
[ ! -e "$home/.git" ] || export FLOWPRIOR_HOME=${{FLOWPRIOR_HOME:-$home}}

clone=$(mktemp -d "${{SCRATCH:-${{TMPDIR:-/tmp}}}}/flowprior-$name.XXXXXX")
trap 'rm -rf "$clone"' EXIT
git clone --quiet {origin} "$clone"
cd "$clone"
git switch --quiet --force-create job {commit}
[ ! -f "$home/.dvc/config.local" ] || cp "$home/.dvc/config.local" .dvc/
# What others have made need not be made again; the first has nothing to fetch.
dvc fetch --quiet --run-cache || echo "$name: nothing in the DVC remote yet"
PYTHONPATH=src python -m flowprior tables --run "$name"{tables}
dvc exp push --quiet --force origin "$name"
dvc push --quiet --run-cache
# The result with what it cost and where it ran, which DVC's experiment does not hold.
if [ -e "$home/.git" ]; then
  mkdir -p "$home/{results}"
  cp "{results}/$name.json" "$home/{results}/.$name.json.$SLURM_JOB_ID"
  mv "$home/{results}/.$name.json.$SLURM_JOB_ID" "$home/{results}/$name.json"
fi
"""


def slurm_script(
    root: Path,
    experiments: Sequence[Experiment],
    options: Sequence[str] = (),
    tables: Path | None = None,
) -> str:
    """The text of a job for sbatch.

    Args:
        root: The repository; the job clones its git remote `origin`, at its HEAD.
        experiments: What to run, one in each task.
        options: More of sbatch's options, such as `--gpus=1` or `--time=08:00:00`.
        tables: The file in the format of tables.yaml that lists them, on a disk that nodes see; None: tables.yaml.

    Raises:
        ExperimentError: There is nothing to run, no remote `origin`, or HEAD is not there.
    """
    if not experiments:
        raise ExperimentError("there is no experiment to write a job for")
    commit = git(root, "rev-parse", "HEAD")
    try:
        origin = git(root, "remote", "get-url", "origin")
    except GitError:
        raise ExperimentError(
            "jobs clone the git remote origin, and there is none; add one: git remote add origin <url>"
        ) from None
    if not git(root, "for-each-ref", f"--contains={commit}", "refs/remotes/origin"):
        raise ExperimentError(
            f"jobs clone origin, which lacks HEAD ({commit[:10]}); push it first: git push origin HEAD"
        )
    if Path(origin).is_dir():
        origin = str(Path(root, origin).resolve())
    logs = root.resolve() / LOGS
    logs.mkdir(
        parents=True, exist_ok=True
    )  # Slurm does not, and a job without a place for its output fails
    return TEMPLATE.format(
        last=len(experiments) - 1,
        logs=logs,
        options="".join(f"#SBATCH {option}\n" for option in options),
        names="\n".join(f"  {shlex.quote(experiment.name)}" for experiment in experiments),
        home=shlex.quote(str(root.resolve())),
        tools=shlex.quote(str(Path(sys.executable).parent)),
        origin=shlex.quote(origin),
        commit=commit,
        tables=f" --file {shlex.quote(str(tables.resolve()))}" if tables else "",
        results=FOLDER.as_posix(),
    )
