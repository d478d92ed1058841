"""Bridges to other frameworks. Each is imported by its own name, for instance `bridges.pytorch`; this loads none."""
