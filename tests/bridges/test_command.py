"""The command: every subcommand on models and data of every kind, and one sentence for what goes wrong."""

import contextlib
import csv
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pandas
import pytest
import torch
from PIL import Image

import bridges.tensorflow
import jaxsmooth
from bridges.command import main, weights
from jaxsmooth import LogRow, read_log, read_votes, write_log
from tests.bridges.architectures import with_torchvision

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
MODELS = f"{EXAMPLES / 'models.py'}"
COMMANDS = ["certify", "predict", "train", "report", "check"]

USER = """
import functools
import numpy as np

def classifier():
    return lambda x: x[:, :3]

def of_numpy():
    return lambda x: np.asarray(x)[:, :3]

def of_the_batch():
    return lambda x: x[:, :3] - x[:, :3].mean(axis=0, keepdims=True)

def pairs():
    return [(row, int(row.argmax())) for row in np.eye(3, 4, dtype="float32")]

def broken():
    raise RuntimeError("no such luck")

def number():
    return 3

def invalid():
    return lambda x: x[:, :3].at[:].set(np.nan)

def for_five():
    return lambda x: x @ np.ones((5, 3), np.float32)

def torch_for_five():
    from torch import nn
    return nn.Linear(5, 3)

def of_a_dict():
    return {"x": np.eye(3, 4, dtype="float32"), "y": np.arange(3)}

def of_one_array():
    return np.eye(3, 4, dtype="float32")

def of_triples():
    return [(row, 0, 1.0) for row in np.eye(3, 4, dtype="float32")]

def in_batches():
    return [(np.eye(3, 4, dtype="float32"), np.arange(3))] * 2

_STREAM = iter([(row, 0) for row in np.eye(40, 4, dtype="float32")])

def of_one_stream():
    return (pair for pair in _STREAM)

def of_new_streams():
    return (pair for pair in pairs())

class Held:
    def __init__(self):
        self.pairs = of_new_streams()

    def __iter__(self):
        return self.pairs

def of_held_streams():
    return Held()

def _given(function):
    @functools.wraps(function)
    def made():
        return function(3)
    return made

@_given
def wrapped(classes):
    return lambda x: x[:, :classes]

def itself(x):
    return x[:, :3]

def of_two_classes():
    return lambda x: x[:, :2]

def with_softmax():
    from torch import nn
    return nn.Sequential(nn.Linear(4, 3), nn.Softmax(1))

def one_hot():
    return np.eye(3, 4, dtype="float32"), np.eye(3)

def whole_numbers():
    return np.eye(3, 4, dtype="uint8"), np.arange(3)

def numbered_from_one():
    return np.zeros((500, 4), "float32"), np.arange(500) // 200 + 1

def of_bytes():
    return 255 * np.eye(3, 4, dtype="float32"), np.arange(3)
"""

MODULE = """
from torch import nn

network = nn.Linear(4, 3)
"""


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Return a function that runs the command in an empty folder, but in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "mine.py").write_text(USER)
    np.savez(
        tmp_path / "data.npz", x=np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32), y=np.arange(9) % 3
    )

    def run_command(*words):
        sys.modules.pop("mine", None)
        try:
            status = main([str(word) for word in words])
        except SystemExit as stopped:
            status = stopped.code
        shown = capsys.readouterr()
        return SimpleNamespace(status=status, out=shown.out, err=shown.err)

    return run_command


@pytest.fixture(scope="module")
def mnist(tmp_path_factory):
    """A file of 1,000 real images, `[28, 28, 1]`."""
    path = tmp_path_factory.mktemp("data") / "mnist.npz"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        import models

        x, y = models.mnist_test()
    np.savez(path, x=x, y=y)
    return str(path)


SHORT = ("--sigma", "0.5", "--n", "200", "--quiet")


# -- certify and predict


def test_a_run_gives_the_certificates_of_the_function(run, tmp_path):
    done = run("certify", "mine:classifier", "data.npz", "run.tsv", *SHORT, "--seed", "3", "--records", "r.csv")
    assert done.status == 0, done.err
    file = np.load(tmp_path / "data.npz")
    expected = jaxsmooth.certify(
        lambda x: x[:, :3], jaxsmooth.Gaussian(0.5), jaxsmooth.key_of_seed(3), file["x"], n=200
    )
    rows = read_log(tmp_path / "run.tsv")
    assert [row.predict for row in rows] == expected.label.tolist()
    assert [row.label for row in rows] == file["y"].tolist()
    table = jaxsmooth.report_table({"run": rows}, np.arange(7) * 0.25)
    assert done.out.strip().splitlines()[0] == table.splitlines()[0]
    frame = pandas.read_csv("r.csv")
    np.testing.assert_array_equal(frame["radius"].astype(np.float32), expected.radius)
    assert frame["correct"].tolist() == [row.correct for row in rows]
    assert list(frame.columns) == ["run", *LogRow._fields, "correct"]


def test_the_summary_for_machines_has_the_figures_of_the_table(run):
    done = run("certify", "mine:classifier", "data.npz", "run.tsv", *SHORT, "--radii", 0.1, 0.3, "--json")
    found = json.loads(done.out)
    rows = read_log("run.tsv")
    assert found["inputs"] == found["planned"] == len(rows)
    columns = [np.array([getattr(row, name) for row in rows]) for name in ("predict", "radius", "label")]
    assert found["certified_accuracy"] == jaxsmooth.certified_accuracy(*columns, [0.1, 0.3]).tolist()
    assert found["settings"] == rows[0].settings
    assert str(found["seed"]) in done.err
    again = run("report", "mine=run.tsv", "--radii", 0.1, 0.3, "--json", "--records", "r.json")
    assert json.loads(again.out)["mine"]["certified_accuracy"] == found["certified_accuracy"]
    records = json.loads(Path("r.json").read_text())
    assert [record["idx"] for record in records] == list(range(9))
    assert {record["run"] for record in records} == {"mine"}


@pytest.mark.parametrize(
    ("flags", "noise"),
    [
        ((), jaxsmooth.Gaussian(0.5)),
        (("--noise", "laplace"), jaxsmooth.Laplace(0.5)),
        (("--noise", "uniform"), jaxsmooth.Uniform(0.5)),
        (("--noise", "lattice", "--step", "1/8"), jaxsmooth.LatticeGaussian(0.5, 0.125)),
    ],
)
def test_every_noise(run, flags, noise):
    done = run("predict", "mine:classifier", "mine:pairs", "run.tsv", *SHORT, *flags, "--json")
    assert done.status == 0, done.err
    assert set(json.loads(done.out)) == {"command", "log", "seed", "inputs", "right", "wrong", "abstained"}
    settings = read_votes("run.tsv.votes").settings
    assert settings["noise"].startswith(f"{type(noise).__name__}(")
    assert settings["norm"] == noise.norm


def test_the_same_command_goes_on_and_other_settings_are_refused(run, tmp_path):
    flags = ("mine:classifier", "data.npz", "run.tsv", *SHORT)
    first = run("certify", *flags, "--max", 4)
    assert first.status == 0
    seed = int(re.search(r"seed of the votes: (\d+)", first.err).group(1))
    assert "seed" not in first.out
    whole = run("certify", *flags)
    assert whole.status == 0
    assert "run.tsv has 4 inputs already" in whole.err
    assert "no input was asked for" in run("certify", *flags[:2], "none.tsv", *SHORT, "--max", 0).err
    for path in tmp_path.glob("none.tsv*"):
        path.unlink()
    kept = read_votes("run.tsv.votes")
    again = run("certify", *flags[:2], "again.tsv", *SHORT, "--seed", seed)
    assert again.status == 0
    np.testing.assert_array_equal(kept.votes.counts, read_votes("again.tsv.votes").votes.counts)
    before = Path("run.tsv").read_bytes()
    other = run("certify", *flags, "--alpha", "0.01")
    assert other.status == 2
    assert other.err.splitlines()[-1].startswith("jaxsmooth: error: run.tsv.votes was made under other settings: alpha")
    assert other.err.splitlines()[-1].endswith("Another LOG, or --overwrite, begins a new run")
    assert Path("run.tsv").read_bytes() == before
    assert run("certify", *flags, "--resume").status == 0
    missing = run("certify", *flags[:2], "none.tsv", *SHORT, "--resume")
    assert (missing.status, missing.out) == (2, "")
    assert "--resume needs a run to go on from" in missing.err
    assert not (tmp_path / "none.tsv").exists()


def test_overwriting_keeps_the_old_run_until_the_new_one_is_finished(run, tmp_path, monkeypatch):
    flags = ("mine:classifier", "data.npz", "run.tsv", *SHORT)
    assert run("certify", *flags, "--seed", 1).status == 0
    before = {name: Path(name).read_bytes() for name in ("run.tsv", "run.tsv.votes")}

    def interrupted(*arguments, **settings):
        jaxsmooth_certify(*arguments, **{**settings, "most": 4})
        raise KeyboardInterrupt

    jaxsmooth_certify = jaxsmooth.certify_dataset
    monkeypatch.setattr(jaxsmooth, "certify_dataset", interrupted)
    ended = run("certify", *flags, "--seed", 2, "--overwrite")
    assert ended.status == 130
    assert ended.err.splitlines()[-1] == "jaxsmooth: ended: 4 of 9 done, the same command goes on"
    assert {name: Path(name).read_bytes() for name in before} == before
    monkeypatch.setattr(jaxsmooth, "certify_dataset", jaxsmooth_certify)
    assert run("certify", *flags, "--seed", 2, "--overwrite").status == 0
    assert read_log("run.tsv")[0].settings["key"] == "0,2"
    assert read_votes("run.tsv.votes").settings["key"] == [0, 2]
    assert not list(tmp_path.glob("*.new*"))
    nothing = run("certify", *flags, "--seed", 3, "--max", 0, "--overwrite")
    assert nothing.status == 2
    assert read_log("run.tsv")[0].settings["key"] == "0,2"


def test_files_that_are_read_are_not_overwritten(run, tmp_path):
    before = (tmp_path / "data.npz").read_bytes()
    flags = ("certify", "mine:classifier", "data.npz")
    assert "LOG must be a file of its own" in run(*flags, "data.npz", *SHORT, "--overwrite").err
    (tmp_path / "other.txt").write_text("kept")
    assert "LOG must be a log to be overwritten" in run(*flags, "other.txt", *SHORT, "--overwrite").err
    assert "--records must be a file of its own" in run(*flags, "run.csv", *SHORT, "--records", "run.csv").err
    assert run(*flags, "run.csv", *SHORT).status == 0
    assert "--records must be a file of its own" in run("report", "run.csv", "--records", "run.csv").err
    assert (tmp_path / "data.npz").read_bytes() == before
    assert (tmp_path / "other.txt").read_text() == "kept"


def test_files_of_two_folders_do_not_mix_their_neighbours(run, tmp_path):
    """A `layers` of the model is not that of the data, and the working directory comes first for a module."""
    for name, scale in (("a", 1), ("b", 2)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "layers.py").write_text(f"SCALE = {scale}")
        (folder / "models.py").write_text(
            "import numpy as np\nfrom layers import SCALE\n\ndef model():\n    return lambda x: x * SCALE\n\n"
            "def data():\n    return np.full((2, 3), SCALE, 'f4'), np.zeros(2, int)\n"
        )
    (tmp_path / "models.py").write_text(
        "import numpy as np\n\ndef data():\n    return np.full((2, 3), 7, 'f4'), [0, 0]\n"
    )
    found = {}
    for data in ("b/models.py:data", "a/models.py:data", "models:data"):
        name = data.replace("/", "-").replace(":", "-")
        done = run("predict", "a/models.py:model", data, f"{name}.tsv", *SHORT, "--seed", 0, "--no-check")
        assert done.status == 0, done.err
        found[data] = int(read_votes(f"{name}.tsv.votes").inputs[0])
    assert len(set(found.values())) == 3


def test_overwriting_begins_again_and_loses_nothing_where_the_new_run_is_refused(run, tmp_path):
    flags = ("data.npz", "run.tsv", *SHORT)
    assert run("certify", "mine:classifier", *flags, "--seed", 1).status == 0
    before = {path.name: path.read_bytes() for path in tmp_path.glob("run.tsv*") if path.suffix != ".lock"}
    refused = run("certify", "mine:of_the_batch", *flags, "--overwrite")
    assert refused.status == 2
    assert "its scores depend on the batch" in refused.err
    assert {path.name: path.read_bytes() for path in tmp_path.glob("run.tsv*") if path.suffix != ".lock"} == before
    done = run("certify", "mine:classifier", *flags, "--overwrite", "--seed", 2, "--alpha", 0.01)
    assert done.status == 0, done.err
    assert read_log("run.tsv")[0].settings["alpha"] == "0.01"
    names = {path.name for path in tmp_path.glob("run.tsv*")}
    assert names == {"run.tsv", "run.tsv.votes", "run.tsv.noise", "run.tsv.votes.lock"}
    assert run("certify", "mine:classifier", *flags, "--overwrite", "--no-check").status == 0
    assert not Path("run.tsv.noise").exists()  # it was about the run before
    both = run("certify", "mine:classifier", *flags, "--overwrite", "--resume")
    assert both.status == 2
    assert "not allowed with" in both.err


def test_overwriting_takes_no_log_of_another_name_and_begins_again_after_another_run(run, monkeypatch):
    flags = ("mine:classifier", "data.npz", "run.tsv", *SHORT)
    for name in ("run.tsv", "run.new.tsv"):
        assert run("certify", *flags[:2], name, *SHORT, "--seed", 1).status == 0
    other = Path("run.new.tsv").read_bytes()
    assert run("certify", *flags, "--overwrite").status == 0
    assert Path("run.new.tsv").read_bytes() == other
    assert read_log("run.tsv")[0].settings["key"] != "0,1"

    def interrupted(*arguments, **settings):
        certify_dataset(*arguments, **{**settings, "most": 4})
        raise KeyboardInterrupt

    certify_dataset = jaxsmooth.certify_dataset
    with np.load("data.npz") as data:
        np.savez("moved.npz", x=data["x"] + 1, y=data["y"])
    with_other_sigma = [0.25 if word == "0.5" else word for word in flags]
    with_other_data = [flags[0], "moved.npz", *with_other_sigma[2:]]
    for before, now in ((flags, with_other_sigma), (with_other_sigma, with_other_data)):
        with monkeypatch.context() as patch:
            patch.setattr(jaxsmooth, "certify_dataset", interrupted)
            assert run("certify", *before, "--overwrite").status == 130
        refused = run("certify", *now, "--overwrite")
        assert refused.status == 2
        assert "what an ended --overwrite of another run left is removed: call again" in refused.err
        assert run("certify", *now, "--overwrite").status == 0
    assert "sigma=0.25" in read_log("run.tsv")[0].settings["noise"]
    # Not the draft of a run is compared with other data, but the run: it says what begins a new one.
    other = run("certify", *with_other_sigma)
    assert other.status == 2
    assert "is another one than in the file of votes. Another LOG, or --overwrite, begins a new run" in other.err


def test_names_of_logs_without_an_ending_and_shares_of_predictions(run):
    for name in ("sigma_0.25", "sigma_0.50"):
        done = run("certify", "mine:classifier", "data.npz", name, *SHORT, "--records", f"{name}.csv")
        assert done.out.splitlines()[1].split()[0] == name
        assert set(pandas.read_csv(f"{name}.csv")["run"]) == {name}
    found = json.loads(run("predict", "mine:classifier", "data.npz", "p.tsv", *SHORT, "--json").out)
    assert found["right"] + found["wrong"] + found["abstained"] == pytest.approx(1)
    assert all(share * 9 == pytest.approx(round(share * 9)) and share >= 0 for share in list(found.values())[-3:])


def test_probabilities_are_those_of_all_inputs_of_the_table(run):
    flags = ("mine:classifier", "data.npz", "run.tsv", *SHORT)
    assert run("certify", *flags).status == 0
    found = json.loads(run("report", "run.tsv", "--json", "--probabilities", 0.5).out)["run"]
    assert 0 <= found["true_class_more_probable_than"]["0.5"] <= 1
    assert found["at_least"] == [max(0, round(9 * share) - 1) / 9 for share in found["certified_accuracy"]]
    rows = read_log("run.tsv")
    write_log("run.tsv", [*rows, rows[0]._replace(idx=9)])
    done = run("report", "run.tsv", "--probabilities", 0.5)
    assert done.status == 2
    assert "run.tsv.votes has 9 of the 10 inputs of run" in done.err


SLOW = """
import time
import numpy as np

def classifier():
    def f(x):
        time.sleep(0.05)
        return np.asarray(x)[:, :3]
    return f
"""


# A child of a background job would ignore the signal.
LISTENING = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from bridges.command import main
sys.exit(main(sys.argv[1:]))
"""


def test_an_interrupt_says_how_far_it_is_and_the_same_command_goes_on(tmp_path):
    (tmp_path / "slow.py").write_text(SLOW)
    np.savez(tmp_path / "data.npz", x=np.zeros((50, 4), np.float32), y=np.arange(50) % 3)
    flags = ["slow:classifier", "data.npz", "run.tsv", "--sigma", "0.5", "--n", "500", "--untraced", "--no-check"]
    command = [sys.executable, "-c", LISTENING, "certify", *flags, "--quiet"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    votes = tmp_path / "run.tsv.votes"
    until = time.monotonic() + 100
    while time.monotonic() < until and not (votes.exists() and len(read_votes(votes).idx) >= 3):
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    done = len(read_votes(votes).idx)
    assert err.splitlines()[-1] == f"jaxsmooth: ended: {done} of 50 done, the same command goes on"
    assert 3 <= done < 50
    table = subprocess.run(
        [sys.executable, "-m", "jaxsmooth", "report", "run.tsv"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert f"{done} of 50" in table
    again = subprocess.run([*command, "--max", str(done + 1)], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert f"run.tsv has {done} inputs already" in again.stderr


def test_an_interrupt_while_the_command_is_loaded_ends_it_at_once():
    at_jax = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
class Interrupting:
    def find_spec(self, name, *rest):
        if name == "jax":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupting())
from bridges.command import main
main(["--version"])
"""
    done = subprocess.run([sys.executable, "-c", at_jax], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_processes_share_a_run_which_the_report_merges(run, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    flags = ["mine:classifier", "data.npz", "run.tsv", *SHORT, "--radii", "0.1", "0.2", "--seed", "7"]
    command = [sys.executable, "-m", "jaxsmooth", "certify", *flags, "--coordinator", address, "--processes", "2"]
    processes = [subprocess.Popen([*command, "--process", i], cwd=tmp_path) for i in ("0", "1")]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    shown = run("report", "mine=run.tsv", "--radii", 0.1, 0.2, "--picture", "curves.pdf")
    assert shown.status == 0, shown.err
    assert shown.out.splitlines()[1].split()[:2] == ["mine", "9"]
    assert Path("curves.pdf").read_bytes().startswith(b"%PDF")
    jaxsmooth.merge_shares("run.tsv")
    before = Path("run.tsv").read_bytes()
    assert run("certify", *flags).status == 0
    assert Path("run.tsv").read_bytes() == before


def test_a_function_of_numpy_is_called_as_it_is(run):
    flags = ("data.npz", "run.tsv", *SHORT, "--seed", 0)
    assert run("predict", "mine:of_numpy", *flags).status == 2
    assert run("predict", "mine:of_numpy", *flags, "--untraced").status == 0


# -- models and data


@pytest.mark.parametrize("framework", ["torch", "keras", "flax"])
def test_models_of_every_framework_are_trained_certified_and_predicted(tmp_path, mnist, run, framework):
    model = f"{MODELS}:mnist_{framework}"
    trained = run("train", model, mnist, "weights", "--sigma", 0.5, "--epochs", 8, "--quiet")
    assert trained.status == 0, trained.err
    flags = ("--weights", "weights", "--sigma", 0.5, "--max", 20, "--skip", 2, "--n", 300, "--quiet", "--seed", 0)
    for command in ("certify", "predict"):
        done = run(command, model, mnist, f"{command}.tsv", *flags)
        assert done.status == 0, done.err
        rows = read_log(tmp_path / f"{command}.tsv")
        assert [row.idx for row in rows] == list(range(0, 20, 2))
        # An untrained network is right once in ten. Eight epochs on 1,000 images made PyTorch's right 5 to 8 times from
        # 16 initial weights; those of the examples are seeded.
        assert sum(row.correct for row in rows) >= 4


class Network(torch.nn.Module):
    """A small network of images `[1, 8, 8]`."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))

    def forward(self, x):
        """Return the scores."""
        return self.layers(x)


@pytest.fixture
def images(tmp_path):
    """A folder of images by class, 8x8 and gray, and what they hold."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, size=(6, 8, 8), dtype=np.uint8)
    for index, image in enumerate(pixels):
        folder = tmp_path / "images" / ("cat", "dog", "eel")[index // 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{index}.png")
    (tmp_path / "images" / "readme.txt").write_text("not an image")
    return pixels[:, None].astype(np.float32) / 255


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_saved_torch_models_certify_a_folder_of_images(run, images):
    network = Network().eval()
    torch.jit.script(network).save("script.pt")
    batch = torch.export.Dim("batch")
    program = torch.export.export(network, (torch.zeros(2, 1, 8, 8),), dynamic_shapes=({0: batch},))
    torch.export.save(program, "program.pt2")
    weights = network.layers[1].weight.detach().numpy(), network.layers[1].bias.detach().numpy()
    key = jaxsmooth.key_of_seed(5)
    expected = jaxsmooth.certify(
        lambda x: x.reshape(len(x), -1) @ weights[0].T + weights[1][None], jaxsmooth.Gaussian(0.5), key, images, n=200
    )
    for name in ("script.pt", "program.pt2"):
        done = run("certify", name, "images", f"{name}.tsv", *SHORT, "--seed", 5)
        assert done.status == 0, done.err
        rows = read_log(f"{name}.tsv")
        assert [row.label for row in rows] == [0, 0, 1, 1, 2, 2]
        counts = read_votes(f"{name}.tsv.votes").votes.counts
        # Frameworks add in another order: a vote on a border may differ.
        assert np.abs(counts - np.asarray(expected.votes.counts)).max() <= 2
    torch.export.save(torch.export.export(network, (torch.zeros(2, 1, 8, 8),)), "fixed.pt2")
    assert "was exported for one batch size" in run("certify", "fixed.pt2", "images", "a.tsv", *SHORT).err
    torch.save(network.state_dict(), "weights.pt")
    torch.save(network, "pickle.pth")
    for name in ("weights.pt", "pickle.pth"):
        assert "is no TorchScript file" in run("certify", name, "images", "a.tsv", *SHORT).err


def test_saved_keras_models_certify_a_folder_of_images(run, images):
    import keras

    model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(3)])
    for name in ("model.keras", "model.h5"):
        model.save(name)
        done = run("predict", name, "images", f"{name}.tsv", *SHORT, "--seed", 5)
        assert done.status == 0, done.err
        assert len(read_log(f"{name}.tsv")) == len(images)
    Path("model.keras").write_text("nonsense")
    refused = run("predict", "model.keras", "images", "a.tsv", *SHORT)
    assert refused.status == 2
    assert "model.keras cannot be loaded by Keras" in refused.err


def test_a_folder_of_hugging_face_does_what_its_processor_does(run, images, tmp_path):
    with_torchvision(lambda: None)
    import transformers

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.ViTConfig(image_size=16, patch_size=8, num_channels=1, num_labels=3, **sizes)
    model = transformers.ViTForImageClassification(config).eval()
    model.save_pretrained("vit")
    plain = run("predict", "vit", "images", "plain.tsv", *SHORT, "--seed", 5)
    assert plain.status == 2  # 8x8 pixels do not fit a network of 16x16 ones
    settings = {"do_resize": True, "size": {"height": 16, "width": 16}, "do_rescale": True, "rescale_factor": 1 / 255}
    settings |= {"do_normalize": True, "image_mean": [0.5], "image_std": [0.25], "resample": 2}
    kind = {"image_processor_type": "ViTImageProcessorFast"}
    (tmp_path / "vit" / "preprocessor_config.json").write_text(json.dumps({**settings, **kind}))
    done = run("predict", "vit", "images", "run.tsv", *SHORT, "--seed", 5)
    assert done.status == 0, done.err
    from bridges.pytorch import WithPreprocessing, as_jax

    own = WithPreprocessing(model, mean=0.5, std=0.25, size=(16, 16), interpolation="bilinear")
    expected = jaxsmooth.predict(
        as_jax(own), jaxsmooth.Gaussian(0.5), jaxsmooth.key_of_seed(5), images, n=200, compiled=False
    )
    np.testing.assert_array_equal(read_votes("run.tsv.votes").votes.counts, expected.votes.counts)


def test_images_are_read_in_color_resized_and_must_fit(run, tmp_path):
    for index, size in enumerate([(20, 10), (10, 14)]):
        folder = tmp_path / "images" / f"class{index}"
        folder.mkdir(parents=True)
        Image.new("RGB", size, (255, 0, 51)).save(folder / "a.jpg", quality=100, subsampling=0)
    (tmp_path / "mean.py").write_text("def f():\n    return lambda x: x.mean((1, 2))\n")
    Image.fromarray(np.full((10, 20), 40_000, np.uint16)).save(tmp_path / "images" / "class0" / "wide.png")
    assert "must have 8 bits for each channel" in run("predict", "mean:f", "images", "b.tsv", *SHORT, "--size", 8).err
    (tmp_path / "images" / "class0" / "wide.png").unlink()
    assert "images must be of one size" in run("predict", "mean:f", "images", "a.tsv", *SHORT).err
    done = run("predict", "mean:f", "images", "run.tsv", *SHORT, "--size", 8, "--seed", 0)
    assert done.status == 0, done.err
    assert [row.predict for row in read_log("run.tsv")] == [0, 0]  # red
    assert "--size is for a folder of images" in run("predict", "mean:f", "data.npz", "a.tsv", *SHORT, "--size", 8).err


def test_folders_that_are_hidden_are_no_classes_and_what_would_be_lost_is_refused(run, tmp_path):
    (tmp_path / "mean.py").write_text("def f():\n    return lambda x: x.mean((1, 2))\n")
    for name in ("gray", "red", ".ipynb_checkpoints", "__MACOSX"):
        (tmp_path / "images" / name).mkdir(parents=True)
    Image.new("L", (6, 4), 100).save(tmp_path / "images" / "gray" / "a.png")
    Image.new("RGB", (6, 4), (255, 0, 0)).save(tmp_path / "images" / "red" / "a.png")
    Image.new("RGB", (6, 4), (0, 0, 255)).save(tmp_path / "images" / "__MACOSX" / "a.png")
    turned = Image.new("RGB", (4, 6), (255, 0, 0))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "images" / "red" / "b.jpg", exif=exif)
    assert run("predict", "mean:f", "images", "a.tsv", *SHORT).status == 0
    assert [row.label for row in read_log("a.tsv")] == [0, 1, 1]
    for name, image in {
        "clear.png": Image.new("RGBA", (6, 4), (255, 0, 0, 0)),
        "moving.gif": Image.new("RGB", (6, 4), (255, 0, 0)),
    }.items():
        path = tmp_path / "images" / "red" / name
        image.save(
            path,
            **({"save_all": True, "append_images": [Image.new("RGB", (6, 4), (0, 255, 0))]} if ".gif" in name else {}),
        )
        refused = run("predict", "mean:f", "images", f"{name}.tsv", *SHORT)
        assert refused.status == 2
        assert ("must be opaque" if ".png" in name else "must be one image") in refused.err
        path.unlink()


def test_a_model_in_a_pair_is_refused(run, tmp_path):
    (tmp_path / "pair.py").write_text("import torch\n\ndef f():\n    return torch.nn.Linear(4, 3), print\n")
    assert "must return the model alone" in run("predict", "pair:f", "data.npz", "a.tsv", *SHORT).err


def test_a_pair_of_linen_and_an_equinox_module_are_models(run, tmp_path):
    (tmp_path / "modules.py").write_text(
        """
import equinox, flax.linen as nn, jax, jax.numpy as jnp

def linen():
    module = nn.Dense(3)
    return module, module.init(jax.random.key(0), jnp.zeros((1, 4)))

def of_equinox():
    return equinox.nn.Linear(4, 3, key=jax.random.key(0))
"""
    )
    for name in ("linen", "of_equinox"):
        assert run("predict", f"modules:{name}", "data.npz", f"{name}.tsv", *SHORT).status == 0
    refused = run("train", "modules:of_equinox", "data.npz", "weights", "--sigma", 1)
    assert "must be of PyTorch, Keras or flax to be trained" in refused.err


# -- training


@pytest.mark.parametrize("framework", ["torch", "keras", "flax"])
def test_train_by_every_kind_of_flag(mnist, run, framework):
    flags = ("--sigma", "0.5", "--epochs", "2", "--batch", "250", "--optimizer", "sgd", "--lr", "0.02", "--quiet")
    flags += ("--objective", "smoothadv", "--set", "m=1", "steps=1", "epsilon=0.1", "--schedule", "cosine")
    done = run("train", f"{MODELS}:mnist_{framework}", mnist, "weights", *flags, "--weight-decay", "1e-4")
    assert done.status == 0, done.err
    before, after = (float(done.out.split(f"{word} ")[1].split()[0].rstrip(",")) for word in ("from", "to"))
    assert after < before
    # Every file of the framework is known to be of the weights: it is not replaced, and not taken for another.
    state = weights.read_state(Path("weights"))
    files = sorted(path for path in Path().glob("weights.*") if path != weights.state_path(Path("weights")))
    assert len(files) == 2
    for path in files:
        content = path.read_bytes()
        path.write_bytes(content + b" ")
        assert not weights.are_those_of(Path("weights"), state)
        path.unlink()
        assert "OUTPUT is there" in run("train", f"{MODELS}:mnist_{framework}", mnist, "weights", *flags).err
        path.write_bytes(content)
    assert weights.are_those_of(Path("weights"), state)


@pytest.mark.parametrize(("crash", "epoch"), [(0, 1), (1, 1), (2, 1), (3, 2), (4, 2), (5, 2)])
def test_a_crash_while_weights_are_saved_leaves_those_of_one_epoch(tmp_path, monkeypatch, crash, epoch):
    # Two files are saved as drafts, then the state, and then the two take their places.
    output, replace = tmp_path / "weights", Path.replace

    def step():
        steps.append(None)
        if len(steps) == crash + 1:
            raise RuntimeError("the machine stops")

    class Classifier:
        def __init__(self, done):
            self.done = done

        def save(self, filename, path):
            for ending in (".model", ".optimizer"):
                step()
                Path(path, filename + ending).write_text(f"epoch {self.done}")

    steps = [None] * 6  # the first epoch is beyond every crash
    weights.save_epoch(Classifier(1), output, {"done": 1})
    steps = []
    with monkeypatch.context() as patch, contextlib.suppress(RuntimeError):
        patch.setattr(Path, "replace", lambda old, new: (step(), replace(old, new))[1])
        weights.save_epoch(Classifier(2), output, {"done": 2})
    assert len(steps) == min(crash + 1, 5)
    state = weights.read_state(output)
    assert state["done"] == epoch
    assert weights.are_those_of(output, state)
    assert {path.read_text() for path in weights.weight_files(output).values()} == {f"epoch {epoch}"}
    Path(f"{output}.model").write_text("other weights")
    assert not weights.are_those_of(output, state)
    assert Path(f"{output}.model").read_text() == "other weights"


def test_training_goes_on_where_it_was_ended(mnist, run, monkeypatch):
    from bridges.pytorch import PyTorchRandomizedSmoothing

    flags = (
        "train",
        f"{MODELS}:mnist_torch",
        mnist,
        "weights",
        "--sigma",
        0.5,
        "--epochs",
        3,
        "--lr",
        0.003,
        "--quiet",
    )
    fit = PyTorchRandomizedSmoothing.fit
    calls = []

    def interrupted(self, *arguments, **settings):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(settings)
        return fit(self, *arguments, **settings)

    monkeypatch.setattr(PyTorchRandomizedSmoothing, "fit", interrupted)
    ended = run(*flags)
    assert ended.status == 130
    assert ended.err.splitlines()[-1] == "jaxsmooth: ended: 2 of 3 epochs done, the same command with --resume goes on"
    assert "OUTPUT is there, weights.model" in run(*flags).err
    assert "which has lr 0.003" in run(*flags[:-2], 0.01, "--resume").err
    monkeypatch.setattr(PyTorchRandomizedSmoothing, "fit", fit)
    done = run(*flags, "--resume", "--json")
    assert done.status == 0, done.err
    found = json.loads(done.out)
    assert found["loss_after"] < found["loss_before"] < 1.5  # the loss of ten classes by chance is 2.3
    assert "has nothing to do" in run(*flags, "--resume").err
    more = [4 if word == 3 else word for word in flags]
    assert "epochs 3" in run(*more, "--schedule", "cosine", "--resume").err
    longer = run(*more, "--resume", "--json")
    assert longer.status == 0, longer.err
    assert json.loads(longer.out)["loss_before"] == pytest.approx(found["loss_after"])
    again = run(*flags, "--overwrite", "--json")
    assert json.loads(again.out)["loss_before"] > 2


def test_going_on_with_training_takes_the_rate_that_is_given(mnist, run):
    flags = ("train", f"{MODELS}:mnist_torch", mnist)
    assert run(*flags, "one", "--sigma", 0.5, "--epochs", 1, "--lr", 1e-7, "--quiet").status == 0
    done = run(*flags, "two", "--sigma", 0.5, "--epochs", 3, "--lr", 0.003, "--weights", "one", "--quiet")
    before, after = map(float, re.findall(r"from ([0-9.]+) to ([0-9.]+),", done.out)[0])
    assert after < before - 0.1


CIFAR = """
import numpy as np
from torch import nn
from bridges.pytorch import WithPreprocessing

def network():
    layers = [nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten()]
    statistics = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2023, 0.1994, 0.2010)}
    return WithPreprocessing(nn.Sequential(*layers, nn.Linear(128, 10)), **statistics)

def images(seed, number):
    generator = np.random.default_rng(seed)
    y = generator.integers(0, 10, number)
    x = generator.uniform(size=(number, 3, 32, 32)) / 2 + (y / 20)[:, None, None, None]
    return x.astype("float32"), y.tolist()

def training():
    return images(0, 64)

def test():
    return images(1, 60)
"""


def test_the_commands_of_the_guide_for_cifar(tmp_path, run):
    """On images of the same shapes, with fewer epochs and votes."""
    (tmp_path / "cifar.py").write_text(CIFAR)
    page = (EXAMPLES / "guides" / "training.md").read_text()
    block = next(text for text in page.split("```") if "train cifar:network" in text)
    commands = [line.split() for line in block.replace("\\\n", " ").strip().splitlines() if "jaxsmooth" in line]
    assert [words[:2] for words in commands] == [["jaxsmooth", name] for name in ("train", "certify", "report")]
    shorter = {
        "train": ("--epochs", "2", "--batch", "32", "--quiet"),
        "certify": ("--n", "100", "--n0", "20", "--quiet"),
    }
    for _, name, *flags in commands:
        done = run(name, *flags, *shorter.get(name, ()))
        assert done.status == 0, done.err
    assert [row.idx for row in read_log(tmp_path / "run.tsv")] == [0, 20, 40]
    assert "consistency" in done.out


# -- report and check


def test_the_report_names_each_run(run, tmp_path):
    for name in ("modelA", "modelB", "a=b"):
        (tmp_path / name).mkdir()
        write_log(tmp_path / name / "run.tsv", [LogRow(0, 1, 1, 0.5, 1.0)])
    out = run("report", "modelA/run.tsv", "modelB/run.tsv", "a=b/run.tsv").out
    assert [line.split("  ")[0] for line in out.splitlines() if "run" in line][1:] == [
        "modelA/run",
        "modelB/run",
        "a=b/run",
    ]
    out = run("report", "mine=modelA/run.tsv", "theirs=1=modelB/run.tsv", "--records", "r.csv").out
    assert "\nmine " in out
    assert "\ntheirs=1 " in out
    with open("r.csv", newline="") as file:
        assert [record["run"] for record in csv.DictReader(file)] == ["mine", "theirs=1"]


def test_a_published_log_has_its_whole_name_and_a_path_may_have_signs(run, tmp_path):
    folder = tmp_path / "sigma=0.5"
    folder.mkdir()
    for path in (tmp_path / "sigma_0.25", tmp_path / "sigma_0.50", folder / "run.tsv"):
        write_log(path, [LogRow(0, 1, 1, 0.5, 1.0)])
    out = run("report", "sigma_0.25", "sigma_0.50", "mine=sigma=0.5/run.tsv").out
    assert [line.split()[0] for line in out.splitlines() if not line.startswith(" ")] == [
        "run", "sigma_0.25", "sigma_0.50", "mine",
    ]  # fmt: skip


def test_a_report_writes_no_log_and_misses_no_share(run, tmp_path):
    data = np.load("data.npz")
    settings = {"mode": jaxsmooth.Fixed(n=50), "progress": False}
    noise, key = jaxsmooth.Gaussian(0.5), jax.random.key(0)
    for share in ((0, 2), (1, 2)):
        pairs = (data["x"], data["y"])
        jaxsmooth.certify_dataset(lambda x: x[:, :3], noise, key, pairs, "run.tsv", share=share, **settings)
    assert run("report", "run.tsv").out.splitlines()[1].split()[:2] == ["run", "9"]
    assert not (tmp_path / "run.tsv").exists()
    jaxsmooth.merge_shares("run.tsv")
    (tmp_path / "run.1-of-2.tsv.votes").unlink()
    refused = run("report", "run.tsv")
    assert refused.status == 2
    assert "those of a share are missing" in refused.err
    assert len(read_log("run.tsv")) == 9


def test_a_report_of_grids_has_their_radii(run):
    assert run("certify", "mine:classifier", "data.npz", "run.tsv", *SHORT, "--radii", 0.125, 0.3).status == 0
    assert run("report", "run.tsv").out.split()[2:4] == ["0.125", "0.30"]


def test_a_report_of_one_noise_has_the_radii_of_certify(run):
    one = run("certify", "mine:classifier", "data.npz", "one.tsv", *SHORT, "--seed", 1)
    assert run("report", "one.tsv").out == one.out
    assert run("certify", "mine:classifier", "data.npz", "two.tsv", "--sigma", 0.25, "--n", 200, "--quiet").status == 0
    assert run("report", "one.tsv", "two.tsv").out.splitlines()[0].split()[2:5] == ["0.00", "0.25", "0.50"]


def test_the_report_shows_probabilities_of_the_true_class(run):
    assert run("certify", "mine:classifier", "data.npz", "run.tsv", *SHORT).status == 0
    done = run("report", "run.tsv", "--probabilities", 0.5, "--picture-of-probabilities", "p.png")
    assert done.status == 0, done.err
    assert "p > 0.5" in done.out
    assert Path("p.png").stat().st_size > 5_000
    Path("run.tsv.votes").unlink()
    done = run("report", "run.tsv", "--probabilities", 0.5)
    assert done.status == 2
    assert "there is no run.tsv.votes" in done.err


def test_check_finds_what_breaks_a_certificate_and_plans_the_run(run):
    flags = ("data.npz", "--sigma", 0.5, "--n", 1000, "--inputs", 9)
    good = run("check", "mine:classifier", *flags, "--json", "--picture", "look.png")
    assert good.status == 0, good.err
    found = json.loads(good.out)
    assert (found["classifier"], found["noise"], found["classes"]) == ("passed", "passed", 3)
    assert found["hours"] == pytest.approx(9000 / found["samples_per_second"] / 3600)
    file = np.load("data.npz")
    assert found["accuracy"] == pytest.approx((file["x"][:, :3].argmax(1) == file["y"]).mean())
    assert Path("look.png").stat().st_size > 5_000
    bad = run("check", "mine:of_the_batch", *flags)
    assert bad.status == 1
    assert "its scores depend on the batch" in bad.out
    assert "9 inputs of 1,000 votes take" in bad.out
    invalid = run("check", "mine:invalid", *flags, "--json")
    assert invalid.status == 1
    assert json.loads(invalid.out)["accuracy"] == json.loads(invalid.out)["accuracy_under_noise"] == 0.0


# -- what goes wrong


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("certify", f"{MODELS}:none", "data.npz", "a.tsv", "--sigma", 1), "models.py has no function none"),
        (("certify", "absent:f", "data.npz", "a.tsv", "--sigma", 1), "there is no module absent"),
        (("certify", "absent.py:f", "data.npz", "a.tsv", "--sigma", 1), "there is no file absent.py"),
        (("certify", "nothing", "data.npz", "a.tsv", "--sigma", 1), "there is no nothing"),
        (("certify", "data.npz", "data.npz", "a.tsv", "--sigma", 1), "must end in .keras, .h5, .pt, .ts or .pt2"),
        (("certify", ".", "data.npz", "a.tsv", "--sigma", 1), "it has no config.json"),
        (("certify", "mine:number", "data.npz", "a.tsv", "--sigma", 1), "must return a model, got int"),
        (("certify", "mine:classifier", "no.npz", "a.tsv", "--sigma", 1), "must be an .npz file with arrays x and y"),
        (("certify", "mine:classifier", "mine.py", "a.tsv", "--sigma", 1), "must be module:factory, an .npz file or"),
        (("certify", "mine:classifier", ".", "a.tsv", "--sigma", 1), "one folder of images for each class"),
        (("certify", "mine:classifier", "data.npz", "a.tsv", "--sigma", -1), "must be positive"),
        (("certify", "mine:classifier", "data.npz", "a.tsv", "--sigma", "wide"), "invalid float value: 'wide'"),
        (("certify", "mine:classifier", "data.npz", "a.tsv"), "the following arguments are required: --sigma"),
        (("certify", "mine:classifier", "data.npz", "a.tsv", "--sigma", 1, "--prec", 0.1), "unrecognized arguments"),
        (("certify", "mine:classifier", "data.npz", "a.tsv", "--sigma", 1, "--noise", "lattice"), "needs it: 1/255"),
        (("certify", "mine:classifier", "data.npz", "a.tsv", "--sigma", 1, "--step", 1), "--step belongs to"),
        (("certify", "mine:classifier", "data.npz", "a.tsv", "--sigma", 1, "--records", "r.txt"), ".csv or .json"),
        (
            ("certify", "mine:classifier", "data.npz", "a.tsv", "--sigma", 1, "--radii", 1, "--precision", 0.1),
            "are different modes",
        ),
        (("predict", "mine:classifier", "data.npz", "a.tsv", "--sigma", 1, "--weights", "w"), "MODEL must be of"),
        (("train", f"{MODELS}:mnist_torch", "data.npz", "w", "--sigma", 1, "--set", "m"), "--set takes NAME=VALUE"),
        (("train", f"{MODELS}:mnist_torch", "data.npz", "w", "--sigma", 1, "--epochs", 0), "--epochs must be at least"),
        (("train", f"{MODELS}:mnist_torch", "data.npz", "w", "--sigma", 1, "--resume"), "there is no w.epochs.json"),
        (("certify", "mine:classifier", "data.npz", "a.tsv", "--sigma", 1, "--step", "1/0"), "such as 1/255, got 1/0"),
        (("report", "none.tsv"), "there is no none.tsv"),
        (("certify", "mine:classifier", "data.npz", "a.tsv", "--sigma", 1, "--max", -7), "--max must be at least 0"),
        (("certify", "mine:classifier", "data.npz", "a.tsv", "--sigma", 1, "--process", 1), "need --coordinator"),
        (("certify", "mine:classifier", "data.npz", "a.tsv", "--sigma", 1, "--records", "no/r.csv"), "that is there"),
        (("check", "mine:of_numpy", "data.npz", "--sigma", 1), "give --untraced"),
        (("report", "data.npz"), "no text in UTF-8"),
        (("check", "mine:classifier", "data.npz", "--sigma", 1, "--n", 0), "must be at least 1"),
        *(
            (
                (command, f"mine:{model}", "data.npz", *more, "--sigma", 1),
                "MODEL fails on the inputs of DATA, whose shape is (4,)",
            )
            for command, more in (("certify", ["a.tsv"]), ("predict", ["a.tsv"]), ("check", []), ("train", ["w"]))
            for model in ("for_five", "torch_for_five")
            if (command, model) != ("train", "for_five")
        ),
        (("certify", "mine:classifier", "mine:one_hot", "a.tsv", "--sigma", 1), "take y.argmax(axis=1)"),
        (("certify", "mine:classifier", "mine:of_a_dict", "a.tsv", "--sigma", 1), "or pairs, got a dict of x, y"),
        (("certify", "mine:classifier", "mine:of_one_array", "a.tsv", "--sigma", 1), "got one array of shape (3, 4)"),
        (("certify", "mine:classifier", "mine:of_triples", "a.tsv", "--sigma", 1), "DATA must hold pairs (x, label)"),
        (("certify", "mine:classifier", "mine:in_batches", "a.tsv", "--sigma", 1), "of a loader of batches its data"),
        (
            ("certify", "mine:classifier", "mine:of_one_stream", "a.tsv", "--sigma", 1),
            "the same inputs in the same ord",
        ),
        (("certify", "mine:itself", "data.npz", "a.tsv", "--sigma", 1), "returns the model: it has the arguments x"),
        (("check", "mine:of_two_classes", "data.npz", "--sigma", 1), "labels below 2, the number of MODEL's classes"),
        (("train", "mine:with_softmax", "data.npz", "w", "--sigma", 1), "MODEL must return logits to be trained"),
        *(
            (("train", "mine:with_softmax", "data.npz", "w", "--sigma", sigma, *flags), message)
            for sigma, flags, message in (
                (0, (), "--sigma must be positive and finite, got 0"),
                (1, ("--objective", "macer", "--set", "foo=1"), "of macer, which has m, lambda_, beta, gamma: got foo"),
                (1, ("--set", "m=1"), "--set must be of settings of gaussian, which has none: got m"),
                (1, ("--lr", "inf"), "--lr must be positive and finite, got inf"),
                (1, ("--step-epochs", 0), "--step-epochs must be at least 1, got 0"),
                (1, ("--range", 1, 0), "--range must be LOW and then HIGH, got 1 0"),
            )
        ),
        (("certify", "mine:classifier", "mine:whole_numbers", "a.tsv", "--sigma", 1), "divide pixels by 255"),
        (("train", "mine:torch_for_five", "mine:whole_numbers", "w", "--sigma", 1), "divide pixels by 255"),
        (("unknown",), "invalid choice: 'unknown'"),
        ((), "the following arguments are required: COMMAND"),
    ],
)
def test_what_is_wrong_is_one_sentence(tmp_path, run, words, message):
    done = run(*words)
    assert done.status == 2
    (line,) = done.err.splitlines()
    assert line.startswith("jaxsmooth")
    assert message in line
    assert done.out == ""
    assert {path.name for path in tmp_path.iterdir()} <= {"mine.py", "data.npz", "__pycache__"}


def test_a_factory_of_new_iterators_loses_no_input(run):
    for name in ("of_new_streams", "of_held_streams"):
        assert run("certify", "mine:wrapped", f"mine:{name}", f"{name}.tsv", *SHORT).status == 0
        assert [(row.idx, row.label) for row in read_log(f"{name}.tsv")] == [(0, 0), (1, 1), (2, 2)]


def test_folders_whose_numbers_are_not_their_labels_are_noted(run, tmp_path):
    def folders(*names):
        for name in names:
            (tmp_path / "images" / name).mkdir(parents=True)
            Image.new("L", (2, 2)).save(tmp_path / "images" / name / "a.png")
        return run("certify", "mine:of_images", "images", "run.tsv", *SHORT, "--overwrite").err

    Path("mine.py").write_text(USER + "def of_images():\n    return lambda x: x.reshape(-1, 4)[:, :3]\n")
    assert "order of names" not in folders("0", "1", "2")
    assert "a label of DATA is the place of its folder in the order of names: that of 10 is 2" in folders("10")


def test_a_link_is_not_overwritten(run, tmp_path):
    (tmp_path / "disk").mkdir()
    flags = ("mine:classifier", "data.npz")
    assert run("certify", *flags, "disk/real.tsv", *SHORT).status == 0
    before = Path("disk/real.tsv").read_bytes()
    Path("link.tsv").symlink_to(tmp_path / "disk" / "real.tsv")
    refused = run("certify", *flags, "link.tsv", *SHORT, "--overwrite")
    assert refused.status == 2
    assert "LOG must be no link to be overwritten" in refused.err
    assert Path("disk/real.tsv").read_bytes() == before


def test_probabilities_of_the_votes_of_another_run_are_refused(run):
    other = [0.25 if word == "0.5" else word for word in SHORT]
    for name, flags in (("run.tsv", SHORT), ("other.tsv", other)):
        assert run("certify", "mine:classifier", "data.npz", name, *flags).status == 0
    Path("other.tsv.votes").replace("run.tsv.votes")
    refused = run("report", "run.tsv", "--probabilities", 0.5)
    assert refused.status == 2
    assert "probabilities are those of the votes of a log: run.tsv.votes says of input" in refused.err


def test_the_summary_has_the_settings_that_all_rows_share(run):
    assert run("certify", "mine:classifier", "data.npz", "run.tsv", *SHORT, "--max", 4).status == 0
    rows = read_log("run.tsv")
    n = rows[0].settings["n"]
    write_log("mixed.tsv", [*rows[:3], rows[3]._replace(claim=rows[3].claim.replace(f" n={n} ", " n=7 "))])
    settings = json.loads(run("report", "run.tsv", "--json").out)["run"]["settings"]
    mixed = json.loads(run("report", "mixed.tsv", "--json").out)["mixed"]["settings"]
    assert settings.pop("n") == n
    assert mixed == settings


def test_an_interrupt_within_a_callback_of_the_garbage_collector_is_not_lost(tmp_path):
    (tmp_path / "slow.py").write_text(
        SLOW
        + """
import gc, os, signal
sent = []
def _xla_gc_callback(*_):
    if not sent:
        sent.append(os.kill(os.getpid(), signal.SIGINT))
fast = classifier
def classifier():
    gc.callbacks.append(_xla_gc_callback)
    gc.collect()
    return fast()
"""
    )
    np.savez(tmp_path / "data.npz", x=np.zeros((50, 4), np.float32), y=np.arange(50) % 3)
    flags = ["slow:classifier", "data.npz", "run.tsv", "--sigma", "0.5", "--n", "500", "--untraced", "--no-check"]
    command = [sys.executable, "-c", LISTENING, "certify", *flags, "--quiet"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 130, ended.stderr
    assert "jaxsmooth: ended" in ended.stderr


def test_a_label_that_is_no_class_is_refused_before_the_run(run):
    done = run("certify", "mine:classifier", "mine:numbered_from_one", "a.tsv", *SHORT)
    assert done.status == 2
    assert done.err.splitlines()[-1] == (
        "jaxsmooth: error: the label of input 400 must be a class below 3, which f has, got 3"
    )
    assert not Path("a.tsv.votes").exists()
    assert run("certify", "mine:classifier", "mine:numbered_from_one", "a.tsv", *SHORT, "--max", 2).status == 0


def test_a_model_in_place_of_its_factory_is_named(run, tmp_path):
    (tmp_path / "module.py").write_text(MODULE)
    done = run("certify", "module.py:network", "data.npz", "a.tsv", *SHORT)
    assert done.status == 2
    assert "a function without arguments that returns the model: network is the Linear itself" in done.err


@pytest.mark.parametrize("command", ["certify", "check"])
def test_a_noise_in_other_units_than_the_inputs_is_noted(run, command):
    first, second = (["a.tsv"], ["b.tsv"]) if command == "certify" else ([], [])
    flags = ("--sigma", 0.25, "--n", 10)
    done = run(command, "mine:classifier", "mine:of_bytes", *first, *flags)
    assert "note: --sigma 0.25 is 0.00098 of the range of DATA, 0 to 255: it must be in the units" in done.err
    assert "note" not in run(command, "mine:classifier", "mine:pairs", *second, *flags).err


def test_inputs_in_other_units_than_those_of_training_are_noted(run, mnist, tmp_path):
    network = f"{MODELS}:mnist_torch"
    assert run("train", network, mnist, "w", "--sigma", 0.5, "--epochs", 1, "--quiet").status == 0
    file = np.load(mnist)
    np.savez(tmp_path / "bytes.npz", x=255 * file["x"][:40], y=file["y"][:40])
    flags = ("--weights", "w", "--sigma", 0.5, "--n", 10, "--max", 2, "--quiet")
    done = run("certify", network, "bytes.npz", "a.tsv", *flags)
    assert "note: --weights w were trained on values from 0 to 1, and those of DATA go from 0 to 255" in done.err
    assert "note" not in run("certify", network, mnist, "b.tsv", *flags).err


def test_a_package_that_is_missing_is_named(run, monkeypatch):
    Path("model.keras").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "keras", None)
    monkeypatch.delitem(sys.modules, "bridges.tensorflow.command", raising=False)
    monkeypatch.delattr(bridges.tensorflow, "command", raising=False)
    done = run("check", "model.keras", "data.npz", "--sigma", 1)
    assert done.status == 2
    assert done.err == "jaxsmooth: error: this needs the package keras, which is not installed\n"


def test_errors_of_the_caller_s_code_are_shown_with_their_place(run):
    done = run("certify", "mine:broken", "data.npz", "a.tsv", "--sigma", 1)
    assert done.status == 2
    assert 'raise RuntimeError("no such luck")' in done.err
    assert done.err.splitlines()[-1] == "jaxsmooth: error: MODEL mine:broken raised RuntimeError: no such luck"
    with pytest.raises(ValueError, match="must be positive"):
        run("certify", "mine:classifier", "data.npz", "a.tsv", "--sigma", -1, "--traceback")


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_a_manual_with_an_example(run, command):
    done = run(command, "--help")
    assert done.status == 0
    assert "example" in done.out
    assert "seconds" in done.out or "minute" in done.out
    assert max(map(len, done.out.splitlines())) <= 130


def test_the_version_is_that_of_the_package(run):
    assert run("--version").out == f"jaxsmooth {jaxsmooth.__version__}\n"
    script = Path(sys.executable).parent / "jaxsmooth"
    assert subprocess.run([script, "--version"], capture_output=True, text=True, check=True).stdout == (
        f"jaxsmooth {jaxsmooth.__version__}\n"
    )


def test_keys_of_the_command_are_those_of_its_seed():
    assert bool(jaxsmooth.key_of_seed(7) == jax.random.key(7, impl="threefry2x32"))
