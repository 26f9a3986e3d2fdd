"""Compare the behaviour of all branches with the record, or write the record anew."""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from flowprior.config.versions import VERSIONS

from .branches import RECORDED, changes, observe

parser = argparse.ArgumentParser(prog="python -m tests.behaviour", description=__doc__)
parser.add_argument("--record", action="store_true", help="write recorded.json anew")
options = parser.parse_args()
recorded = json.loads(RECORDED.read_text(encoding="utf-8")) if RECORDED.exists() else {}
found: dict = {}
said = []
with tempfile.TemporaryDirectory() as folder:
    for branch, now in observe(Path(folder) / "workspace"):
        entry = found.setdefault(branch.stage, {"version": VERSIONS[branch.stage], "branches": {}})
        entry["branches"][branch.name] = now
        said += changes(recorded, branch, now)
if options.record:
    RECORDED.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
else:
    print("\n".join(said) or "every stage behaves as its version did")
    sys.exit(bool(said))
