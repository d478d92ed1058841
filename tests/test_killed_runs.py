"""A run that is killed at any moment goes on to the certificates of one that was not."""

import os
import signal
import subprocess
import sys
import time

import numpy as np

from jaxsmooth import read_votes

SERVER = """
import os, sys, time
from pathlib import Path
import jax, numpy as np
from jaxsmooth import Fixed, Gaussian, certify_dataset

def slow(x):
    time.sleep(0.0005)
    return np.asarray(x)[:, :3]

def run(path):
    rng = np.random.default_rng(0)
    data = [(rng.normal(size=4).astype(np.float32), idx % 3) for idx in range(11)]
    settings = {"batch_size": 40, "group": 2, "compiled": False, "progress": False}
    certify_dataset(slow, Gaussian(0.5), jax.random.key(3), data, path, mode=Fixed(n0=20, n=100), **settings)

for line in sys.stdin:
    child = os.fork()
    if child == 0:
        run(Path(line.strip()))
        os._exit(0)
    print(child, flush=True)
    sys.stdin.readline()  # until then an ended child keeps its number
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Server:
    """Starts runs in processes of their own that have imported everything, JAX not having begun anything."""

    def __init__(self, cache):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
        # The first run compiles for all.
        settings = {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        command = [sys.executable, "-W", "ignore", "-c", SERVER]
        self.process = subprocess.Popen(command, env={**os.environ, **settings}, **pipes)

    def run(self, path, kill_after=None):
        """Return the exit status of a run, which is killed `kill_after` seconds after its start."""
        self.process.stdin.write(f"{path}\n")
        self.process.stdin.flush()
        child = int(self.process.stdout.readline())
        if kill_after is not None:
            time.sleep(kill_after)
            os.kill(child, signal.SIGKILL)
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


def duration_of_a_run(server, path):
    began = time.monotonic()
    assert server.run(path) == 0
    return time.monotonic() - began


def assert_same_run(path, whole):
    logs = ([line.split("\t") for line in p.read_text().splitlines()] for p in (path, whole))
    without_time, expected = ([fields[:5] + fields[6:] for fields in log] for log in logs)
    assert without_time == expected
    run, other = (read_votes(f"{p}.votes") for p in (path, whole))
    assert sorted(run.idx) == list(range(11))
    np.testing.assert_array_equal(run.votes.counts[run.idx.argsort()], other.votes.counts[other.idx.argsort()])


def test_a_run_killed_at_30_random_moments_ends_in_the_same_certificates(tmp_path):
    server, rng, statuses = Server(tmp_path / "cache"), np.random.default_rng(0), []
    whole, path = tmp_path / "whole.tsv", tmp_path / "killed.tsv"
    votes = path.with_name("killed.tsv.votes")
    assert server.run(whole) == 0
    lasted = min(duration_of_a_run(server, tmp_path / f"again_{i}.tsv") for i in range(3))
    while statuses.count(-signal.SIGKILL) < 30:
        statuses.append(server.run(path, rng.uniform(0, lasted)))
        if statuses[-1] == 0:  # done before the kill came: begin again
            assert_same_run(path, whole)
            path.unlink()
            votes.unlink()
        elif votes.exists() and rng.uniform() < 0.5:
            # As a crash of the machine may leave it: the end of the last record is missing.
            votes.write_bytes(votes.read_bytes()[:-3])
    assert set(statuses) <= {0, -signal.SIGKILL}
    assert server.run(path) == 0
    assert_same_run(path, whole)
    server.close()
