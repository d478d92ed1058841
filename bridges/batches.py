"""How many rows are drawn, and how many go through a network, at once."""

from jaxsmooth.samples import equal_part, few_sizes

_NOISE_VALUES = 2**21  # drawn at once
# Values in the widest layer, and rows, in one call of the classifier: what a processor's cache holds, what fills a GPU.
CPU_BATCH, GPU_BATCH = (2**20, 2**12), (2**26, 2**14)


def rows_drawn_at_once(total: int, batch_size: int, features: int) -> int:
    """Return how many noisy inputs are drawn at once: whole batches, since alternating with the network costs time.

    One of few sizes, since each is compiled by itself. Where it takes several draws, the largest, or the one below it
    if that leaves less unused of a last draw that counts.

    Example:
        >>> rows_drawn_at_once(100, batch_size=128, features=3072), rows_drawn_at_once(4000, 128, 3072)
        (128, 512)
    """
    if total <= batch_size:
        return max(1, min(batch_size, few_sizes(total)))
    most = max(1, _NOISE_VALUES // features // batch_size)
    batches = -(-total // batch_size)
    if batches <= most:
        return min(most, few_sizes(batches)) * batch_size
    power = 1 << (most.bit_length() - 1)
    sizes = [number for number in (power * 3 // 2, power, power * 3 // 4) if most // 2 < number <= most]
    return min(sizes, key=lambda number: (max(-total % (number * batch_size), total // 16), -number)) * batch_size


def even_rows(total: int, most: int) -> int:
    """Return the size of the fewest equal parts of at most so many rows, one of 16 sizes between powers of two.

    Example:
        >>> even_rows(4128, most=4096), even_rows(1032, 4096), even_rows(100_000, 4096)
        (2176, 1088, 4096)
    """
    size = equal_part(total, most)
    unit = 1 << max(0, size.bit_length() - 5)
    return min(most, -(-size // unit) * unit)
