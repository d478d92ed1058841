"""The seed of the votes, for all examples."""

import secrets


def seed_of(given: int | None) -> int:
    """Return the seed of the votes, which is drawn if none is given, and show it.

    A certificate does not hold against someone who knew the noise when choosing the input or the model.
    """
    seed = secrets.randbits(64) if given is None else given
    print(f"seed of the votes: {seed}")
    return seed
