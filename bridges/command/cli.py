"""The command line: one parser, five subcommands, and one sentence for what goes wrong."""

import argparse
import sys
import traceback
from typing import Any, NoReturn

import jax

import jaxsmooth
from bridges.command import certifying, checking, reporting, training
from bridges.command.factories import FactoryError
from jaxsmooth.stores import OtherRunError

DESCRIPTION = """certified robustness by randomized smoothing (Cohen et al. 2019, arXiv:1902.02918)

`jaxsmooth COMMAND --help` explains each, with an example."""

EXAMPLE = """
example, in a clone of the repository with the extras `examples` and `torch` (half a minute in all on two cores):

  jaxsmooth train examples/models.py:mnist_torch examples/models.py:mnist_training weights --sigma 0.5 --epochs 4
  jaxsmooth certify examples/models.py:mnist_torch examples/models.py:mnist_test run.tsv --weights weights \\
      --sigma 0.5 --n 1000 --max 50
  jaxsmooth report run.tsv --picture curves.pdf
"""

_MORE = """and a look at the model before, and its classes without radii (ten seconds each):

  jaxsmooth check examples/models.py:mnist_torch examples/models.py:mnist_test --weights weights --sigma 0.5
  jaxsmooth predict examples/models.py:mnist_torch examples/models.py:mnist_test classes.tsv --weights weights \\
      --sigma 0.5 --max 50
"""


class _Parser(argparse.ArgumentParser):
    """A parser that says what is wrong in one sentence, and where the manual is."""

    def error(self, message: str) -> NoReturn:
        """Print the sentence and exit with status 2."""
        self.exit(2, f"{self.prog}: error: {message} ({self.prog} --help explains)\n")


def run(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status: 0, 2 for what is refused, 130 for an interrupt."""
    parser = _Parser(prog="jaxsmooth", description=DESCRIPTION, epilog=EXAMPLE, formatter_class=_Manual)
    parser.add_argument("--version", action="version", version=f"jaxsmooth {jaxsmooth.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)
    for name, module, function in (
        ("certify", certifying, certifying.certify),
        ("predict", certifying, certifying.predict),
        ("train", training, training.train),
        ("report", reporting, reporting.report),
        ("check", checking, checking.check),
    ):
        manual = (function.__doc__ or "").strip()
        first = manual.splitlines()[0]
        # Abbreviated flags would change their meaning when a flag is added.
        texts: Any = {"help": first, "description": _as_manual(manual), "epilog": EXAMPLE + _MORE}
        own = commands.add_parser(name, allow_abbrev=False, formatter_class=_Manual, **texts)
        module.add_arguments(own, name)
        own.add_argument("--traceback", action="store_true", help="show where an error was raised")
        own.set_defaults(run=function)
    arguments = parser.parse_args(argv)
    try:
        return arguments.run(arguments)
    except FactoryError as error:
        traceback.print_exception(error.__cause__)
        print(f"jaxsmooth: error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `jaxsmooth report ... | head`
        sys.stderr.close()
        return 0
    except (ValueError, TypeError, OSError, ImportError) as error:
        if arguments.traceback:
            raise
        print(f"jaxsmooth: error: {_sentence(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\njaxsmooth: ended; nothing was written", file=sys.stderr)
        return 130


def _sentence(error: BaseException) -> str:
    """Return what went wrong, in the words of the command line."""
    if isinstance(error, (jax.errors.TracerArrayConversionError, jax.errors.ConcretizationTypeError)):
        return "MODEL must be a function that JAX can trace: give --untraced for one that works on arrays of NumPy"
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"this needs the package {error.name.partition('.')[0]}, which is not installed"
    said = str(error).replace("compiled=False", "compiled=False (here: --untraced)")
    if isinstance(error, OtherRunError):
        said += ". Another LOG, or --overwrite, begins a new run"
    return said


class _Manual(argparse.RawDescriptionHelpFormatter):
    """Texts as they are, wide enough to read, and values that are not given twice."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=100)


def _as_manual(text: str) -> str:
    """Return a docstring without its indentation."""
    first, *rest = text.splitlines()
    return "\n".join([first, *(line.removeprefix("    ") for line in rest)])
