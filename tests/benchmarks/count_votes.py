"""Throughput of `count_votes` against its floors: `python -m tests.benchmarks.count_votes`.

For each model, interleaved in one process, medians over rounds:

- bare: the jitted forward on ready-made noisy batches, at its best batch size.
- floor: per chunk one jitted program of noise (one key a batch, `jax.random.normal`) and forward, likewise.
- ours: `count_votes`, at its best batch size.
- stream: `stream_votes` of the jitted model, at its best batch size.
"""

import argparse
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

import jaxsmooth
from tests.benchmarks.models import MODELS, build


def seconds(function: Callable[[], object]) -> float:
    """Return the seconds that one call takes, until its result is ready."""
    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start


def contenders(name: str, samples: int) -> dict[str, dict[int, Callable[[], object]]]:
    """Return, for each way to run `samples` forwards, the runs by batch size."""
    f, event, batch_sizes = build(name)
    x = jax.random.uniform(jax.random.key(1), (4, *event))
    noise = jaxsmooth.Gaussian(0.25)
    forward = jax.jit(lambda f, x: jnp.argmax(f(x), -1))
    noisy_forward = jax.jit(lambda f, key, x: jnp.argmax(f(x + 0.25 * jax.random.normal(key, x.shape)), -1))
    keys = list(jax.random.split(jax.random.key(2), samples // min(batch_sizes)))

    def bare(batch_size):
        ready = x[0] + 0.25 * jax.random.normal(jax.random.key(3), (batch_size, *event))
        return lambda: [jax.block_until_ready(forward(f, ready)) for _ in range(samples // batch_size)]

    def floor(batch_size):
        batch = jnp.broadcast_to(x[0], (batch_size, *event))
        return lambda: [jax.block_until_ready(noisy_forward(f, k, batch)) for k in keys[: samples // batch_size]]

    def ours(batch_size):
        key = jax.random.key(4)
        return lambda: jaxsmooth.count_votes(f, noise, key, x, n=samples // 4, batch_size=batch_size)

    def stream(batch_size):
        key, jitted = jax.random.key(4), jax.jit(f)
        return lambda: jaxsmooth.stream_votes(jitted, noise, key, x, n=samples // 4, batch_size=batch_size)

    return {kind.__name__: {b: kind(b) for b in batch_sizes} for kind in (bare, floor, ours, stream)}


def measure(name: str, samples: int, rounds: int) -> None:
    """Print the throughput of each contender at its best batch size, and the ratios."""
    runs = [(kind, b, run, []) for kind, by_size in contenders(name, samples).items() for b, run in by_size.items()]
    for _, _, run, _ in runs:
        run()
    for _ in range(rounds):
        for _, _, run, times in runs:
            times.append(seconds(run))
    best = {}
    for kind, batch_size, _, times in runs:
        best[kind] = min(best.get(kind, (np.inf, 0)), (float(np.median(times)), batch_size))
    cells = [f"{kind} {samples / t:9,.0f}/s (batch {b})" for kind, (t, b) in best.items()]
    ours = best["ours"][0]
    ratios = f"ours/floor {best['floor'][0] / ours:.2f}  ours/bare {best['bare'][0] / ours:.2f}"
    print(f"{name:18} {'  '.join(cells)}  {ratios}", flush=True)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="interleaved rounds (9)")
    rounds = parser.parse_args().rounds
    for name, samples in zip(MODELS, (65_536, 16_384, 2_048), strict=True):
        measure(name, samples, rounds)


if __name__ == "__main__":
    main()
