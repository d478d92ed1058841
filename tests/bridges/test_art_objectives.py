"""ART's classes that train by an objective, in a process of their own: here no test may load ART."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_classes_with_art_loaded():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/bridges/art_objectives.py"]
    environment = {**os.environ, "WITH_ART": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
