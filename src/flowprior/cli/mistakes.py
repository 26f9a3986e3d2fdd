"""How mistakes in the parameters are told on the command line."""

from flowprior.config.messages import ParamsError


def unusable(error: ParamsError, where: str = "") -> ValueError:
    """The error for parameters that cannot be used: one line, or a head and a line for each of several mistakes.

    Args:
        error: What is wrong.
        where: What else the parameters were read with, for instance " with --preset smoke".
    """
    lines = str(error).splitlines()
    between = " " if len(lines) == 1 else "\n"
    return ValueError(f"the parameters cannot be used{where}:{between}" + "\n".join(lines))
