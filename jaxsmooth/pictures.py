"""Pictures: curves of runs, and a look at noisy inputs with their votes."""

import io
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
from jax.typing import ArrayLike
from scipy import special

from jaxsmooth._checks import as_host_inputs, as_n, as_noise
from jaxsmooth._host_loop import scores_on_host
from jaxsmooth._labels import as_labels
from jaxsmooth.arguments import as_alpha, as_flag, as_integer, as_numbers, in_brief
from jaxsmooth.certificates import certify
from jaxsmooth.curves import certified_accuracy
from jaxsmooth.logs import LogRow
from jaxsmooth.report_rows import (
    PICTURE_TITLE,
    Run,
    alpha_of,
    as_runs,
    bound_of,
    columns_of,
    common_settings,
    in_words,
    inputs_of,
    stored_bounds,
    stored_rows,
)
from jaxsmooth.stores import StoredRun
from jaxsmooth.stream import decision_keys, stream_samples
from jaxsmooth.types import ABSTAIN, Classifier, Noise, RandomClassifier

_DOTS = 200  # per inch, of a picture of pixels
_MOST_INPUTS = 16
_MOST_BARS = 12
_LINES = ("-", "--", ":", "-.")  # of ten curves each, which is how many colors there are


def draw_curves(
    runs: Mapping[str, Run],
    path: str | Path | None = None,
    *,
    ax: Any = None,
    alpha: float = 1e-3,
    delta: float = 1e-3,
    title: str | None = None,
    styles: Mapping[str, Mapping[str, Any]] | None = None,
) -> Any:
    """Draw the certified accuracy of runs against the radius, with its lower bound as a band below each curve.

    The legend says of a run that is not finished how far it is: "mine (120 of 500 inputs)".

    Args:
        runs, alpha: as for `report_table`.
        path: of the picture, in any format that matplotlib writes, such as .png, .pdf or .svg (the extra `plots`). None
            writes no file.
        ax: matplotlib axes to draw on; by default those of a figure of their own.
        title: over the picture; by default what the runs have in common, "" for none.
        delta: the band is the lower bound of `certified_accuracy_bound`, for all radii together.
        styles: for the name of a run, properties of its curve, as `Axes.step` takes them: `color`, `linestyle`, and
            `label`, its name in the legend.

    Returns:
        The axes, to change or to add to. `.figure` is their figure.

    Raises:
        ValueError, TypeError: as `report_table`; `styles` names no run. ImportError: matplotlib is missing.

    Example:
        >>> from jaxsmooth import LogRow
        >>> runs = {"mine": [LogRow(idx, 1, 1, radius=idx / 50, seconds=1.0) for idx in range(50)]}
        >>> ax = draw_curves(runs, styles={"mine": {"color": "black", "label": "ResNet-110"}}, title="")
        >>> ax.get_xlabel(), ax.get_legend_handles_labels()[1][0]
        ('certified radius', 'ResNet-110')
    """
    named = as_runs(runs)
    columns = {name: columns_of(name, rows) for name, rows in named.items()}
    alphas = {name: alpha_of(name, rows, alpha) for name, rows in named.items()}
    looks = _as_styles(styles, list(named))
    ax = _as_axes("draw_curves", ax)
    longest = max(float(np.max(radius)) for _, radius, _ in columns.values()) or 1.0
    end = 1.05 * longest
    for place, (name, run) in enumerate(columns.items()):
        # The curve steps down where a radius ends: at a radius itself it still counts.
        steps = np.unique([0.0, *run[1].tolist(), end])
        accuracy = certified_accuracy(*run, steps)
        try:
            label = _name_of_curve(name, named[name])
            look = _look(label, looks.get(name))
            (line,) = ax.step(steps, accuracy, where="pre", **{"linestyle": _LINES[place // 10 % 4], **look})
        except AttributeError as error:
            raise ValueError(f"styles must hold properties of a curve, got {looks.get(name)}: {error}") from None
        if alphas[name]:
            bound = bound_of(run, steps, alphas[name], delta)
            ax.fill_between(steps, bound, accuracy, step="pre", color=line.get_color(), alpha=0.25, linewidth=0)
    if any(alphas.values()):  # nothing was left to chance otherwise, and there is no band
        said = f"lower bound, probability {_less_than_one(delta)}"
        ax.fill_between([], [], color="grey", alpha=0.25, linewidth=0, label=said)
    said_norms = {rows[0].settings.get("norm") for rows in named.values()}
    norm = next((word for word in said_norms if word is not None), None)
    label = {None: "certified radius", "0": "number of changed features"}.get(norm, f"L{norm} radius")
    ax.xaxis.get_major_locator().set_params(integer=norm == "0")
    ax.set(xlabel=label, ylabel="certified accuracy", ylim=(0, 1), xlim=(0, end))
    ax.grid(alpha=0.3)
    # Axes of the caller may be small: a legend that is wider than they are would leave them no width.
    inches = ax.get_window_extent().width / ax.get_figure(root=True).dpi
    # A ground, since a curve may pass behind it.
    ax.legend(edgecolor="none", framealpha=0.85, fontsize=8 if inches > 3 else 6).set_in_layout(False)
    _finish(ax, in_words(common_settings(named, PICTURE_TITLE)) if title is None else title, path)
    return ax


def _less_than_one(failure: float) -> str:
    """Return 1 less a probability with all digits, since fewer could make it 1.

    Example:
        >>> _less_than_one(0.001), _less_than_one(1e-7)
        ('0.999', '0.9999999')
    """
    return f"{1 - Decimal(repr(float(failure))):f}"


def _look(label: str, own: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the properties of a curve. Matplotlib leaves labels out of the legend that begin with "_"."""
    look = {"label": label, **(own or {})}
    name = str(look["label"])
    return look | {"label": rf"$\_${name[1:]}" if name.startswith("_") else name}


def _name_of_curve(name: str, rows: Sequence[LogRow]) -> str:
    """Return the name of a run, and how far it is where it is not finished."""
    inputs = inputs_of(rows)
    return f"{name} ({inputs} inputs)" if " of " in inputs else name


def draw_probabilities(
    runs: Mapping[str, StoredRun],
    path: str | Path | None = None,
    *,
    ax: Any = None,
    alpha: float = 1e-3,
    title: str | None = None,
    styles: Mapping[str, Mapping[str, Any]] | None = None,
) -> Any:
    """Draw the share of inputs whose true class is more probable than p under the noise, against p.

    The curves count the lower bounds of `true_class_bounds`. The axis is that of Phi^-1(p), so that for Gaussian noise
    equal steps are equal steps of the radius, in units of sigma.

    Args:
        runs, alpha: as for `probability_table`.
        path, ax, title, styles: as for `draw_curves`.

    Returns:
        The axes.

    Raises:
        ValueError, TypeError: as `probability_table`; `styles` names no run. ImportError: matplotlib is missing.
    """
    bounds = stored_bounds(runs, as_alpha(alpha))
    looks = _as_styles(styles, list(bounds))
    ax = _as_axes("draw_probabilities", ax)
    ticks = np.array([0.01, 0.1, 0.5, 0.9, 0.99, 0.9999])
    for name, values in bounds.items():
        # The share changes at the bounds themselves: from a bound on, its input is not above p any more.
        shown = values[(values > ticks[0]) & (values < ticks[-1])].astype(np.float64)
        steps = np.unique([ticks[0], *shown.tolist(), ticks[-1]])
        above = len(values) - np.searchsorted(np.sort(values.astype(np.float64)), steps, side="right")
        share = above / len(values)
        ax.step(special.ndtri(steps), share, where="post", **_look(name, looks.get(name)))
    ax.set_xticks(special.ndtri(ticks), [f"{tick:g}" for tick in ticks])
    ax.axvline(0.0, color="grey", linewidth=0.8, linestyle=":", label="certified above 1/2")
    ax.set(xlabel="p, lower bound on the probability of the true class", ylabel="share of inputs above p", ylim=(0, 1))
    ax.set_xlim(special.ndtri(ticks[0]), special.ndtri(ticks[-1]))
    ax.grid(alpha=0.3)
    ax.legend(
        frameon=False,
        fontsize=8,
        title=f"bounds that hold with probability {_less_than_one(alpha)} each",
        title_fontsize=8,
    )
    _finish(ax, in_words(common_settings(stored_rows(runs, alpha), PICTURE_TITLE)) if title is None else title, path)
    return ax


def draw_votes(
    f: Classifier,
    noise: Noise,
    key: jax.Array,
    x: ArrayLike,
    path: str | Path | None = None,
    *,
    y: ArrayLike | None = None,
    copies: int = 5,
    names: Sequence[str] | None = None,
    image: Callable[[np.ndarray], ArrayLike] | None = None,
    n0: int = 100,
    n: int = 1000,
    alpha: float = 1e-3,
    batch_size: int = 256,
    ids: ArrayLike | None = None,
    compiled: bool = True,
) -> Any:
    """Draw inputs, noisy copies of each with the class that f gives it, all votes, and the certificate.

    For papers, and to see what f sees: whether the noise is on the scale of the inputs, whether a normalisation was
    forgotten, which classes share the votes. The copies are the first of the n samples whose votes are counted.

    Args:
        f, noise, key, n0, n, alpha, batch_size, ids, compiled: as for `certify`.
        x: `[N, *event]`, at most 16 inputs. Events `[H, W]`, `[H, W, 1 or 3]` and `[1 or 3, H, W]` are drawn as images,
            vectors as lines.
        path: as for `draw_curves`.
        y: the true classes `[N]`, written under the inputs; None if they are not known.
        copies: noisy copies to draw of each input.
        names: of the classes; their numbers by default. A class in red is not the one with most votes.
        image: makes of one input or one noisy copy what is drawn, such as `lambda x: x.reshape(28, 28)`.

    Returns:
        The figure. Its rows are the inputs. Images are drawn between the least and the largest value of their input,
        and noise beyond them is cut off in the picture only.

    Raises:
        ValueError, TypeError: an argument is not as described. ImportError: matplotlib is missing.

    Example:
        >>> from jaxsmooth import Gaussian
        >>> x = np.array([[[0.9, 0.1], [0.1, 0.1]]])
        >>> figure = draw_votes(lambda x: x.reshape(-1, 4), Gaussian(0.2), jax.random.key(0), x, copies=3)
        >>> [axes.get_title() for axes in figure.axes]
        ['input', '0', '0', '0', '1,000 votes']
    """
    n = as_n(n)
    copies = as_integer("copies", copies, 0, min(20, n))
    inputs = np.asarray(as_host_inputs(x, as_noise(noise)))
    if not 1 <= len(inputs) <= _MOST_INPUTS:
        raise ValueError(f"x must hold 1 to {_MOST_INPUTS} inputs to draw, got {len(inputs)}")
    # Their range is checked when the number of classes is known.
    truth = None if y is None else as_labels(y, len(inputs), 2**31 - 1)
    sizes: Any = {"n0": n0, "n": n, "batch_size": batch_size}
    show = _as_show(image, inputs[0])
    result = certify(f, noise, key, x, alpha=alpha, ids=ids, compiled=compiled, **sizes)
    counts = np.asarray(result.votes.counts)
    if counts.ndim != 2:
        raise ValueError(f"f must return scores [B, K] to draw votes, got components of shape {counts.shape[1:-1]}")
    words = _as_names(names, counts.shape[1])
    truth = None if truth is None else np.asarray(as_labels(truth, len(inputs), counts.shape[1])).tolist()
    shown = _noisy_copies(f, noise, key, inputs, ids, copies, as_flag("compiled", compiled))
    figure = _make_figure("draw_votes", (1.25 * (copies + 1) + 2.4, 1.45 * len(inputs) + 0.2))
    grid: Any = figure.subplots(len(inputs), copies + 2, squeeze=False, width_ratios=[1] * (copies + 1) + [1.7])
    for row, axes in enumerate(grid):
        # Images between the values of the input, and vectors on one scale, so that the noise is seen as large as it is.
        together = (
            inputs[row] if image is not None or inputs.ndim > 2 else [inputs[row], *(one for one, _ in shown[row])]
        )
        limits = float(np.min(together)), float(np.max(together))
        show(axes[0], inputs[row], limits)
        axes[0].set_title("input", fontsize=8)
        if truth is not None:
            name = _shortened(words[truth[row]])
            axes[0].set_xlabel(f"true:{_parted(name, ' ')}{name}", fontsize=8)
        for axis, (noisy, label) in zip(axes[1:-1], shown[row], strict=True):
            show(axis, noisy, limits)
            if label is not None:
                color = "black" if label == counts[row].argmax() else "C3"
                axis.set_title("invalid" if label < 0 else _shortened(words[label]), fontsize=8, color=color)
        _draw_counts(axes[-1], counts[row], int(np.max(result.votes.n)), words)
        label, radius = int(result.label[row]), float(result.radius[row])
        name = _shortened(words[label])
        certified = f"{name}{_parted(name, ', ')}{_radius_words(result.norm, radius)}"
        axes[-1].set_xlabel("abstains" if label == ABSTAIN else certified, fontsize=8)
    if path is not None:
        _save(figure, path)
    return figure


def _noisy_copies(
    f: Any, noise: Any, key: Any, x: np.ndarray, ids: Any, copies: int, compiled: bool
) -> list[list[tuple[np.ndarray, int | None]]]:
    """Return for each input its first noisy copies with their classes, -1 where the scores are not finite."""
    found: list[list[tuple[np.ndarray, int | None]]] = [[] for _ in x]
    if copies == 0:
        return found
    _, estimation = decision_keys(key)
    run = jax.jit(lambda rows: f(rows)) if compiled else f
    for noisy, rows in stream_samples(noise, estimation, x, ids=ids, n=copies, batch_size=len(x) * copies):
        if isinstance(f, RandomClassifier):  # what it draws for a sample is not known here
            labels: Any = [None] * len(rows)
        else:
            scores = scores_on_host(run(noisy))
            labels = np.where(np.isfinite(scores).all(axis=-1), scores.argmax(axis=-1), -1).tolist()
        for one, row, label in zip(np.asarray(noisy), rows, labels, strict=True):
            if row < len(x):
                found[row].append((one, label))
    return found


def _radius_words(norm: int | None, radius: float) -> str:
    """Return a radius in words, rounded down."""
    if norm == 0:
        return f"{radius:.0f} may change"
    return f"radius {np.floor(radius * 1000) / 1000:.3f}"


def _as_names(names: Any, classes: int) -> list[str]:
    """Return a name for each class."""
    if names is None:
        return [str(index) for index in range(classes)]
    if isinstance(names, str) or not hasattr(names, "__len__") or len(names) != classes:
        raise ValueError(f"names must hold one name for each of {classes} classes, got {in_brief(names)}")
    return [str(name) for name in names]


def _as_show(image: Any, event: np.ndarray) -> Callable[[Any, np.ndarray, tuple[float, float]], None]:
    """Return a function that draws one input on axes, after one try of it."""
    if image is not None and not callable(image):
        raise TypeError(f"image must be a function of one input, got {in_brief(image)}")

    def picture(one: np.ndarray) -> np.ndarray:
        made = one if image is None else as_numbers("what image returns", cast(Any, image(one)), "numbers")
        if made.ndim == 3 and {made.shape[0], made.shape[-1]} <= {1, 3}:
            raise ValueError(
                f"x must show where its channels are, and {made.shape} has them first or last: give image=, which "
                "makes [H, W] or [H, W, 3] of one input"
            )
        if made.ndim == 3 and made.shape[0] in (1, 3):
            made = np.moveaxis(made, 0, -1)
        return made[..., 0] if made.ndim == 3 and made.shape[-1] == 1 else made

    drawn = picture(event)
    is_image = drawn.ndim == 2 or (drawn.ndim == 3 and drawn.shape[-1] == 3)
    if not is_image and drawn.ndim != 1:
        raise ValueError(
            "x must hold images [H, W], [H, W, 1 or 3] or [1 or 3, H, W], or vectors, or image= must make such of one "
            f"input; got the shape {drawn.shape}"
        )

    def show(ax: Any, one: np.ndarray, limits: tuple[float, float]) -> None:
        made = picture(one)
        if image is not None and is_image:
            limits = float(np.min(drawn)), float(np.max(drawn))
        low, high = limits if limits[1] > limits[0] else (limits[0], limits[0] + 1)
        if is_image and made.ndim == 3:
            ax.imshow(np.clip((made - low) / (high - low), 0, 1))
        elif is_image:
            ax.imshow(made, cmap="gray", vmin=low, vmax=high)
        else:
            ax.plot(made, linewidth=0.8, color="black")
            margin = 0.05 * (high - low)
            ax.set_ylim(low - margin, high + margin)
        ax.set(xticks=[], yticks=[])

    return show


def _draw_counts(ax: Any, counts: np.ndarray, n: int, names: list[str]) -> None:
    """Draw the votes of the classes that have most, as bars."""
    top = np.argsort(-counts, kind="stable")[: min(_MOST_BARS, len(counts))]
    order = np.sort(top) if len(counts) <= _MOST_BARS else top
    best = counts.argmax()
    colors = ["C0" if index == best else "C3" for index in order]
    ticks = range(len(order)), [_shortened(names[index]) for index in order]
    is_short = max(map(len, names)) <= 2
    if is_short:
        ax.bar(range(len(order)), counts[order], color=colors)
        ax.set_xticks(*ticks, fontsize=6)
        ax.set(ylim=(0, n), yticks=[])
    else:  # names that are longer are read from left to right
        ax.barh(range(len(order)), counts[order], color=colors)
        ax.set_yticks(*ticks, fontsize=6)
        ax.set(xlim=(0, n), xticks=[], ylim=(len(order) - 0.5, -0.5))
    few = f", {len(order)} of {len(counts)} classes" if len(order) < len(counts) else ""
    ax.set_title(f"{n:,} votes{few}", fontsize=8)
    for side in ("top", "right", "left" if is_short else "bottom"):
        ax.spines[side].set_visible(False)


def _parted(name: str, by: str) -> str:
    """Return what parts a name from the words beside it: a new line, where one line would be too wide."""
    return by if len(name) <= 8 else "\n"


def _shortened(name: str) -> str:
    """Return a name of a class that fits beside a bar."""
    return textwrap.shorten(name, 16, placeholder="…")


def _as_styles(styles: Any, names: list[str]) -> dict[str, dict[str, Any]]:
    """Return the properties of curves, by the name of their run."""
    if styles is None:
        return {}
    expected = "a mapping from names of runs to properties of their curves"
    if not isinstance(styles, Mapping) or not all(
        isinstance(own, Mapping) for own in cast(Mapping[Any, Any], styles).values()
    ):
        raise TypeError(f"styles must be {expected}, got {in_brief(styles)}")
    made = {str(name): dict(own) for name, own in cast(Mapping[Any, Any], styles).items()}
    unknown = [name for name in made if name not in names]
    if unknown:
        raise ValueError(f"styles must be of the runs {', '.join(names)}, got {', '.join(unknown)}")
    return made


def _as_axes(function: str, ax: Any) -> Any:
    """Return axes to draw on: those that are given, or those of a figure that belongs to no window."""
    if ax is None:
        return _make_figure(function, (6, 3.8)).subplots()
    if not all(hasattr(ax, name) for name in ("step", "fill_between", "get_figure")):
        raise TypeError(f"ax must be matplotlib axes, got {in_brief(ax)}")
    return ax


def _make_figure(function: str, size: tuple[float, float]) -> Any:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError(f"{function} needs matplotlib: pip install 'jaxsmooth[plots]'") from None

    class Picture(Figure):
        """A figure that belongs to no window, and that notebooks show as it is."""

        def _repr_png_(self) -> bytes:
            file = io.BytesIO()
            self.savefig(file, format="png", dpi=_DOTS / 2)
            return file.getvalue()

    figure = Picture(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _finish(ax: Any, title: str, path: Any) -> None:
    """Set a title that fits, and write the file."""
    if not isinstance(title, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"title must be text, got {in_brief(title)}")
    figure = ax.get_figure(root=True)
    if title:
        _fit_title(ax, figure, title)
    if path is not None:
        _save(figure, path)


def _fit_title(ax: Any, figure: Any, title: str) -> None:
    """Break a title into lines that are not wider than the axes, each of which is measured as it is drawn.

    It may take a third of the height of the figure: longer ones are written smaller.
    """
    figure.draw_without_rendering()  # only now does the layout give the axes their width
    room = ax.get_window_extent()
    drawn = ax.set_title(title)
    for size in (9, 8, 7, 6, 5, 4):
        drawn.set_fontsize(size)
        drawn.set_text(title)
        longest = max(map(len, title.splitlines()))
        most = math.ceil(1.5 * longest * room.width / max(drawn.get_window_extent().width, 1))
        for characters in range(max(min(longest, most), 8), 7, -1):
            drawn.set_text("\n".join(textwrap.fill(line, characters) for line in title.splitlines()))
            if drawn.get_window_extent().width <= room.width:
                break
        if drawn.get_window_extent().height <= figure.bbox.height / 3:
            return


def _save(figure: Any, path: Any) -> None:
    """Write a figure. Letters in a PDF are type 42, as journals ask for."""
    import matplotlib as mpl

    # Without a layout, labels of the caller's axes may lie beyond the figure.
    whole = {} if figure.get_layout_engine() else {"bbox_inches": "tight"}
    with mpl.rc_context({"pdf.fonttype": 42, "ps.fonttype": 42}):
        figure.savefig(path, dpi=_DOTS, **whole)
