"""Bridges to other frameworks. Each is imported by its own name, for instance `bridges.pytorch`; this loads none."""

from bridges.memory import free_one_block

free_one_block()  # memory of a batch is used for the next one from here on
