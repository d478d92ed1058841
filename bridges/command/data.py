"""Data as the command line names them: factories, .npz files, folders of images by class."""

import itertools
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np

from bridges.command.factories import is_factory, make
from jaxsmooth.arguments import as_integer, refuse_unpaired
from jaxsmooth.datasets import is_indexed, is_two_arrays

HELP = """the data: module:factory or file.py:factory, whose factory returns two arrays (x, labels), or pairs (x, label)
as a list, a torch Dataset, a tf.data.Dataset or a generator; or an .npz file with arrays x and y; or a folder with one
folder of images for each class, in the order of their names"""

_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")


def load_data(name: str, framework: str, size: int | None) -> Any:
    """Return the data set of a factory, an .npz file or a folder of images.

    Args:
        name: as the command line has it.
        framework: of the model: images of a folder are `[C, H, W]` for PyTorch, else `[H, W, C]`.
        size: of images of a folder, which are resized and cut to squares of it.

    Raises:
        ValueError: it is none of these; the message says what is wrong.
    """
    path = Path(name)
    if path.is_dir():
        return ImageFolder(path, framework == "torch", size)
    if size is not None:
        raise ValueError(f"--size is for a folder of images, got DATA {name}")
    if is_factory(name):
        return make(name, "DATA")
    if path.suffix != ".npz":
        raise ValueError(f"DATA must be module:factory, an .npz file or a folder of images: got {name}")
    try:
        with np.load(path, allow_pickle=False) as file:
            return file["x"], file["y"]
    except (OSError, KeyError, ValueError, EOFError) as error:
        # NumPy advises to load pickled objects, which could execute anything.
        said = "it holds Python objects, or is damaged" if "allow_pickle" in str(error) else error
        raise ValueError(f"DATA {name} must be an .npz file with arrays x and y: {said}") from None


class ImageFolder(Sequence[tuple[np.ndarray, int]]):
    """Images by class: `folder/class/image.png`. Each is read when it is asked for.

    Attributes:
        classes: names of the folders, in the order of their labels.
    """

    def __init__(self, folder: Path, channels_first: bool, size: int | None) -> None:
        try:
            import PIL  # noqa: F401  # pyright: ignore[reportUnusedImport]
        except ImportError:
            raise ValueError("a folder of images needs the package pillow: pip install pillow") from None
        # Jupyter and macOS leave folders and files of their own, whose names begin so.
        self.classes = sorted(found.name for found in folder.iterdir() if found.is_dir() and not _is_hidden(found.name))
        self._files = [
            (file, label)
            for label, name in enumerate(self.classes)
            for file in sorted((folder / name).rglob("*"))
            if file.suffix.lower() in _ENDINGS and not any(map(_is_hidden, file.relative_to(folder).parts))
        ]
        if not self._files:
            raise ValueError(f"DATA {folder} must hold one folder of images for each class, and has no image in one")
        self._channels_first = channels_first
        self._size = size
        # Images are gray if all of them are; their headers say it.
        self._mode = "L" if all(_kind(file) in ("1", "L", "LA") for file, _ in self._files) else "RGB"
        self._shape = self[0][0].shape

    def __len__(self) -> int:
        """How many images there are."""
        return len(self._files)

    def __getitem__(self, index: Any) -> Any:
        """Return an image with values in [0, 1], and its label."""
        file, label = self._files[index]
        image = _read(file, self._mode)
        if self._size is not None:
            image = _fit(image, self._size)
        x = np.asarray(image, np.float32) / 255
        x = x[..., None] if x.ndim == 2 else x
        x = np.ascontiguousarray(np.moveaxis(x, -1, 0) if self._channels_first else x)
        if x.shape != getattr(self, "_shape", x.shape):
            raise ValueError(f"images must be of one size, got {x.shape} and {self._shape} ({file}): give --size")
        return x, label


def doubts_of_folders(data: Any) -> list[str]:
    """Return what looks like a mistake about the labels of folders whose names are numbers.

    Labels are the places in the order of names, as in torchvision, where 10 comes before 2.
    """
    names: list[str] = getattr(data, "classes", [])
    if not all(name.isdecimal() for name in names):
        return []
    others = [(label, name) for label, name in enumerate(names) if int(name) != label]
    return [
        f"a label of DATA is the place of its folder in the order of names: that of {name} is {label}"
        for label, name in others[:1]
    ]


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "__MACOSX"))


def _kind(file: Path) -> str:
    """Return the mode of an image, as its header says it."""
    with _opened(file) as image:
        return image.mode


def _read(file: Path, mode: str) -> Any:
    """Return an image as a viewer shows it, or say what in it would be lost."""
    from PIL import ImageOps

    with _opened(file) as image:
        if image.mode.startswith(("I", "F")):  # pillow would cut their values off at 255
            raise ValueError(f"{file} must have 8 bits for each channel, got the mode {image.mode} of pillow")
        if getattr(image, "n_frames", 1) > 1:
            raise ValueError(f"{file} must be one image, got {image.n_frames} frames")
        if image.has_transparency_data and image.convert("RGBA").getextrema()[3][0] < 255:
            raise ValueError(f"{file} must be opaque: put it on a background first")
        return ImageOps.exif_transpose(image).convert(mode)


@contextmanager
def _opened(file: Path) -> Generator[Any]:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file) as image:
            yield image
    except UnidentifiedImageError:
        raise ValueError(f"{file} is no image that pillow reads") from None


def _fit(image: Any, size: int) -> Any:
    """Return the middle square of an image whose shorter side is resized."""
    from PIL import Image

    width, height = image.size
    share = size / min(width, height)
    image = image.resize((round(width * share), round(height * share)), Image.Resampling.BILINEAR)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def some_inputs(data: Any, number: int) -> tuple[np.ndarray, list[int]]:
    """Return inputs of a data set with their labels: spread over it where it is indexed, since it may be in order.

    Of a generator they are the first, and a new one must be made afterwards.
    """
    if _is_two_arrays(data):
        x, y = data
        if len(x) != len(y) or len(x) == 0:
            raise ValueError(f"DATA must have one label for each input, and at least one, got {len(x)} and {len(y)}")
        at = spread(len(x), number)
        return np.asarray(x)[at], [_as_label(y[index]) for index in at]
    if is_indexed(data):
        data = [data[int(index)] for index in spread(len(data), number)]
    x, labels = _split(itertools.islice(data, number))
    return x, labels.tolist()


def _split(data: Iterable[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return inputs and labels of pairs."""
    pairs: list[Any] = []
    for place, pair in enumerate(data):
        refuse_unpaired("DATA", pair, f"at place {place}")
        pairs.append(pair)
    if not pairs:
        raise ValueError("DATA must have at least one input")
    rows = [np.asarray(x) for x, _ in pairs]
    shapes = {row.shape for row in rows}
    if len(shapes) > 1:
        raise ValueError(f"DATA must have inputs of one shape, got {' and '.join(map(str, sorted(shapes)[:2]))}")
    return np.stack(rows), np.array([_as_label(y) for _, y in pairs])


def _is_two_arrays(data: Any) -> bool:
    """Whether data are inputs and labels side by side, and not pairs; two lists could be either."""
    if isinstance(data, tuple) and len(cast(Any, data)) == 2 and isinstance(data[0], list):
        raise ValueError("DATA must be two arrays (x, labels), or pairs, got two lists: make arrays of them")
    if isinstance(data, Mapping):
        keys = ", ".join(map(str, cast(Any, data)))
        raise ValueError(f"DATA must be two arrays (x, labels), or pairs, got a {type(data).__name__} of {keys}")
    if isinstance(data, np.ndarray):
        raise ValueError(f"DATA must be two arrays (x, labels), or pairs, got one array of shape {data.shape}")
    if not isinstance(data, Iterable) and not is_indexed(data):
        raise ValueError(f"DATA must be two arrays (x, labels), or pairs, got a {type(data).__name__}")
    return is_two_arrays(data)


def spread(total: int, number: int) -> np.ndarray:
    """Return up to `number` indices, at equal distances."""
    return np.unique(np.linspace(0, total - 1, min(number, total)).astype(int))


def as_arrays(data: Any) -> tuple[Any, np.ndarray]:
    """Return all inputs and labels, for training."""
    if not _is_two_arrays(data):
        return _split(data)
    x, y = data
    return np.asarray(x), np.asarray(y)


def _as_label(label: Any) -> int:
    label = np.asarray(label)
    if label.size != 1 or label.dtype.kind not in "biuf":
        raise ValueError(
            f"DATA must have one number of a class for each input, got a label of shape {label.shape} and dtype "
            f"{label.dtype}: of one-hot rows take y.argmax(axis=1), of a loader of batches its data set"
        )
    return as_integer("a label of DATA", label.reshape(())[()], 0)


def refuse_others(one: Any, other: Any) -> Iterable[Any]:
    """Return the pairs of what a factory of iterables makes, once another of it was found to begin with the same pair.

    It does not, for example, where two generators read one file, or where the order is by chance.
    """
    began: list[bytes] = []
    rest: list[Iterable[Any]] = []
    for data in (one, other):
        _is_two_arrays(data)  # it refuses what is no iterable
        items = iter(data)
        first = list(itertools.islice(items, 1))
        rest.append(itertools.chain(first, items))
        for pair in first:
            refuse_unpaired("DATA", pair, "at place 0")
        began.append(b"".join(np.asarray(part).tobytes() for pair in first for part in pair))
    if began[0] != began[1]:
        raise ValueError(
            "DATA must give the same inputs in the same order each time that its factory is called, got another first "
            "one: seed what shuffles, and open files within the factory"
        )
    return rest[0]


def is_read_once(data: Any) -> bool:
    """Whether looking at an input would take it away from the run."""
    return not is_indexed(data)
