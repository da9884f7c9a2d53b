"""One photograph, certified with the model that travels with the repository.

    python examples/certify_photograph.py          # from the repository's root; seconds
    python examples/certify_photograph.py IMAGE    # any photograph

The model knows ten things, in pictures of 32 x 32 pixels. A larger picture is cropped
and resized first, and then these are the pixels that the attacker's patch is made of.
"""

import dataclasses
import pathlib
import sys

# So that it also runs where the package is not installed.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import dsmooth_jax as ds
from dsmooth_jax import data
from dsmooth_jax.checks import user_path

ROOT = pathlib.Path(__file__).resolve().parent.parent
PRETRAINED = ROOT / "pretrained" / "cifar10_columns3"
PHOTOGRAPH = ROOT / "examples" / "photograph.png"
CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)


def main(path: str | pathlib.Path = PHOTOGRAPH) -> None:
    """Prints what the picture shows, and what no patch can change."""
    path = user_path("IMAGE", path)
    picture = data.decode(path.read_bytes(), path.name, size=(32, 32), channels=3)
    images = picture[None]  # uint8 [1, 32, 32, 3]

    # Votes have one answer for patches of every size; double masking is made for one.
    smoothed = dataclasses.replace(
        ds.load_smoothed(PRETRAINED), decision="votes", patch=None
    )
    votes = smoothed.vote(smoothed.score(images))
    found = smoothed.certify(images, ds.Patch(5, 5))
    side = ds.largest_certified_patch(votes, smoothed.ablation, (32, 32))

    print(f"{path.name}: {CLASSES[found.prediction[0]]}")
    if found.is_certified[0]:
        print("certified: no patch of 5x5 pixels, anywhere, can change that")
    else:
        print("not certified: a patch of 5x5 pixels might change that")
    print(f"the largest square that is proven harmless: {side[0]}x{side[0]} pixels")


if __name__ == "__main__":
    if len(sys.argv) > 2:
        sys.exit(f"one image at a time, not {len(sys.argv) - 1}")
    try:
        main(*sys.argv[1:])
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
