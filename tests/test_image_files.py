"""Image files as they are found: one meaning in 8 bits, upright, or refused by name."""

import io
import pathlib
import struct
import zlib

import numpy as np
import pytest
from processes import fork

from dsmooth_jax import data

Image = pytest.importorskip("PIL.Image")
EXAMPLE = pathlib.Path(__file__).parents[1] / "examples" / "certify_photograph.py"

GREY = np.arange(0, 240, 10, dtype=np.uint8).reshape(4, 6)
COLOR = np.stack([GREY, GREY[::-1], 255 - GREY], axis=-1)
HALF = np.where(GREY > 100, 255, 128).astype(np.uint8)  # partly see-through


def file(image, form="PNG", **options):
    """A whole image file."""
    buffer = io.BytesIO()
    image = image if hasattr(image, "save") else Image.fromarray(image)
    image.save(buffer, form, **options)
    return buffer.getvalue()


def with_alpha(mode, alpha):
    image = Image.fromarray(GREY if mode == "LA" else COLOR)
    image.putalpha(Image.fromarray(np.broadcast_to(np.uint8(alpha), GREY.shape)))
    return image


def sixteen_bit_rgb_png():
    """Pillow writes none, but opens it as if it were RGB."""

    def chunk(kind, content):
        body = kind + content
        return (
            struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))
        )

    deep = np.repeat(COLOR.astype(">u2"), 1, axis=-1)
    rows = b"".join(b"\0" + row.tobytes() for row in deep)
    header = struct.pack(">IIBBBBB", 6, 4, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(*each)
        for each in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    )


def sixteen_bit_bitmap(red, green, blue):
    """A pixel in 5, 6 and 5 bits."""
    pixels = struct.pack("<4H", *[red << 11 | green << 5 | blue] * 4)
    header = struct.pack("<IiiHHIIiiII", 40, 2, 2, 1, 16, 3, 8, 0, 0, 0, 0)
    header += struct.pack("<III", 0xF800, 0x07E0, 0x001F)
    start = 14 + len(header)
    return b"BM" + struct.pack("<IHHI", start + 8, 0, 0, start) + header + pixels


def signed_tiff():
    """Pillow reads -1 as 255."""
    tags = {256: 6, 257: 4, 258: 8, 259: 1, 262: 1, 273: 134, 277: 1, 278: 4, 279: 24}
    tags[339] = 2
    entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items()]
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(entries) + bytes(4)
    assert len(head) == tags[273]
    return head + GREY.tobytes()


def oriented(value, pixels=COLOR, form="PNG"):
    exif = Image.Exif()
    exif[0x0112] = value
    return file(pixels, form, exif=exif)


BLACK_AND_WHITE = np.where(GREY > 100, 255, 0).astype(np.uint8)
PALETTE = Image.fromarray(COLOR).quantize(64)

TAKEN = {
    "grey": (file(GREY), GREY[..., None]),
    "one bit": (
        file(Image.fromarray(BLACK_AND_WHITE).convert("1")),
        BLACK_AND_WHITE[..., None],
    ),
    "color": (file(COLOR), COLOR),
    "palette": (file(PALETTE), np.asarray(PALETTE.convert("RGB"))),
    "opaque alpha": (file(with_alpha("RGBA", 255)), COLOR),
    "opaque grey alpha": (file(with_alpha("LA", 255)), GREY[..., None]),
    "opaque palette": (
        file(PALETTE, transparency=bytes([255] * 64)),
        np.asarray(PALETTE.convert("RGB")),
    ),
    "ink": (
        file(Image.fromarray(COLOR).convert("CMYK"), "TIFF"),
        COLOR,
    ),
    "bitmap": (file(COLOR, "BMP"), COLOR),
    "bitmap of 5, 6 and 5 bits": (
        sixteen_bit_bitmap(31, 0, 31),
        np.broadcast_to(np.uint8([255, 0, 255]), (2, 2, 3)),
    ),
    "few greys": (b"P5 2 1 3 \0\3", np.array([[[0], [255]]])),
    "orientation that is none": (oriented(9), COLOR),
    "broken exif": (file(COLOR, exif=b"Exif\0\0no such thing"), COLOR),
}

REFUSED = {
    "float": (file(GREY.astype(np.float32) / 255, "TIFF"), "mode is F, 32-bit float"),
    "long": (file(GREY.astype(np.int32), "TIFF"), "mode is I, 32-bit integers"),
    "16-bit": (file(GREY.astype(np.uint16) * 257), "I;16, 16 bits a channel"),
    "16-bit TIFF": (file(GREY.astype(np.uint16), "TIFF"), "I;16, 16 bits a channel"),
    "16-bit color": (sixteen_bit_rgb_png(), "mode is RGB, 16 bits a channel"),
    "deep PPM": (b"P6 1 1 65535 " + bytes(range(6)), "values up to 65535 a channel"),
    "deep PPM in digits": (b"P3 1 1 1023 0 512 1023", "values up to 1023"),
    "deep PGM": (b"P5 1 1 1023 " + bytes(2), "32-bit integers"),
    "deep SGI": (file(COLOR, "SGI", bpc=2), "16 bits"),
    "signed": (signed_tiff(), "signed integers a channel"),
    "lab": (file(Image.new("LAB", (6, 4)), "TIFF"), "LAB"),
    "alpha": (file(with_alpha("RGBA", HALF)), "see-through.*mogrify"),
    "grey alpha": (file(with_alpha("LA", HALF)), "see-through"),
    "see-through palette": (file(PALETTE, transparency=0), "see-through"),
    "see-through color": (
        file(COLOR, transparency=tuple(COLOR[0, 0].tolist())),
        "see-through",
    ),
    "GIF": (
        file(PALETTE, "GIF", save_all=True, append_images=[Image.new("P", (6, 4), 3)]),
        "holds 2 pictures",
    ),
    "APNG": (
        file(
            Image.fromarray(COLOR),
            save_all=True,
            append_images=[Image.fromarray(COLOR[::-1])] * 2,
        ),
        "holds 3 pictures",
    ),
    "pages": (
        file(
            Image.fromarray(COLOR),
            "TIFF",
            save_all=True,
            append_images=[Image.fromarray(COLOR[::-1])],
        ),
        "holds 2 pictures",
    ),
    "cut PNG": (file(COLOR)[:-30], "cannot be decoded: "),
    "cut JPEG": (file(COLOR, "JPEG")[:-30], "cannot be decoded: .*truncated"),
    "header alone": (file(COLOR)[:20], "cannot be decoded"),
    "nothing": (b"", "is empty, 0 bytes"),
    "text": (b"Thumbs.db, or a note", "no image file"),
    "web page": (b"<!DOCTYPE html><html>404</html>", "no image file"),
}


@pytest.mark.parametrize("kind", TAKEN)
def test_what_has_one_meaning_in_8_bits_is_taken(kind):
    """Each kind of file becomes the pixels that every viewer shows."""
    stored, expected = TAKEN[kind]
    pixels = data.decode(stored, kind)
    assert pixels.dtype == np.uint8 and pixels.shape == expected.shape
    np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize("kind", REFUSED)
def test_what_has_not_is_refused_by_name(kind):
    """No silent zeros, white pictures, first frames or hidden colors."""
    stored, words = REFUSED[kind]
    for changes in ({}, {"size": (2, 2), "channels": 1}):
        with pytest.raises(ValueError, match=f"^the image 'x/y.png' .*{words}"):
            data.decode(stored, "x/y.png", **changes)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_upright(orientation, form):
    """EXIF's eight orientations: what the camera says is up is up, in each format."""
    upright = np.kron(np.array([[0, 255, 80], [160, 30, 200]]), np.ones((16, 16)))
    upright = np.repeat(upright.astype(np.uint8)[..., None], 3, axis=-1)
    turned = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: np.rot90(upright, 1),
        7: np.rot90(upright, 2).swapaxes(0, 1),
        8: np.rot90(upright, -1),
    }[orientation]
    found = data.decode(oriented(orientation, np.ascontiguousarray(turned), form), "x")
    assert found.shape == upright.shape
    assert abs(found.astype(int) - upright).max() < 30  # JPEG is not exact


def write_folder(root, image):
    for part in ("train", "test"):
        for name in ("a", "b"):
            folder = root / "set" / part / name
            folder.mkdir(parents=True)
            (folder / "1.png").write_bytes(image)


def write_npz(root, image):
    fields = {
        "jpeg": np.frombuffer(image * 2, np.uint8),
        "offsets": [0, len(image), 2 * len(image)],
        "labels": [0, 1],
    }
    for part in ("train", "test"):
        np.savez(root / f"set_{part}.npz", **fields)


@pytest.mark.parametrize("write", [write_folder, write_npz])
def test_every_way_in_uses_the_one_decoder(tmp_path, write):
    """Folders and encoded files: upright, and refused by the name of the image."""
    for name, image in (("good", oriented(6)), ("bad", REFUSED["float"][0])):
        (tmp_path / name).mkdir()
        write(tmp_path / name, image)
    loaded = data.load("set", "test", data_dir=str(tmp_path / "good"))
    np.testing.assert_array_equal(loaded.images[1], np.rot90(COLOR, -1))
    with pytest.raises(ValueError, match=r"the image '(a/1.png|set_test_00000)' .* F,"):
        data.load("set", "test", data_dir=str(tmp_path / "bad"))


def test_the_example_decodes_as_everything_does(tmp_path):
    """A 16-bit photograph is refused there too, in a line; an upright one is turned."""
    path = tmp_path / "deep.png"
    path.write_bytes(REFUSED["16-bit"][0])
    done = fork(EXAMPLE, path).finish()
    assert done.returncode == 1
    assert done.stderr.startswith("error: the image 'deep.png' cannot be decoded")
    assert len(done.stderr.splitlines()) == 1


def test_large_photographs_are_resized_up_to_a_stated_number(monkeypatch):
    """Pillow's alarm is for strangers' files; with data.size ours are usable."""
    large = file(Image.new("L", (12_000, 8_000), 77))  # 96 million: Pillow warns
    assert (data.decode(large, "x", size=(2, 3)) == 77).all()
    limit = Image.MAX_IMAGE_PIXELS
    with pytest.raises(ValueError, match=r"'x' .* 8000x12000 pixels.*data.size=\(h"):
        data.decode(large, "x")
    huge = file(Image.new("1", (20_000, 20_000)))
    match = r"20000x20000 pixels, more than 268,435,456 are too many: make it smaller"
    with pytest.raises(ValueError, match=match):
        data.decode(huge, "x", size=(2, 3))
    assert limit == Image.MAX_IMAGE_PIXELS  # it is the process's, not ours


def test_pixels_that_are_none_are_refused():
    """Arrays get the same care: dtype, axes, channels."""
    for pixels, words in (
        (COLOR.astype(np.float32), "dtype float32, it must be uint8"),
        (COLOR > 3, "dtype bool"),
        (COLOR.astype(np.int32), "dtype int32"),
    ):
        with pytest.raises(TypeError, match=words):
            data.decode(pixels, "x")
    with pytest.raises(ValueError, match=r"shape \(4, 6\), it must be \[H, W, C\]"):
        data.decode(GREY, "x")
    four = np.concatenate([COLOR, GREY[..., None]], axis=-1)
    np.testing.assert_array_equal(data.decode(four, "x"), four)
    with pytest.raises(ValueError, match="has 4 channels"):
        data.decode(four, "x", channels=3)
