"""What several ranks gather is differentiated as if one process had all rows."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

WORK = """
import sys
from pathlib import Path
import torch
from torch import nn
from flowprior.core import rng
from flowprior.training.session import Optimizer, Plan, Session

out = Path(sys.argv[1])
plan = Plan(num_steps=3, log_steps=1, checkpoint_steps=9, precision="fp32")
optimizer = Optimizer(lr=0.1, warmup_steps=0, schedule="constant", beta2=0.95, weight_decay=0.0,
                      max_grad_norm=100.0, ema_decay=0.0)
with Session("ranks", config={}, inputs={}, seed=0, plan=plan, root=out) as session:
    with rng.scoped(0, "init"):
        module = nn.Linear(3, 2)
    learner = session.learner("line", module, optimizer)
    norms = []
    for step in session.steps():
        x = torch.randn(8, 3, generator=session.generator("x", step))
        everyone = session.gather(learner.module(session.share(x)))
        assert everyone.shape == (8, 2)
        norms.append(learner.update(everyone.var(0).log().square().sum() + everyone.mean(0).pow(3).sum()))
    if session.is_main:
        torch.save([torch.stack(norms), learner.averaged.weight, everyone.detach()], out / "result.pt")
"""


@pytest.mark.slow
def test_a_loss_of_gathered_rows_has_the_gradient_of_all_rows(tmp_path: Path) -> None:
    """Norms of the gradients, weights after three steps, and the order of the rows: one rank or two."""
    script = tmp_path / "work.py"
    script.write_text(WORK, encoding="utf-8")
    found = []
    for ranks in (1, 2):
        out = tmp_path / str(ranks)
        out.mkdir()
        command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        done = subprocess.run(
            [sys.executable, *command, str(script), str(out)],
            env={**os.environ, "FLOWPRIOR_MLFLOW": "off", "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        found.append(torch.load(out / "result.pt", weights_only=True))
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(two, one, rtol=1e-5, atol=1e-6)
