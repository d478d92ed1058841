"""Every way that JAX is set up: the same votes, or what JAX itself refuses.

A process of its own (`python -m tests.test_setups`), since a mesh needs several devices, and prints what differs.
"""

import contextlib
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

SETTINGS = ("rbg", "strict", "x64", "no jit", "leaks", "explicit", "guard")


@pytest.mark.slow
def test_every_function_gives_the_same():
    """One test of all settings: as several they would run the process once in each worker of pytest."""
    command = [sys.executable, "-m", "tests.test_setups"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1], timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {setting: {} for setting in SETTINGS}


def functions():
    """Name -> function of the inputs, `[4, 5]`."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    from jax.tree_util import Partial

    import jaxsmooth as js
    from jaxsmooth import losses, training

    key = jax.random.key(0, impl="threefry2x32")
    weights = jnp.asarray(np.random.default_rng(0).normal(size=(5, 3)), jnp.float32)
    f, noise = Partial(lambda w, x: x @ w, weights), js.Gaussian(0.5)
    moved = js.RandomClassifier(lambda x, keys: x + jax.vmap(lambda k: jax.random.normal(k, (5,), jnp.float32))(keys))
    labels = np.array([0, 1, 2, 0])

    def data_set(x):
        import tempfile

        data = [(row, 0) for row in np.asarray(x)]
        with tempfile.TemporaryDirectory() as folder:
            mode = js.Fixed(n0=10, n=50)
            rows = js.certify_dataset(f, noise, key, data, f"{folder}/run", mode=mode, progress=False)
            return np.array([row.radius for row in rows])

    def train(x):
        optimizer = optax.sgd(0.1)
        state = training.init_train_state(f, optimizer)
        return training.make_train_step(losses.gaussian, optimizer)(state, noise, key, x, labels)[1]

    def gradient(loss):
        return lambda x: jax.grad(lambda f: loss(f, noise, key, x, labels))(f).args[0]

    return {
        "certify": lambda x: js.certify(f, noise, key, x, n=100).radius,
        "certify in jit": lambda x: jax.jit(lambda x: js.certify(f, noise, key, x, n=100).radius)(x),
        "certify on the host": lambda x: js.certify(f, noise, key, x, n=100, compiled=False).radius,
        "certify_radii": lambda x: js.certify_radii(f, noise, key, x, [0.1, 0.3], n=500).radius,
        "smooth": lambda x: js.smooth(f, noise, n=50)(key, x),
        "gradient": lambda x: jax.grad(lambda x: js.smooth(f, noise, n=50)(key, x)[0, 0])(x),
        "random": lambda x: js.count_votes(moved, noise, key, x, n=50),
        "data set": data_set,
        "key": lambda _: jax.random.key_data(js.stream_key(js.key_of_seed(5), 3, 4)),
        "train": train,
        "smoothmix": gradient(partial(losses.smoothmix, clip_values=None)),
    }


@contextlib.contextmanager
def configured(**changes):
    import jax

    before = {name: getattr(jax.config, name) for name in changes}
    for name, value in changes.items():
        jax.config.update(name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def main():
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
    import jax
    import numpy as np
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    plain = np.random.default_rng(1).normal(size=(4, 5)).astype(np.float32)
    mesh = jax.make_mesh((2,), ("a",), axis_types=(AxisType.Explicit,))
    table = functions()
    compiled = jax.jit(table.pop("certify in jit"))
    settings = {
        "rbg": lambda: configured(jax_default_prng_impl="rbg"),
        "x64": lambda: configured(jax_enable_x64=True),
        "no jit": jax.disable_jit,
        "leaks": jax.checking_leaks,
        # Each of these only refuses more, so together they are as strict as each by itself.
        "strict": lambda: configured(
            jax_default_prng_impl="unsafe_rbg",
            jax_debug_nans=True,
            jax_numpy_rank_promotion="raise",
            jax_numpy_dtype_promotion="strict",
        ),
        "explicit": lambda: jax.set_mesh(mesh),
    }
    expected = {name: np.asarray(run(plain)) for name, run in table.items()}
    report = {setting: {} for setting in (*settings, "guard")}
    for setting, enter in settings.items():
        x = jax.device_put(plain, NamedSharding(mesh, PartitionSpec("a"))) if setting == "explicit" else plain
        for name, run in table.items():
            try:
                with enter():
                    found = np.asarray(run(x))
                np.testing.assert_allclose(found, expected[name], rtol=1e-5, atol=1e-6)
            except Exception as error:
                report[setting][name] = f"{type(error).__name__}: {str(error)[:200]}"
    # Outside of jit, arguments such as a scale move to the device: the guard refuses that, as for any function of JAX.
    on_device = jax.device_put(plain)
    compiled(on_device)
    with jax.transfer_guard("disallow"):
        found = compiled(on_device)
        try:
            table["certify"](plain)
            report["guard"]["certify"] = "was not refused"
        except jax.errors.JaxRuntimeError as error:
            if "Disallowed host-to-device transfer" not in str(error):
                report["guard"]["certify"] = str(error)
    np.testing.assert_array_equal(found, expected["certify"])
    print(json.dumps(report))


if __name__ == "__main__":
    main()
