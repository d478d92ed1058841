"""Where the packages whose data and models the tests use are installed."""

import importlib.util
from pathlib import Path


def folder(package):
    return Path(importlib.util.find_spec(package).origin).parent
