"""One stored image to pixels: the one decoder, whatever way an image comes in.

It takes what has one meaning as 8-bit pixels and refuses the rest by name: a picture
that is silently another one would be certified as if it were the photograph.
"""

import contextlib
import io
import threading
from typing import Any

import numpy as np
from jaxtyping import UInt8

from dsmooth_jax.checks import check_pair

MOST_PIXELS = 2**28
"""The largest image that is decoded: 16,384 x 16,384, 0.8 GB in RGB."""

MOST_PIXELS_UNRESIZED = 2**26
"""The largest that is decoded where nothing says what size to make of it."""

_GREY = ("1", "L", "LA", "La")
_COLORED = ("P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV")
_DEEP = {"I": "32-bit integers", "F": "32-bit floating point"}
_SAMPLE_FORMAT = 339  # the tag of TIFF: 1 is unsigned, 2 signed
_LAYERED = ("MPO",)  # formats whose other pictures are views of the first

_opening = threading.Lock()  # while Pillow's own limit is set aside, see `_open`
_one_large = threading.Lock()  # or every core would hold gigabytes


def decode(
    stored: bytes | np.ndarray,
    name: str,
    *,
    size: tuple[int, int] | None = None,
    channels: int | None = None,
) -> UInt8[np.ndarray, "H W C"]:
    """Turns a stored image into pixels, upright as its EXIF orientation says.

    Of a file the modes with 8 bits a channel (or fewer) are taken; a palette, CMYK and
    YCbCr become RGB, an alpha channel is dropped where nothing is see-through. What has
    no one meaning in 8 bits is refused: 16 or 32 bits a channel, floating point,
    see-through pixels, several frames or pages.

    Args:
      stored: A whole image file that Pillow knows, or uint8 pixels [H, W, C].
      name: What an error calls the image.
      size: (H, W) to resize to: the largest centred part of this aspect ratio, by
        bilinear interpolation; None: as it is. With it images of up to `MOST_PIXELS`
        are decoded, without it of up to `MOST_PIXELS_UNRESIZED`.
      channels: 1 or 3 to convert to grey or to RGB; None: as it is.

    Returns:
      uint8 [H, W, C]; C is 1 for grey and 3 for any other file, unless told.

    Raises:
      ValueError: it cannot be decoded, has no one meaning in 8 bits, is too large, or
        has no such channels.
      TypeError: pixels that are not 8-bit.
    """
    if isinstance(stored, np.ndarray):
        if stored.dtype != np.uint8:
            raise TypeError(
                f"the image {name!r} has dtype {stored.dtype}, it must be uint8, 0..255"
            )
        if stored.ndim != 3:
            raise ValueError(
                f"the image {name!r} has shape {stored.shape}, it must be [H, W, C]"
            )
        if size is None and channels in (None, stored.shape[2]):
            return stored
        if stored.shape[2] not in (1, 3):
            raise ValueError(
                f"the image {name!r} has {stored.shape[2]} channels: data.size and "
                "data.channels are for images of 1 (grey) or 3 (RGB)"
            )
    elif not stored:
        raise ValueError(f"the image {name!r} cannot be decoded: it is empty, 0 bytes")
    # Not ValueErrors alone: on bytes that are no picture decoders raise anything.
    try:
        image = _open(stored)
        _check_pixels(image.height, image.width, is_resized=size is not None)
        is_large = image.height * image.width > MOST_PIXELS_UNRESIZED
        with _one_large if is_large else contextlib.nullcontext():
            image = _opaque(_upright(image))
            is_grey = image.mode in _GREY if channels is None else channels == 1
            mode = "L" if is_grey else "RGB"
            # `convert` copies what is of that mode already.
            image = image if image.mode == mode else image.convert(mode)
            pixels = np.asarray(image if size is None else _fit(image, size))
    except Exception as error:
        why = str(error) or type(error).__name__
        raise ValueError(f"the image {name!r} cannot be decoded: {why}") from error
    return pixels[..., None] if is_grey else pixels


def check_size(name: str, size: Any) -> tuple[int, int]:
    """Returns (height, width) to resize images to, or raises what is wrong with it."""
    height, width = check_pair(name, size)
    if height * width > MOST_PIXELS_UNRESIZED:
        raise ValueError(
            f"{name}={(height, width)} is more than {MOST_PIXELS_UNRESIZED:,} pixels; "
            "give a smaller size"
        )
    return height, width


def check_axes(name: str, shape: tuple[int, ...]) -> None:
    """Raises unless a shape can be [N, H, W, C], with at least one pixel.

    Args:
      name: What the error calls the images.
      shape: Theirs, of any length.

    Raises:
      ValueError: it cannot; channels that come first are recognized.
    """
    if len(shape) != 4:
        raise ValueError(f"{name} have shape {list(shape)}; it must be [N, H, W, C]")
    _, height, width, channels = shape
    if height <= 4 < min(width, channels):
        raise ValueError(
            f"{name} have shape {list(shape)}, which is [N, C, H, W]; it must be "
            "[N, H, W, C]: images.transpose(0, 2, 3, 1)"
        )
    if shape[0] and not min(height, width, channels):
        raise ValueError(f"{name} have shape {list(shape)}: they have no pixels")


def _open(stored: bytes | np.ndarray) -> Any:
    """A Pillow image, of which only the header has been read."""
    import PIL.Image  # only when used

    if isinstance(stored, np.ndarray):
        grey = stored.shape[2] == 1
        return PIL.Image.fromarray(stored[..., 0] if grey else stored)
    # Pillow warns of large images and refuses larger ones by a limit of the whole
    # process. Ours is higher, so that large photographs can be resized.
    with _opening:
        limit, PIL.Image.MAX_IMAGE_PIXELS = PIL.Image.MAX_IMAGE_PIXELS, None
        try:
            image = PIL.Image.open(io.BytesIO(stored))
        except PIL.UnidentifiedImageError:
            raise ValueError("it is no image file, or of an unknown kind") from None
        finally:
            PIL.Image.MAX_IMAGE_PIXELS = limit
    if kind := _DEEP.get(image.mode) or _unlike_8_bits(image):
        raise ValueError(
            f"its mode is {image.mode}, {kind} a channel; it must have 8 bits: convert "
            "it, choosing which values are black and white"
        )
    if image.mode not in _GREY + _COLORED:
        raise ValueError(f"its mode is {image.mode}: convert it to RGB or grey")
    num_pictures = getattr(image, "n_frames", 1)
    if num_pictures > 1 and image.format not in _LAYERED:
        raise ValueError(
            f"it holds {num_pictures} pictures (frames or pages): save the one that is "
            "meant as a file of its own"
        )
    return image


def _unlike_8_bits(image: Any) -> str:
    """What 16 bits or signs are made 8 bits of without a word; "" where nothing is."""
    # Such a PNG, TIFF, PPM or SGI opens as RGB or L: only how it is read tells.
    for codec, _, _, how in image.tile:
        *_, most = how if isinstance(how, tuple) else (how,)
        # In BGR;16 a pixel has 16 bits, a channel 5 or 6.
        if codec == "SGI16" or (";16" in str(how) and "BGR" not in str(how)):
            return "16 bits"
        if codec in ("ppm", "ppm_plain") and isinstance(most, int) and most > 255:
            return f"values up to {most}"
    signs = getattr(image, "tag_v2", {}).get(_SAMPLE_FORMAT, 1)
    return "signed integers" if 2 in np.ravel(signs) else ""


def _check_pixels(height: int, width: int, *, is_resized: bool) -> None:
    most = MOST_PIXELS if is_resized else MOST_PIXELS_UNRESIZED
    if height * width <= most:
        return
    remedy = f"make it smaller, at most {MOST_PIXELS:,} pixels"
    if height * width <= MOST_PIXELS:
        remedy = "data.size=(height, width) resizes it"
    raise ValueError(
        f"it has {height}x{width} pixels, more than {most:,} are too many: {remedy}"
    )


def _upright(image: Any) -> Any:
    """The pixels, turned and mirrored as the orientation in the file says."""
    import PIL.ImageOps

    image.load()
    try:
        image.getexif()
    except Exception:  # a block that cannot be read says nothing of orientation
        return image
    PIL.ImageOps.exif_transpose(image, in_place=True)
    return image


def _opaque(image: Any) -> Any:
    """The image without its alpha, which must hide nothing."""
    if not image.has_transparency_data:
        return image
    full = image.convert("RGBA")
    if full.getchannel("A").getextrema()[0] < 255:
        raise ValueError(
            "it has see-through pixels, whose color depends on what is behind: put "
            "it on a background (ImageMagick: mogrify -background white -alpha remove)"
        )
    return full.convert("L" if image.mode in _GREY else "RGB")


def _fit(image: Any, size: tuple[int, int]) -> Any:
    """The largest centred part of a shape (H, W), in that size."""
    import PIL.Image
    import PIL.ImageOps

    if image.size == (size[1], size[0]):
        return image
    bilinear = PIL.Image.Resampling.BILINEAR
    return PIL.ImageOps.fit(image, (size[1], size[0]), bilinear)
