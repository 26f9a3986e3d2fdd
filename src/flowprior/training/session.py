"""What every training loop shares, in one module: device, ranks, precision, updates, averages, checkpoints, curves.

The loop itself stays in the stage:

    with Session("train_flow", behaviour=..., config=..., inputs=..., seed=0, plan=plan) as session:
        learner = session.learner("velocity", velocity, optimizer)
        for step in session.steps():
            loss = ...
            learner.update(loss)
            session.log(step, loss=loss)

A run that was killed goes on from its last checkpoint and ends bit-identical (on a CPU) to one that
was not, because every draw comes from (seed, tag, step). A checkpoint is found by a key: the hash of
what decides the result, i.e. parameters, the version of the stage's behaviour and input digests;
another key never sees it. Code is not in the key: a run goes on when a message was edited, and says
that other code began it (`FLOWPRIOR_RESUME=strict` refuses).
"""

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from copy import deepcopy
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from flowprior.core import rng
from flowprior.core.device import start_accelerator
from flowprior.core.io import digest, write_atomic
from flowprior.core.locks import hold
from flowprior.core.ranks import gather_rows, rank_share
from flowprior.ops.machine import commit
from flowprior.ops.outcome import record
from flowprior.ops.tracking import Tracker
from flowprior.training.checkpoints import (
    code_digest,
    forget_finished,
    read_checkpoint,
    write_checkpoint,
)
from flowprior.training.learner import Learner
from flowprior.training.plan import NonFiniteError, Optimizer, OtherCodeError, Plan


class Session:
    """One stage in training on one or many ranks: learners, checkpoints, curves, tracking, and where to go on.

    Args:
        stage: Its name; also the folder of its checkpoints.
        behaviour: What decides the result besides the inputs, JSON-able, see `Params.behaviour`; None for `config`.
        config: The resolved parameters, for tracking.
        inputs: Digest of every input.
        seed: Of the run.
        plan: Lengths and cadences, a `Plan` or its fields.
        root: The repository; `.ckpt` and the tracking database are there.

    Attributes:
        accelerator: Device, ranks and precision.
        curves: Logged rows by table, for instance `curves["train"]`.
        began_at: Commit of the code that began the run, where other code than the present did; else None.
    """

    def __init__(
        self,
        stage: str,
        *,
        behaviour: Mapping[str, Any] | None = None,
        config: Mapping[str, Any],
        inputs: Mapping[str, str],
        seed: int,
        plan: Plan | Mapping[str, Any],
        root: Path,
    ) -> None:
        self.plan = plan if isinstance(plan, Plan) else Plan(**plan)
        self.accelerator = start_accelerator(self.plan.precision)
        self.stage = stage
        self.seed = seed
        self.curves: dict[str, list[dict[str, float]]] = {}
        self.seconds = 0.0
        self.started_at_step = 0
        key = digest([stage, dict(config if behaviour is None else behaviour), dict(inputs)])[:20]
        self.folder = root / ".ckpt" / stage / key
        self.began_at: str | None = None
        self._code = {"digest": code_digest(), "commit": commit()}
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        self._step = 0
        self._part = 0
        self._learners: dict[str, Learner] = {}
        self._lock: Any = None
        self.tracker = Tracker(stage, config, root, enabled=self.is_main)

    def __enter__(self) -> "Session":
        if self.is_main:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = hold(self.folder / "lock", self.stage)
            forget_finished(self.folder)
        self.accelerator.wait_for_everyone()
        ended = (self.folder / "finished").exists()
        self.tracker.start(None if ended else self.folder / "tracking.json")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self.tracker.finish({}, status="FAILED" if kind is not KeyboardInterrupt else "KILLED")
        if self._lock is not None:
            self._lock.close()

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which alone writes."""
        return bool(self.accelerator.is_main_process)

    @property
    def device(self) -> torch.device:
        """Where this rank computes."""
        device: torch.device = self.accelerator.device
        return device

    def learner(self, name: str, module: nn.Module, optimizer: Optimizer) -> Learner:
        """Register a module to train; all learners must exist before `steps`."""
        self._learners[name] = Learner(self, name, module, optimizer)
        return self._learners[name]

    def autocast(self) -> AbstractContextManager[None]:
        """The session's precision, for what is not a learner's forward."""
        context: AbstractContextManager[None] = self.accelerator.autocast()
        return context

    def generator(self, *tags: str | int, part: int | None = None) -> torch.Generator:
        """A generator for one purpose; equal on all ranks, so draw for the global batch and `share` it.

        Args:
            tags: The purpose.
            part: Of a step; None for the present one.
        """
        part = self._part if part is None else part
        return rng.generator(self.seed, self.stage, *tags, *_part_tags(part))

    def dropout(self, step: int) -> AbstractContextManager[None]:
        """Torch's global stream for a forward pass with dropout: masks of their own for each step, part and rank."""
        rank = self.accelerator.process_index
        tags = _part_tags(self._part) + (("rank", rank) if rank else ())
        return rng.scoped(self.seed, self.stage, "dropout", step, *tags)

    def share(self, batch: Tensor, dim: int = 0) -> Tensor:
        """This rank's part of something drawn for the global batch, on this rank's device."""
        return rank_share(batch, dim).to(self.device)

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of all ranks, in order, with a gradient to this rank's own, see `gather_rows`."""
        return gather_rows(rows)

    def steps(self) -> Iterator[int]:
        """Step numbers, from the last checkpoint to the end; saves on the way and at the end."""
        first = self._restore()
        self.started_at_step = first
        bar = tqdm(
            total=self.plan.num_steps,
            initial=first,
            desc=self.stage,
            unit="step",
            disable=None if self.is_main else True,
        )
        clock = time.perf_counter()
        with bar:
            self._bar = bar
            for step in range(first, self.plan.num_steps):
                yield step
                bar.update()
                self._step = step + 1
                if (step + 1) % self.plan.checkpoint_steps == 0 and step + 1 < self.plan.num_steps:
                    now = time.perf_counter()
                    self.seconds, clock = self.seconds + now - clock, now
                    self._save(step + 1)
        self.seconds += time.perf_counter() - clock
        if first < self.plan.num_steps:
            self._save(self.plan.num_steps)
        if self.is_main:
            write_atomic(self.folder / "finished", "")

    def parts(self) -> Iterator[int]:
        """Parts of a step, `plan.accumulate` of them, each with its own share of the batch and its own draws."""
        for part in range(self.plan.accumulate):
            self._part = part
            yield part
        self._part = 0

    @property
    def part(self) -> int:
        """The present part of a step."""
        return self._part

    @property
    def ends_step(self) -> bool:
        """Whether the present part is the last of its step."""
        return self._part == self.plan.accumulate - 1

    def looks(self, step: int) -> bool:
        """Whether a row of the training curve ends here."""
        ends = (step + 1) % self.plan.log_steps == 0 or step + 1 == self.plan.num_steps
        return ends and self.ends_step

    def log(self, step: int, **values: Tensor | float | None) -> None:
        """Add to the training curve; rows are means over `log_steps` updates, of those with a value, and over ranks."""
        for name, value in values.items():
            if value is None:
                continue
            number = value.item() if isinstance(value, Tensor) else value
            self._sums[name] = self._sums.get(name, 0.0) + number
            self._counts[name] = self._counts.get(name, 0) + 1
        if self.looks(step):
            self._end_row(step)

    def _end_row(self, step: int) -> None:
        row = {name: total / self._counts[name] for name, total in self._sums.items()}
        if self.accelerator.num_processes > 1:
            stacked = torch.tensor(list(row.values()), device=self.device)
            row = dict(zip(row, self.accelerator.reduce(stacked, "mean").tolist(), strict=True))
        self._sums, self._counts = {}, {}
        self.record("train", step + 1, row)
        self._bar.set_postfix({name: f"{value:.4g}" for name, value in row.items()})
        if self.is_main and self._bar.disable:
            shown = "  ".join(f"{name} {value:.4g}" for name, value in row.items())
            print(f"{self.stage}  step {step + 1}/{self.plan.num_steps}  {shown}", file=sys.stderr)

    def record(self, table: str, step: int, row: Mapping[str, float]) -> None:
        """Append a row to a curve of its own cadence."""
        self.curves.setdefault(table, []).append({"step": step, **row})
        self.tracker.log(step, {f"{table}/{name}": value for name, value in row.items()})

    def report(
        self,
        root: Path,
        facts: Mapping[str, Any],
        *,
        figures: Sequence[Path] = (),
        headline: Sequence[str] = (),
        **rates: float,
    ) -> None:
        """Write the stage's metrics into a workspace and end its run; see `flowprior.ops.outcome.record`."""
        record(
            root,
            self.stage,
            facts,
            self.tracker,
            self.seconds,
            figures=figures,
            headline=headline,
            began_at=self.began_at,
            **rates,
        )

    def non_finite(self, name: str, what: str, value: Tensor) -> NonFiniteError:
        """The error for a loss or gradient that is not finite."""
        saved = self.folder / "state.pt"
        kept = f"the last good checkpoint is {saved}" if saved.exists() else "no checkpoint yet"
        return NonFiniteError(
            f"{self.stage}: the {what} of the {name} is {float(value.detach())} at step {self._step}; "
            f"{kept}. Lower the learning rate or the weight, or look at the inputs"
        )

    def _save(self, step: int) -> None:
        if not self.is_main:
            return
        state = {
            "step": step,
            "code": self._code,
            "began_at": self.began_at,
            "seconds": self.seconds,
            "learners": {name: learner.state() for name, learner in self._learners.items()},
            "curves": json.dumps(self.curves),
            "sums": self._sums,
            "counts": self._counts,
        }
        write_checkpoint(self.folder / "state.pt", state)

    def _restore(self) -> int:
        self.accelerator.wait_for_everyone()
        path = self.folder / "state.pt"
        if not path.exists():
            return 0
        untouched = {name: deepcopy(learner.state()) for name, learner in self._learners.items()}
        try:
            state = read_checkpoint(path)
            for name, learner in self._learners.items():
                learner.load(state["learners"][name])
            curves = json.loads(state["curves"])
            sums, counts = dict(state["sums"]), dict(state["counts"])
            seconds, step = float(state["seconds"]), int(state["step"])
            code, began_at = dict(state["code"]), state["began_at"]
        except Exception as error:  # torch.load raises whatever the damaged bytes provoke
            for name, learner in self._learners.items():
                learner.load(untouched[name])
            self.accelerator.wait_for_everyone()
            if self.is_main:
                aside = path.with_suffix(".damaged")
                os.replace(path, aside)
                (self.folder / "finished").unlink(missing_ok=True)
                print(
                    f"{self.stage}: WARNING the checkpoint {path} cannot be read ({error}); "
                    f"it was set aside as {aside.name} and the stage starts over",
                    file=sys.stderr,
                )
            return 0
        self.began_at = began_at
        if code["digest"] != self._code["digest"]:
            self._say_other_code(path, code["commit"])
        self.curves, self._sums, self._counts, self.seconds = curves, sums, counts, seconds
        self._step = step
        if self.is_main:
            print(f"{self.stage}: goes on at step {step} of {self.plan.num_steps}", file=sys.stderr)
        return step

    def _say_other_code(self, path: Path, made_at: str) -> None:
        """Go on from what other code of the same version began, unless that is not wanted."""
        now = self._code["commit"]
        if os.environ.get("FLOWPRIOR_RESUME") == "strict":
            raise OtherCodeError(
                f"{self.stage}: the checkpoint {path} was made by other code (commit {made_at}, now {now}), and "
                "FLOWPRIOR_RESUME=strict refuses it; remove its folder to start over, or unset the variable"
            )
        self.began_at = self.began_at or made_at
        if self.is_main:
            print(
                f"{self.stage}: other code of the same version began this run (commit {self.began_at}, now {now})",
                file=sys.stderr,
            )


def _part_tags(part: int) -> tuple[str | int, ...]:
    return ("part", part) if part else ()
