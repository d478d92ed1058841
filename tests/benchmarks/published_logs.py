"""Read the logs that Cohen et al. published, and set them beside their paper's table.

`python -m tests.benchmarks.published_logs FOLDER`, the folder being a checkout of github.com/locuslab/smoothing.
"""

import argparse
from pathlib import Path

from jaxsmooth import certified_accuracy, read_log, report_table

RADII = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
# Certified accuracy on CIFAR-10 at these radii, from analysis/markdown/vary_noise_cifar10.
PUBLISHED = {
    "0.12": (0.59, 0.00, 0.00, 0.00, 0.00, 0.00),
    "0.25": (0.60, 0.43, 0.27, 0.00, 0.00, 0.00),
    "0.50": (0.55, 0.41, 0.32, 0.23, 0.15, 0.09),
    "1.00": (0.39, 0.34, 0.28, 0.22, 0.17, 0.14),
}


def main() -> None:
    """Print all logs as one table; fail where a figure is not as published."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    root = parser.parse_args().folder / "data" / "certify"
    runs = {str(path.relative_to(root)): read_log(path) for path in sorted(root.rglob("sigma_*"))}
    print(report_table(runs, RADII))
    for sigma, published in PUBLISHED.items():
        rows = runs[f"cifar10/resnet110/noise_{sigma}/test/sigma_{sigma}"]
        columns = ([getattr(row, name) for row in rows] for name in ("predict", "radius", "label"))
        accuracy = certified_accuracy(*columns, RADII)
        # Rounded to two digits, a half either way.
        assert all(abs(a - p) <= 0.005 + 1e-9 for a, p in zip(accuracy, published, strict=True)), (sigma, accuracy)
    print(f"{len(runs)} logs read; CIFAR-10 as published at all {len(PUBLISHED)} noise levels and {len(RADII)} radii")


if __name__ == "__main__":
    main()
