"""Certify a text classifier against changed words: which Python package is this docstring from?

The texts are windows of 64 words from the docstrings of numpy, scipy.stats and torch.nn, as they are installed here.
The classifier, a bag of embeddings, sees 8 of the 64 words, chosen at random, and a mask for the others. The smoothed
one then keeps its class whichever few words are replaced, by whatever words (randomized ablation; Levine & Feizi 2020,
arXiv:1911.09272). Prints a table; nothing is downloaded. It takes about a minute on two cores.
"""

import argparse
import importlib
import inspect
import re
import time
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial
from seeds import seed_of

import jaxsmooth
from jaxsmooth import losses
from jaxsmooth.training import init_train_state, make_train_step

MODULES = ("numpy", "scipy.stats", "torch.nn")
GIVEN_AWAY = {"numpy", "np", "scipy", "stats", "torch", "nn"}
MASK = 0
RARE = 1  # all words that are not among the most frequent ones
VOCABULARY = 3000
LENGTH = 64
CHANGES = (0, 1, 2, 3, 4, 5)


def words_of(module: str) -> list[list[str]]:
    """Return the words of each long docstring of a module, without those that give it away."""
    found: dict[str, None] = {}
    for _, item in inspect.getmembers(importlib.import_module(module)):
        if inspect.isroutine(item) or inspect.isclass(item):
            found[inspect.cleandoc(item.__doc__ or "")] = None
    texts = ([w for w in re.findall(r"[a-z]+", text.lower()) if w not in GIVEN_AWAY] for text in found)
    return [words for words in texts if len(words) >= LENGTH]


def load_windows(seed: int) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Return windows `i32[N, 64]` with their classes, for training and for certifying: of different docstrings."""
    rng = np.random.default_rng(seed)
    texts = [(words, label) for label, module in enumerate(MODULES) for words in words_of(module)]
    order = rng.permutation(len(texts))
    cut = len(texts) * 3 // 4
    parts = [[texts[i] for i in order[:cut]], [texts[i] for i in order[cut:]]]
    frequent = Counter(word for words, _ in parts[0] for word in words).most_common(VOCABULARY - 2)
    token = {word: index + 2 for index, (word, _) in enumerate(frequent)}

    def windows(part: list[tuple[list[str], int]]) -> tuple[np.ndarray, np.ndarray]:
        rows = [
            ([token.get(word, RARE) for word in words[start : start + LENGTH]], label)
            for words, label in part
            for start in range(0, len(words) - LENGTH + 1, LENGTH)
        ]
        chosen = rng.permutation(len(rows))
        return np.array([rows[i][0] for i in chosen], np.int32), np.array([rows[i][1] for i in chosen])

    return windows(parts[0]), windows(parts[1])


def scores(params: Any, tokens: jax.Array) -> jax.Array:
    """Map tokens `i32[B, 64]` to logits `[B, 3]`: the mean embedding of the words that are not masked."""
    is_shown = (tokens != MASK)[..., None]
    mean = jnp.where(is_shown, params["embedding"][tokens], 0).sum(axis=1) / jnp.maximum(is_shown.sum(axis=1), 1)
    return mean @ params["weights"] + params["bias"][None]


def main(argv: list[str] | None = None) -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--kept", type=int, default=8, help=f"words that the classifier sees, of {LENGTH}")
    parser.add_argument("--n", type=int, default=10_000, help="votes on each text")
    parser.add_argument("--count", type=int, default=300, help="texts to certify")
    parser.add_argument("--epochs", type=int, default=40, help="of the training")
    parser.add_argument("--seed", type=int, help="of the votes and the training; drawn if not given")
    arguments = parser.parse_args(argv)

    seed = seed_of(arguments.seed)
    (x, y), (texts, truth) = load_windows(0)
    texts, truth = texts[: arguments.count], truth[: arguments.count]
    noise = jaxsmooth.Ablation(positions=(LENGTH,), kept=arguments.kept, mask=MASK)

    rng = np.random.default_rng(seed)
    key = jaxsmooth.key_of_seed(seed)
    params = {"embedding": jnp.asarray(0.1 * rng.standard_normal((VOCABULARY, 32)), jnp.float32)}
    params |= {"weights": jnp.asarray(0.1 * rng.standard_normal((32, len(MODULES))), jnp.float32)}
    params |= {"bias": jnp.zeros(len(MODULES))}
    optimizer = optax.adamw(5e-3, weight_decay=0.05)
    # Training sees what is certified: words that are masked at random.
    state = init_train_state(Partial(scores, params), optimizer)
    step = make_train_step(losses.gaussian, optimizer)
    training_key = jaxsmooth.stream_key(key, 100)
    for _ in range(arguments.epochs):
        for rows in np.array_split(rng.permutation(len(x)), max(len(x) // 128, 1)):
            state, _ = step(state, noise, training_key, jnp.asarray(x[rows[:128]]), jnp.asarray(y[rows[:128]]))
    clean = np.asarray(state.f(jnp.asarray(texts)).argmax(axis=1))
    print(
        f"{len(x)} texts to train on; accuracy on {len(texts)} others, all words shown: {(clean == truth).mean():.3f}"
    )

    began = time.monotonic()
    result = jaxsmooth.certify(state.f, noise, key, texts, n=arguments.n)
    print(f"certified in {time.monotonic() - began:.0f} s, {arguments.n:,} votes each, alpha 0.001")
    rows = jaxsmooth.log_rows(result, truth, noise=noise, alpha=0.001, n=arguments.n)
    print(jaxsmooth.report_table({"words changed": rows}, CHANGES))


if __name__ == "__main__":
    main()
