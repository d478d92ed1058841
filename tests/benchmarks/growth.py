"""How time and memory of `certify` grow with votes, inputs, classes and the size of an input, in one network."""

import os
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bridges.pytorch import PyTorchRandomizedSmoothing
from tests.memory import peak, reset_peak

_SERIES = {
    "votes n": [{"n": n} for n in (1000, 4000, 16_000)],
    "inputs N": [{"images": images} for images in (1, 4, 16)],
    "classes K": [{"classes": classes} for classes in (10, 100, 1000)],
    "side of an input": [{"side": side} for side in (32, 64, 128)],
}


def machine() -> str:
    """Return what this runs on."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores"


def measure(rounds: int) -> dict[str, list[dict[str, Any]]]:
    """Print and return seconds, rows that went through the network, and peak memory beyond that before the call."""
    found: dict[str, list[dict[str, Any]]] = {}
    for name, series in _SERIES.items():
        found[name] = [_point(rounds=rounds, **setting) for setting in series]
        print(f"certify, growing {name}:")
        for setting, point in zip(series, found[name], strict=True):
            (value,) = setting.values()
            parts = f"{1000 * point['seconds']:8.0f} ms  {point['rows']:8,} rows  {point['peak_mb']:6.0f} MB"
            print(f"  {value:7,} {parts}", flush=True)
    return found


def _point(n: int = 1000, images: int = 4, classes: int = 10, side: int = 32, rounds: int = 5) -> dict[str, Any]:
    torch.manual_seed(0)
    rows: list[int] = []
    features = 32 * (side // 4) ** 2
    layers = (nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.Flatten())
    network = nn.Sequential(*layers, nn.Linear(features, classes))
    network.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    shape = (3, side, side)
    classifier = PyTorchRandomizedSmoothing(network, nn.CrossEntropyLoss(), shape, classes, scale=0.25, seed=0)
    x = np.random.default_rng(0).uniform(size=(images, *shape)).astype(np.float32)
    classifier.certify(x, n)
    times, peaks = [], []
    for _ in range(rounds):
        rows.clear()
        before = reset_peak()
        start = time.perf_counter()
        classifier.certify(x, n)
        times.append(time.perf_counter() - start)
        peaks.append(peak() - before)
    return {"seconds": float(np.median(times)), "rows": sum(rows), "peak_mb": float(np.median(peaks))}
