"""The command `jaxsmooth`: certify, predict, train, report and check models of any framework."""

import signal

__all__ = ["main"]


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status: 0, 2 for what is refused, 130 for an interrupt."""
    # An interrupt while JAX is imported could be lost in one of its callbacks. Nothing needs to be saved yet, so that
    # it may end the process at once.
    handler = signal.getsignal(signal.SIGINT)
    if handler is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from bridges.command.cli import run

    if handler is signal.default_int_handler:
        signal.signal(signal.SIGINT, handler)
    return run(argv)
