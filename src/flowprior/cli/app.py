"""The command `flowprior`: its commands, and how mistakes are told.

Each command stands in a module of its own, which imports torch only when it runs, so that help and mistakes come at
once.
"""

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup

from flowprior.cli.export import export
from flowprior.cli.images import images
from flowprior.cli.prior import prior
from flowprior.core.extras import missing_extra

COMMANDS = ("config", "plan", "preflight", "sample", "tables", "report", "sync")
"""Of the pipeline: each a function in the module of its name."""
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
        except ModuleNotFoundError as error:
            line = missing_extra(error)
            if line is None:
                raise
            status = _tell(line)
        except (ValueError, OSError) as error:
            status = _tell(str(error))
        if status:
            raise SystemExit(status)


app = typer.Typer(
    cls=OneLineErrors,
    help="Flow priors for latent spaces: the pipeline's parameters, costs, experiments and samples; priors from files.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _add(name: str) -> None:
    """A command of the pipeline; where its packages are missing, one that says so."""
    try:
        command: Callable[..., None] = getattr(import_module(f"flowprior.cli.{name}"), name)
    except ModuleNotFoundError as error:
        missing = error
        if missing_extra(missing) is None:
            raise

        def command() -> None:
            raise missing

        settings = {"ignore_unknown_options": True, "allow_extra_args": True}
        app.command(name, help="(needs the extra 'pipeline')", context_settings=settings)(command)
    else:
        app.command()(command)


for _name in COMMANDS:
    _add(_name)
app.add_typer(prior, name="prior")
app.add_typer(export, name="export")
app.add_typer(images, name="images")


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
