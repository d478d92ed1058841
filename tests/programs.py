"""How many programs JAX compiles, seen from outside."""

from contextlib import contextmanager

import jax.monitoring

_COMPILED = "/jax/core/compile/backend_compile_duration"


@contextmanager
def compiled_programs():
    """Give a list that gets one entry for each program that is compiled in the block."""
    found = []

    is_open = True

    def note(event, duration, **_):
        if is_open and event == _COMPILED:
            found.append(duration)

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        yield found
    finally:
        is_open = False
        if hasattr(jax.monitoring, "unregister_event_duration_listener"):  # not in the oldest JAX
            jax.monitoring.unregister_event_duration_listener(note)
