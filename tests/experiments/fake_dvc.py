"""What stands in DVC's place in quick tests: writes the files of a run at once, without running any stage.

The folder FAKE_DVC_NOTES gets a line in `events` for each command; `fail-<name>` there makes an experiment fail, and
while there is `hang`, experiments do not end.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import yaml

NOTES = Path(os.environ["FAKE_DVC_NOTES"])
STAGES = (
    "extract_features",
    "project",
    "train_flow",
    "train_ae",
    "encode_latents",
    "train_mar",
    "sample_eval",
)


def note(*words: str) -> None:
    """Add a line to the events; whole, whoever else writes."""
    with (NOTES / "events").open("a") as file:
        file.write(" ".join(words) + "\n")


def git(*command: str) -> str:
    """What git prints in the clone."""
    done = subprocess.run(["git", *command], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def set_params(settings: list[str]) -> None:
    """As DVC does: a key that is there is set plainly, one that is not with a plus."""
    path = Path("params.yaml")
    tree = yaml.safe_load(path.read_text())
    for setting in settings:
        key, _, value = setting.removeprefix("+").partition("=")
        *sections, last = key.split(".")
        here = tree
        for name in sections:
            here = here.setdefault(name, {})
        if (last in here) == setting.startswith("+"):
            sys.exit(f"ERROR: {setting}: a plus is for keys that are not there, and for them alone")
        here[last] = yaml.safe_load(value)
    path.write_text(yaml.safe_dump(tree))


def run(name: str, settings: list[str]) -> None:
    """Write metrics, costs, curves and pictures, and commit them as an experiment."""
    note("start", name, os.environ["OMP_NUM_THREADS"], os.environ["FLOWPRIOR_HOME"])
    set_params(settings)
    if (NOTES / f"fail-{name}").exists():
        print("Running stages")
        sys.exit(f"ERROR: failed to reproduce {name}")
    while (NOTES / "hang").exists():
        time.sleep(0.05)
    if Path("metrics/costs").exists():
        sys.exit("ERROR: costs of another run are there")
    for folder in ("metrics/costs", "metrics/curves", "metrics/sheets"):
        Path(folder).mkdir(parents=True, exist_ok=True)
    head = git("rev-parse", "HEAD")
    for stage in STAGES:
        Path(f"metrics/{stage}.json").write_text(json.dumps({"score": 0.5, "seed": 0}))
        if stage != "extract_features":  # as if that came from the cache
            began = "0123456789ab" if stage == "train_ae" else None
            costs = {
                "seconds": 2.5,
                "machine": {"cpu": "some", "threads": 1},
                "commit": head,
                "began_at": began,
            }
            Path(f"metrics/costs/{stage}.json").write_text(json.dumps(costs))
    Path("metrics/curves/alignment.csv").write_text("step,alignment_loss\n1,2.5\n2,1.5\n")
    for sheet in ("samples", "reconstructions"):
        Path(f"metrics/sheets/{sheet}.png").write_bytes(b"\x89PNG" + name.encode())
    git("add", "-A")
    commit = git("commit-tree", git("write-tree"), "-p", head, "-m", name)
    git("update-ref", f"refs/exps/{head[:2]}/{head[2:]}/{name}", commit, "0" * 40)
    note("end", name)


def main(arguments: list[str]) -> None:
    """Do what a command of DVC would leave behind."""
    match arguments:
        case ["cache", "dir"]:
            print(Path(".dvc/cache").resolve())
        case ["config", "--local", "cache.dir", folder]:
            Path(".dvc/config.local").write_text(f"[cache]\n    dir = {folder}\n")
        case ["exp", "run", "--name", name, *rest]:
            run(name, [setting for setting in rest if setting != "-S"])
        case ["exp", "push", "--force", "--no-cache", "origin", name]:
            head = git("rev-parse", "HEAD")
            ref = f"refs/exps/{head[:2]}/{head[2:]}/{name}"
            git("push", "--force", "origin", f"{ref}:{ref}")
            note("push", name)
        case _:
            sys.exit(f"ERROR: unknown command {arguments}")


if __name__ == "__main__":
    main(sys.argv[1:])
