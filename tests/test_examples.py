"""The examples run by themselves, small; their figures at full size are in the README.

Those that load ART, which changes what our classes are made from, and the first one in the README have a process of
their own. The others run in that of the tests: importing the frameworks would take longer than what they do.
"""

import importlib
import re
import runpy
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from jaxsmooth import LogRow, read_log, read_votes, write_log

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Return a function that runs a script in an empty folder as `python script` does, but in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(EXAMPLES)

    def run_script(name, *flags):
        monkeypatch.setattr(sys, "argv", [name, *flags])
        status = 0
        try:
            runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        except SystemExit as stopped:
            status = stopped.code or 0
            if isinstance(status, str):
                print(status, file=sys.stderr)
                status = 1
        shown = capsys.readouterr()
        return SimpleNamespace(returncode=status, stdout=shown.out, stderr=shown.err)

    return run_script


def run_apart(name, *flags, cwd):
    command = [sys.executable, EXAMPLES / name, *flags]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)


def test_certify_mnist(tmp_path):
    flags = ("--count", "20", "--n", "1000", "--radii", "--precision", "0.05", "--seed", "0")
    done = run_apart("certify_mnist.py", *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if "times fewer" in line]
    assert [line.split()[0] for line in lines] == ["sequential,", "within"]
    assert "certified accuracy" in done.stdout
    assert "certifying: 100%" in done.stderr
    rows = read_log(tmp_path / "certified_mnist.tsv")
    assert sorted(row.label for row in rows) == sorted([*range(10)] * 2)
    # 0.85 is asked of 200 images; 20 of that share fall below 12 with probability 1e-3, and the run is seeded.
    assert sum(row.correct for row in rows) >= 12
    assert (tmp_path / "certified_mnist.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    "flags", [("--count", "0"), ("--sigma", "-1"), ("--alpha", "1"), ("--n", "0"), ("--batch-size", "0")]
)
def test_certify_mnist_refuses_bad_flags(tmp_path, run, flags):
    done = run("certify_mnist.py", *flags)
    assert done.returncode == 2
    assert f"error: {flags[0]} must" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_certify_mnist_explains_its_flags(run):
    done = run("certify_mnist.py", "--help")
    flags = ("--sigma", "--n0", "--n", "--alpha", "--batch-size", "--count", "--training-seed", "--seed", "--output")
    assert all(flag in done.stdout for flag in flags)


def test_torch_mnist(tmp_path):
    done = run_apart("torch_mnist.py", "--count", "2", "--n", "500", "--seed", "0", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "0 of 2 images were changed within their radius" in done.stdout
    assert (tmp_path / "certified_torch_mnist.png").stat().st_size > 5_000


def test_keras_cifar(tmp_path):
    flags = ("--count", "4", "--attacked", "2", "--steps", "4", "--n", "200", "--seed", "0")
    done = run_apart("keras_cifar.py", *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "0 of 2 attacked images were changed within their radius" in done.stdout
    assert (tmp_path / "certified_keras_cifar.png").stat().st_size > 5_000


def test_train_mnist(tmp_path, run):
    flags = ("--training", "500", "--count", "10", "--n", "200", "--objectives", "gaussian", "smoothmix")
    done = run("train_mnist.py", *flags)
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()[2:4]] == ["gaussian", "smoothmix"]
    assert (tmp_path / "trained_mnist.png").stat().st_size > 5_000


def test_train_mnist_in_another_framework(run):
    flags = ("--training", "300", "--count", "10", "--n", "200", "--objectives", "consistency", "--framework", "torch")
    done = run("train_mnist.py", *flags)
    assert done.returncode == 0, done.stderr
    name, at_zero, *_ = done.stdout.splitlines()[2].split()
    assert name == "consistency"
    assert float(at_zero) >= 0.5


def test_denoise_mnist(tmp_path, run):
    done = run("denoise_mnist.py", "--count", "6", "--seconds", "4", "--n", "300", "--seed", "0")
    assert done.returncode == 0, done.stderr
    assert "behind the denoiser" in done.stdout
    assert (tmp_path / "denoised_mnist.png").stat().st_size > 5_000


def test_levels_mnist(tmp_path, run):
    done = run("levels_mnist.py", "--training", "500", "--count", "10", "--n", "300", "--seed", "0")
    assert done.returncode == 0, done.stderr
    names = [line.rsplit(maxsplit=9)[0].strip() for line in done.stdout.splitlines()[5:10]]
    assert names == ["sigma 0.25", "sigma 0.5", "sigma 1.0", "a level for each image", "if the level came free"]
    assert (tmp_path / "levels_mnist.png").stat().st_size > 5_000


def test_changed_mnist(tmp_path, run):
    done = run("changed_mnist.py", "--count", "3", "--n", "500", "--m", "200", "--seed", "0")
    assert done.returncode == 0, done.stderr
    assert "bfloat16, from those of float32" in done.stdout
    assert "of 600 samples changed their class" in done.stdout
    log = str(tmp_path / "changed_mnist.tsv")
    done = run("report.py", log, "--probabilities", "0.5", "--picture-of-probabilities", "p.png")
    assert done.returncode == 0, done.stderr
    assert "p > 0.5" in done.stdout
    assert (tmp_path / "p.png").stat().st_size > 5_000
    Path(f"{log}.votes").unlink()
    done = run("report.py", log, "--probabilities", "0.5")
    assert done.returncode == 2
    assert "there is no" in done.stderr


@pytest.mark.parametrize("framework", ["jax", "torch"])
def test_segment_mnist(tmp_path, run, framework):
    flags = ("--framework", framework, "--seconds", "3", "--count", "2", "--n", "60", "--seed", "0")
    done = run("segment_mnist.py", *flags)
    assert done.returncode == 0, done.stderr
    assert "radius 0.168 for all certified pixels of a canvas together" in done.stdout
    shares = {
        line.split("  ")[0]: [float(word) for word in line.split()[-3:]] for line in done.stdout.splitlines()[5:7]
    }
    assert all(abs(sum(each) - 1) < 0.003 for each in shares.values())
    assert shares["all"][0] > 0.5  # the background alone is more than that
    assert (tmp_path / "segmented_mnist.png").stat().st_size > 5_000


def test_ablate_mnist(run):
    done = run("ablate_mnist.py", "--count", "20", "--epochs", "1", "--n", "200", "--l1", "--seed", "0")
    assert done.returncode == 0, done.stderr
    assert "norm 0" in done.stdout
    assert "splitting noise: all 765 places of the cuts" in done.stdout
    assert "every place: mode splitting, levels 255, alpha 0" in done.stdout


def test_ablate_text(run):
    done = run("ablate_text.py", "--count", "40", "--epochs", "8", "--n", "500", "--seed", "0")
    assert done.returncode == 0, done.stderr
    found = re.search(r"accuracy on 40 others, all words shown: (0\.\d+)", done.stdout)
    assert found
    assert float(found.group(1)) > 0.7
    assert "Ablation(positions=64,kept=8,mask=0), norm 0" in done.stdout


def test_regress_diabetes(tmp_path, run):
    done = run("regress_diabetes.py", "--n", "300", "--seed", "0")
    assert done.returncode == 0, done.stderr
    rows = {line.split()[0]: [float(word) for word in line.split()[1:]] for line in done.stdout.splitlines()[3:5]}
    assert sorted(rows) == ["JAX", "PyTorch"]
    for error, width, counted in rows.values():
        assert error < 60
        assert 0 < width <= counted < width + 4.1  # the thresholds are 2 apart
    assert (tmp_path / "diabetes.png").stat().st_size > 5_000


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
    block = next(text for text in page.split("```") if "train.py cifar:network" in text)
    commands = [line.split() for line in block.replace("\\\n", " ").strip().splitlines()]
    assert [words[:2] for words in commands] == [
        ["python", f"examples/{name}.py"] for name in ("train", "certify", "report")
    ]
    shorter = {
        "train.py": ("--epochs", "2", "--batch", "32"),
        "certify.py": ("--N", "100", "--N0", "20"),
        "report.py": (),
    }
    for _, script, *flags in commands:
        name = script.removeprefix("examples/")
        done = run(name, *flags, *shorter.get(name, ()))
        assert done.returncode == 0, done.stderr
    assert [row.idx for row in read_log(tmp_path / "run.tsv")] == [0, 20, 40]
    assert "consistency" in done.stdout


@pytest.mark.parametrize("framework", ["torch", "keras", "flax"])
def test_train_by_every_kind_of_flag(mnist, run, framework):
    flags = ("--sigma", "0.5", "--epochs", "2", "--batch", "250", "--optimizer", "sgd", "--lr", "0.02", "--quiet")
    flags += ("--objective", "smoothadv", "--set", "m=1", "steps=1", "epsilon=0.1", "--schedule", "cosine")
    done = run("train.py", f"models:mnist_{framework}", mnist, "weights", *flags, "--weight-decay", "1e-4")
    assert done.returncode == 0, done.stderr
    before, after = (float(done.stdout.split(f"{word} ")[1].split()[0].rstrip(",")) for word in ("from", "to"))
    assert after < before


def test_jax_modules(run):
    done = run("jax_modules.py", "--steps", "20", "--count", "10", "--n", "100")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()[2:]
    assert len(lines) == 3
    assert all(" 0 traces" in line.split("|")[1] for line in lines)


@pytest.fixture(scope="module")
def mnist(tmp_path_factory):
    """A file of 1,000 real images."""
    path = tmp_path_factory.mktemp("data") / "mnist.npz"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        x, y = importlib.import_module("models").mnist_test()
    np.savez(path, x=x, y=y)
    return str(path)


@pytest.mark.parametrize("framework", ["torch", "keras", "flax"])
def test_scripts_train_certify_and_predict_models_of_every_framework(tmp_path, mnist, run, framework):
    model = f"models:mnist_{framework}"
    flags = (
        "--weights",
        "weights",
        "--sigma",
        "0.5",
        "--max",
        "20",
        "--skip",
        "2",
        "--N",
        "300",
        "--quiet",
        "--seed",
        "0",
    )
    trained = run("train.py", model, mnist, "weights", "--sigma", "0.5", "--epochs", "8")
    assert trained.returncode == 0, trained.stderr
    for script, output in (("certify.py", "run.tsv"), ("predict.py", "predicted.tsv")):
        done = run(script, model, mnist, output, *flags)
        assert done.returncode == 0, done.stderr
        rows = read_log(tmp_path / output)
        assert [row.idx for row in rows] == list(range(0, 20, 2))
        # An untrained network is right once in ten. Eight epochs on 1,000 images made PyTorch's right 5 to 8 times from
        # 16 initial weights; those of the examples are seeded.
        assert sum(row.correct for row in rows) >= 4


USER = """
import jax.numpy as jnp

def classifier():
    return lambda x: x[:, :3]
"""


def test_scripts_share_a_run_of_the_user_s_own_function_and_report_it(tmp_path, run):
    (tmp_path / "mine.py").write_text(USER)
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "data.npz", x=rng.normal(size=(9, 4)).astype(np.float32), y=np.arange(9) % 3)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    flags = (
        "mine:classifier",
        "data.npz",
        "run.tsv",
        "--sigma",
        "0.5",
        "--N",
        "500",
        "--radii",
        "0.1",
        "0.2",
        "--quiet",
    )
    command = [sys.executable, EXAMPLES / "certify.py", *flags, "--coordinator", address, "--processes", "2"]
    command += ["--seed", "7"]
    processes = [subprocess.Popen([*command, "--process", i], cwd=tmp_path) for i in ("0", "1")]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    shown = run("report.py", "mine=run.tsv", "--radii", "0.1", "0.2", "--picture", "curves.png")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.splitlines()[1].split()[:2] == ["mine", "9"]
    assert len(read_log(tmp_path / "run.tsv")) == 9
    assert (tmp_path / "curves.png").stat().st_size > 5_000
    before = (tmp_path / "run.tsv").read_bytes()
    again = run("certify.py", *flags)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "run.tsv").read_bytes() == before
    other = run("certify.py", *flags, "--alpha", "0.01")
    assert other.returncode != 0
    assert "was made under other settings" in other.stderr


def test_scripts_draw_a_seed_show_it_and_go_on_with_it(tmp_path, run):
    (tmp_path / "mine.py").write_text(USER)
    np.savez(tmp_path / "data.npz", x=np.zeros((4, 4), np.float32), y=np.arange(4) % 3)
    flags = ("mine:classifier", "data.npz", "--sigma", "0.5", "--N", "200", "--quiet")
    seeds = []
    for output in ("one.tsv", "two.tsv"):
        done = run("certify.py", *flags, output, "--max", "2")
        assert done.returncode == 0, done.stderr
        seeds.append(int(done.stdout.split("seed of the votes:")[1].split()[0]))
        assert read_log(tmp_path / output)[0].settings["key"] == ",".join(map(str, divmod(seeds[-1], 2**32)))
    assert len(set(seeds)) == 2  # two seeds of 64 bits are the same with probability 5e-20
    resumed = run("certify.py", *flags, "one.tsv")
    assert resumed.returncode == 0, resumed.stderr
    again = run("certify.py", *flags, "again.tsv", "--seed", str(seeds[0]))
    assert again.returncode == 0, again.stderr
    kept, repeated = (read_votes(tmp_path / f"{name}.tsv.votes").votes.counts for name in ("one", "again"))
    np.testing.assert_array_equal(kept, repeated)
    other = run("certify.py", *flags, "one.tsv", "--seed", str(seeds[1]))
    assert "was made under other settings" in other.stderr


FAULTY = """
def classifier():
    return lambda x: x[:, :3] - x[:, :3].mean(axis=0, keepdims=True)
"""


def test_scripts_test_the_model_unless_told_not_to(tmp_path, run):
    (tmp_path / "faulty.py").write_text(FAULTY)
    np.savez(tmp_path / "data.npz", x=np.zeros((4, 4), np.float32), y=np.arange(4) % 3)
    flags = ("faulty:classifier", "data.npz", "run.tsv", "--sigma", "0.5", "--N", "200", "--quiet")
    assert "its scores depend on the batch" in run("certify.py", *flags).stderr
    assert not (tmp_path / "run.tsv").exists()
    assert run("certify.py", *flags, "--no-check").returncode == 0


@pytest.mark.parametrize(
    ("script", "flags", "message"),
    [
        ("certify.py", ("models:none", "models:mnist_test", "a.tsv", "--sigma", "1"), "models:none cannot be loaded"),
        ("certify.py", ("nothing", "models:mnist_test", "a.tsv", "--sigma", "1"), "must be module:factory"),
        ("certify.py", ("models:mnist_flax", "no.npz", "a.tsv", "--sigma", "1"), "must be an .npz file"),
        ("certify.py", ("models:mnist_flax", "models:mnist_test", "a.tsv", "--sigma", "-1"), "must be positive"),
        ("report.py", ("none.tsv",), "No such file"),
    ],
)
def test_scripts_say_what_is_wrong(tmp_path, run, script, flags, message):
    done = run(script, *flags)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("script", ["certify.py", "predict.py", "train.py", "report.py"])
def test_scripts_explain_their_flags(run, script):
    done = run(script, "--help")
    assert done.returncode == 0
    flags = {"train.py": ("--sigma", "--epochs", "--lr"), "report.py": ("--radii", "--style", "--picture")}
    for flag in flags.get(script, ("--sigma", "--N", "--alpha", "--batch", "--skip", "--max", "--distributed")):
        assert flag in done.stdout


def test_the_report_names_each_run(run, tmp_path):
    for name in ("modelA", "modelB", "a=b"):
        (tmp_path / name).mkdir()
        write_log(tmp_path / name / "run.tsv", [LogRow(0, 1, 1, 0.5, 1.0)])
    out = run("report.py", "modelA/run.tsv", "modelB/run.tsv", "a=b/run.tsv").stdout
    assert [line.split("  ")[0] for line in out.splitlines() if "run" in line][1:] == [
        "modelA/run",
        "modelB/run",
        "a=b/run",
    ]
    out = run("report.py", "mine=modelA/run.tsv", "theirs=1=modelB/run.tsv").stdout
    assert "\nmine " in out
    assert "\ntheirs=1 " in out


def test_going_on_with_training_takes_the_rate_that_is_given(mnist, run):
    flags = ("models:mnist_torch", mnist)
    assert run("train.py", *flags, "one", "--sigma", "0.5", "--epochs", "1", "--lr", "1e-7").returncode == 0
    done = run("train.py", *flags, "two", "--sigma", "0.5", "--epochs", "3", "--lr", "0.003", "--weights", "one")
    before, after = map(float, re.findall(r"from ([0-9.]+) to ([0-9.]+),", done.stdout)[0])
    assert after < before - 0.1


def test_scripts_say_what_is_wrong_in_one_line(tmp_path, run):
    (tmp_path / "mine.py").write_text(USER)
    np.savez(tmp_path / "data.npz", x=np.zeros((4, 4), np.float32), y=np.arange(4) % 3)
    flags = ("mine:classifier", "data.npz", "run.tsv", "--sigma", "0.5", "--N", "200", "--quiet")
    assert run("certify.py", *flags).returncode == 0
    np.savez(tmp_path / "data.npz", x=np.zeros((3, 4), np.float32), y=np.arange(3) % 3)
    done = run("certify.py", *flags)
    assert done.returncode == 2
    assert done.stderr.startswith("certify.py: error: data must be those of the run: input 3 is in the file")
