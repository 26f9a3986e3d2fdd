"""The command `flowprior`: its commands, and how mistakes are told.

Each command stands in a module of its own, which imports torch only when it runs, so that help and mistakes come at
once.
"""

from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperGroup

from flowprior.cli.config import config
from flowprior.cli.plan import plan
from flowprior.cli.preflight import preflight
from flowprior.cli.report import report
from flowprior.cli.sample import sample
from flowprior.cli.sync import sync
from flowprior.cli.tables import tables

CommandLineError: type[Exception] = typer.BadParameter.mro()[2]
"""What typer's own errors have in common; typer gives it no public name."""
MISTAKE = 2
"""Exit status for what the user has to put right. What is missing or failed is 1."""
INTERRUPTED = 130


class OneLineErrors(TyperGroup):
    """Commands whose mistakes are told in a line on stderr, without usage or traceback."""

    def main(self, *args: Any, **options: Any) -> Any:
        """Run the command that the arguments name; exit with its status where that is not 0."""
        try:
            status = super().main(*args, **options | {"standalone_mode": False})
        except typer.Abort:
            status = INTERRUPTED
        except CommandLineError as error:
            status = _tell(error.format_message())  # type: ignore[attr-defined]
        except (ValueError, OSError) as error:
            status = _tell(str(error))
        if status:
            raise SystemExit(status)


app = typer.Typer(
    cls=OneLineErrors,
    help="Flow priors for latent spaces: the pipeline's parameters, costs, experiments and samples.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for command in (config, plan, preflight, sample, tables, report, sync):
    app.command()(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command line, by default this process's.

    Args:
        arguments: What stands behind the command's name.

    Raises:
        SystemExit: 2 after a mistake, 1 where something is missing or failed, 130 after Ctrl-C.
    """
    app(None if arguments is None else list(arguments), prog_name="flowprior")


def _tell(message: str) -> int:
    typer.echo(f"flowprior: {message}", err=True)
    return MISTAKE
