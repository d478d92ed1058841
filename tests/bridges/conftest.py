"""Every framework, for the tests that all of them pass, and an end to what hangs."""

import faulthandler
import os

import pytest

from tests.bridges.frameworks import FRAMEWORKS


@pytest.fixture(params=FRAMEWORKS, ids=lambda framework: framework.name)
def framework(request):
    return request.param


@pytest.fixture
def watchdog():
    """End the process with the traces of all threads if a test takes more than a minute."""
    faulthandler.dump_traceback_later(60, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


# It loads ART, which no other test may find loaded: `test_art_objectives.py` runs it in a process of its own.
collect_ignore = [] if os.environ.get("WITH_ART") else ["art_objectives.py"]
