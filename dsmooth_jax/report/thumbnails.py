"""Which images a report shows, and small pictures of them.

A store holds no pixels, so pictures lie in a file beside it, of the images that will be
shown and no others: ``scores.thumbnails.npz`` beside ``scores``. A report of a store
without that file shows the votes alone.
"""

import io
import math
import pathlib
import zipfile
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from dsmooth_jax.checks import is_floating
from dsmooth_jax.report.request import NUM_SIZES
from dsmooth_jax.storage.files import write_whole
from dsmooth_jax.storage.score_store import ScoreStore
from dsmooth_jax.storage.shards import Shards

MOST_IMAGES = 1000
"""The most images that a report shows one by one."""

_MOST_BYTES = 2_500_000  # of votes by position in a page, for a page under 5 MB
_MOST_SCORES = 2**25  # entries of their scores held in memory
_MOST_DRAWN = 2**25  # entries of scores of which figures are made
_MANY_SCORES = 2**27  # entries of a store that is asked about few sizes of a patch
_MOST_PIXELS = 64  # sides of a picture; larger images are shrunk


def choose(store: Shards) -> np.ndarray:
    """The images that a report shows: all, or a fixed stratified sample.

    Images are lined up by class, within a class in their order, and taken at even
    distances: every class has its share, and nobody picked. There are at most
    `MOST_IMAGES`, fewer where an image has so many ablations that a page would not be
    light.

    Args:
      store: the scores.

    Returns:
      int64 [n], increasing.
    """
    num_views = store.entry_shape[0]  # ablations, or masks
    most = min(
        MOST_IMAGES,
        # In base64 about 2.5 duels of a byte, 2 votings, and 2 leads of two bytes.
        _MOST_BYTES // (12 * num_views),
        _MOST_SCORES // math.prod(store.entry_shape),
    )
    return _spread(store, most)


def choose_drawn(store: ScoreStore) -> np.ndarray:
    """The images that costly figures count: all, or a sample as `choose` takes one.

    Of tables of 1,000 classes a figure over settings or rectangles would take hours.
    Certificates, and whatever is printed, are of all images.

    Args:
      store: the scores.

    Returns:
      int64 [n], increasing.
    """
    num_ablations = store.ablation.num_ablations(store.image_size)
    return _spread(store, _MOST_DRAWN // (num_ablations * store.num_classes))


def choose_num_sizes(store: ScoreStore) -> int:
    """How many sizes of a patch figures and slider show: fewer of large tables."""
    is_large = len(store) * math.prod(store.entry_shape) > _MANY_SCORES
    return NUM_SIZES // 4 if is_large else NUM_SIZES


def _spread(store: Shards, most: int) -> np.ndarray:
    """At most so many images, at least one, in even shares of the classes."""
    most = min(max(most, 1), len(store))
    line = np.argsort(store.labels, kind="stable")
    return np.sort(line[np.arange(most) * len(store) // max(most, 1)])


def save_thumbnails(store: Shards, images: ArrayLike) -> pathlib.Path:
    """Writes small pictures of the images that a report shows, beside the store.

    Args:
      store: the scores of these images.
      images: [N, H, W, C], all images in the order of the store; uint8, or floating in
        [0, 1]; C is 1 (grey) or 3 (RGB).

    Returns:
      The file.

    Raises:
      TypeError, ValueError: images of another shape, dtype or number of channels.
    """
    # What lies on disk has a shape and a dtype, and only the chosen images are read.
    pixels: Any = images if hasattr(images, "dtype") else np.asarray(images)
    expected = (len(store), *store.image_shape)
    if pixels.shape != expected:
        raise ValueError(
            f"images have shape {pixels.shape}; it must be {expected}, those that the "
            "store's scores are of"
        )
    if pixels.shape[3] not in (1, 3):
        raise ValueError(
            f"images have C={pixels.shape[3]}; pictures are grey (1) or RGB (3)"
        )
    if pixels.dtype != np.uint8 and not is_floating(pixels.dtype):
        raise TypeError(
            f"images have dtype {pixels.dtype}; they must be uint8, or floating in "
            "[0, 1]"
        )
    chosen = choose(store)
    pixels = np.asarray(pixels[chosen])
    if pixels.dtype != np.uint8:
        pixels = pixels.astype(np.float32)
        if pixels.size and not (pixels.min() >= 0 and pixels.max() <= 1):
            raise ValueError("images must be in [0, 1] where they are floating")
        pixels = np.rint(255 * pixels).astype(np.uint8)
    content = io.BytesIO()
    np.savez_compressed(
        content,
        pixels=shrink(pixels),
        ids=store.ids[chosen],
        of=np.array(_fingerprint(store)),
    )
    path = thumbnails_path(store)
    write_whole(path, content.getvalue())
    return path


def load_thumbnails(store: Shards) -> np.ndarray | None:
    """Reads the pictures of the images that `choose` chooses.

    Args:
      store: the scores.

    Returns:
      uint8 [n, h, w, C]; None where there are none, or they are of other images: a
      wrong picture is worse than none.
    """
    try:
        with np.load(thumbnails_path(store), allow_pickle=False) as file:
            is_same = str(file["of"]) == _fingerprint(store) and np.array_equal(
                file["ids"], store.ids[choose(store)]
            )
            return file["pixels"] if is_same else None
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None


def thumbnails_path(store: Shards) -> pathlib.Path:
    """The file beside the store that holds the pictures."""
    return store.path.with_name(f"{store.path.name}.thumbnails.npz")


def atlas(pixels: np.ndarray) -> tuple[str, bytes, int, tuple[int, int]]:
    """Puts pictures side by side into one: a page decodes one file, not a thousand.

    Args:
      pixels: uint8 [n, h, w, C].

    Returns:
      media type, file, pictures in a row, and (height, width) of a cell, pixels. Small
      ones come as they are (PNG), larger sets as JPEG.
    """
    from PIL import Image

    count, height, width, channels = pixels.shape
    columns = int(np.ceil(np.sqrt(max(count, 1))))
    rows = -(-max(count, 1) // columns)
    # JPEG works in blocks of 8: a cell ends with one, so that neighbours do not bleed.
    pad = ((0, 0), (0, -height % 8), (0, -width % 8), (0, 0))
    cells = np.pad(pixels, pad, mode="edge")
    sheet = np.zeros((rows * columns, *cells.shape[1:]), np.uint8)
    sheet[:count] = cells
    sheet = sheet.reshape(rows, columns, *cells.shape[1:]).swapaxes(1, 2)
    sheet = sheet.reshape(rows * cells.shape[1], columns * cells.shape[2], channels)
    image = Image.fromarray(sheet[..., 0] if channels == 1 else sheet)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    media = "image/png"
    if buffer.tell() > 1_000_000:
        buffer, media = io.BytesIO(), "image/jpeg"
        image.save(buffer, "JPEG", quality=88, subsampling=0, optimize=True)
    return media, buffer.getvalue(), columns, (cells.shape[1], cells.shape[2])


def class_names(store: Shards) -> list[str]:
    """A name for each class: the store's own, or "class 0", "class 1", ..."""
    names = store.origin.class_names
    if isinstance(names, list) and len(names) == store.num_classes:
        return [str(name) for name in names]
    return [f"class {index}" for index in range(store.num_classes)]


def shrink(pixels: np.ndarray) -> np.ndarray:
    """Images uint8 [n, H, W, C], neither side above 64 pixels."""
    from PIL import Image

    height, width = pixels.shape[1:3]
    scale = _MOST_PIXELS / max(height, width)
    if scale >= 1 or not len(pixels):
        return pixels
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = [
        np.asarray(
            Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).resize(
                size, Image.Resampling.LANCZOS
            )
        )
        for image in pixels
    ]
    return np.stack(small).reshape(len(pixels), size[1], size[0], pixels.shape[3])


def _fingerprint(store: Shards) -> str:
    """What the store says its images are; "" where it does not."""
    return str(store.origin.images or "")
