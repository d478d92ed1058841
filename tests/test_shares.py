"""A run that processes share: real ones, killed ones, more or fewer of them, and the log that comes of all."""

import os
import signal
import socket
import subprocess
import sys
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from jaxsmooth import Fixed, Gaussian, certify_dataset, merge_shares, read_log, read_votes
from jaxsmooth.stores import VoteStore
from tests.shared_run import KEY, NOISE, N, examples


def whole(path):
    return certificates(certify(path))


def certify(path, share=None, **changes):
    settings = {"mode": Fixed(n=N), "share": share, "progress": False, **changes}
    return certify_dataset(lambda x: x[:, :3], NOISE, KEY, examples(), path, **settings)


def certificates(rows):
    return [(*row[:4], *row[5:]) for row in rows]


def start(path, kind, count, *pace):
    """Start the processes of a run on the loopback address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-W", "ignore", "-m", "tests.shared_run", str(path), kind, str(port)]
    return [
        subprocess.Popen([*command, str(i), str(count), *pace], env=environment, stdout=subprocess.PIPE)
        for i in range(count)
    ]


def finish(processes):
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes)
    assert all(output.endswith(b"done\n") for output in outputs)


@pytest.mark.parametrize(("count", "kind"), [(2, "torch"), (4, "jax")])
def test_processes_share_the_inputs_and_their_logs_merge(tmp_path, count, kind):
    pytest.importorskip(kind)
    finish(start(tmp_path / "run.tsv", kind, count))
    assert len(list(tmp_path.glob("run.*-of-*.tsv"))) == count
    merged = merge_shares(tmp_path / "run.tsv")
    # The settings differ in nothing: the two classifiers have no arrays.
    assert certificates(merged) == whole(tmp_path / "whole.tsv")
    assert read_log(tmp_path / "run.tsv")[0].settings == merged[0].settings


def test_a_process_that_is_killed_leaves_its_share_alone_to_be_resumed(tmp_path):
    path = tmp_path / "run.tsv"
    processes = start(path, "jax", 2, "slow")
    votes = tmp_path / "run.1-of-2.tsv.votes"
    limit = time.monotonic() + 60
    while not (votes.exists() and len(read_votes(votes).idx) >= 2):
        assert time.monotonic() < limit
        time.sleep(0.02)
    processes[1].send_signal(signal.SIGKILL)
    processes[1].communicate()
    assert processes[0].stdout.readline() == b"done\n"
    processes[0].kill()  # it would wait for the other one before it ends
    processes[0].communicate()
    done = {row.idx for row in merge_shares(path)}
    assert {0, 2, 4, 6, 8, 10, 12, 1, 3} <= done < set(range(13))
    before = votes.read_bytes()
    certify(path, share=(1, 2))
    assert votes.read_bytes().startswith(before)
    assert certificates(merge_shares(path)) == whole(tmp_path / "whole.tsv")
    indices = [idx for p in tmp_path.glob("run*.votes") for idx in read_votes(p).idx]
    assert sorted(indices) == list(range(13))


def test_a_run_goes_on_with_more_or_fewer_processes(tmp_path):
    path, expected = tmp_path / "run.tsv", whole(tmp_path / "whole.tsv")
    certify(path, share=(0, 2), most=6)
    rows = [row for index in range(3) for row in certify(path, share=(index, 3))]
    assert sorted(certificates(rows)) == expected
    assert (
        certificates(merge_shares(path)) == expected == certificates(certify(path)) == certificates(merge_shares(path))
    )
    indices = [idx for p in tmp_path.glob("run*.votes") for idx in read_votes(p).idx]
    assert sorted(indices) == list(range(13))


def test_shares_of_other_settings_or_other_certificates_are_refused(tmp_path):
    path = tmp_path / "run.tsv"
    certify(path, share=(0, 2))
    certify(tmp_path / "other.tsv", share=(1, 2), alpha=0.01)
    os.rename(tmp_path / "other.1-of-2.tsv.votes", tmp_path / "run.1-of-2.tsv.votes")
    with pytest.raises(ValueError, match="made under other settings"):
        merge_shares(path)
    with pytest.raises(ValueError, match="made under other settings"):
        certify(path, share=(0, 2))
    header, (row, *_) = VoteStore.read(tmp_path / "run.0-of-2.tsv.votes")
    (tmp_path / "run.1-of-2.tsv.votes").unlink()
    with VoteStore(tmp_path / "run.1-of-2.tsv.votes", header) as store:
        store.append(row._replace(radius=9.0))
    with pytest.raises(ValueError, match="certifies input 0 otherwise"):
        merge_shares(path)
    assert not path.exists()


def test_files_of_another_run_are_not_taken_for_shares(tmp_path):
    certify(tmp_path / "run.tsv")
    certify(tmp_path / "run.more.tsv", alpha=0.01)
    assert len(merge_shares(tmp_path / "run.tsv")) == 13
    with pytest.raises(ValueError, match="there is no file of votes of"):
        merge_shares(tmp_path / "none.tsv")


@pytest.mark.parametrize("share", [None, (1, 2)])
def test_a_share_of_another_classifier_is_refused(tmp_path, share):
    """Neither shows its weights, and both are right about most inputs: those with the closest votes tell them apart."""
    path, (x, y) = tmp_path / "run.tsv", close_and_far()

    def run(bias, share):
        def f(x):
            return jnp.stack([x[:, 0] + bias, -x[:, 0]], axis=1)

        mode = Fixed(n0=50, n=200)
        return certify_dataset(
            f, Gaussian(0.5), jax.random.key(0), (x, y), path, mode=mode, share=share, progress=False
        )

    run(0.3, (0, 2))
    with pytest.raises(ValueError, match="f must be the classifier of the run, on such a machine: input 4 got"):
        run(0.0, share)
    assert len(run(0.3, share)) == (len(x) if share is None else len(x) // 2)


def close_and_far():
    """Inputs far from the edge, but for one."""
    x = np.full((12, 3), 5, np.float32)
    x[4] = 0.01
    return x, np.zeros(12, int)


@pytest.mark.parametrize(("what", "message"), [("f", "f must be the classifier of the run"), ("data", "another one")])
def test_processes_that_begin_together_compare_their_shares_at_the_end(tmp_path, what, message):
    data, began = examples(), []
    others = {"f": lambda x: -np.asarray(x)[:, :3], "data": [(x + 1, y) for x, y in data]}
    settings = {"mode": Fixed(n=N), "progress": False, "compiled": False, "check": False}
    path = tmp_path / "run.tsv"

    def run(f, data, share):
        return certify_dataset(f, NOISE, KEY, data, path, share=share, **settings)

    def f(x):
        # Once the first process has compared what was there, and found nothing, the second one does all of its share.
        if path.with_name("run.0-of-2.tsv.votes").exists() and not began:
            began.append(True)
            run(others["f"] if what == "f" else f, others["data"] if what == "data" else data, (1, 2))
        return np.asarray(x)[:, :3]

    with pytest.raises(ValueError, match=message):
        run(f, data, (0, 2))
    assert [len(read_log(path.with_name(f"run.{index}-of-2.tsv"))) for index in (0, 1)] == [7, 6]


def test_shares_of_a_generator_need_a_classifier_that_shows_its_weights(tmp_path):
    """The votes of the other share cannot be compared: their inputs cannot be asked for."""
    x, y = close_and_far()
    made = {"plain": lambda x: jnp.stack([x[:, 0], -x[:, 0]], axis=1)}
    made["pytree"] = Partial(lambda w, x: w * jnp.stack([x[:, 0], -x[:, 0]], axis=1), jnp.ones(()))
    run = partial(certify_dataset, noise=Gaussian(0.5), key=jax.random.key(0), mode=Fixed(n0=50, n=200), progress=False)
    with pytest.raises(ValueError, match=r"data must be indexed .* where processes share the inputs"):
        run(made["plain"], data=iter(zip(x, y, strict=True)), path=tmp_path / "a.tsv", share=(0, 2))
    assert not (tmp_path / "a.0-of-2.tsv").exists()
    for index in (0, 1):
        run(made["pytree"], data=iter(zip(x, y, strict=True)), path=tmp_path / "b.tsv", share=(index, 2))
    assert len(merge_shares(tmp_path / "b.tsv")) == len(x)
