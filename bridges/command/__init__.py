"""The command `jaxsmooth`: certify, predict, train, report and check models of any framework."""

import _thread
import signal
import threading
from typing import Any

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
        signal.signal(signal.SIGINT, _interrupt)
    try:
        return run(argv)
    finally:
        if handler is signal.default_int_handler:
            signal.signal(signal.SIGINT, handler)


def _interrupt(number: int, frame: Any) -> None:
    """Raise KeyboardInterrupt: a moment later, where JAX's callback of the garbage collector runs, which loses it."""
    while frame is not None:
        if frame.f_code.co_name == "_xla_gc_callback":
            threading.Timer(0.05, _thread.interrupt_main, [number]).start()
            return
        frame = frame.f_back
    raise KeyboardInterrupt
