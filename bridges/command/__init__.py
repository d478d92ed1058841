"""The command `jaxsmooth`: certify, predict, train, report and check models of any framework."""

from bridges.command.main import main

__all__ = ["main"]
