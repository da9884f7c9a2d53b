"""Scores of any framework: save them once, then ask what they certify.

    python examples/scores_from_numpy.py    # from the repository's root; seconds

Any base classifier will do that scores each ablation of each image by itself: here a
linear one in NumPy, on images made of noise and one of four patterns. Its scores become
a store; every question after that is answered from the store alone.
"""

import pathlib
import sys
import tempfile

import numpy as np

# So that it also runs where the package is not installed.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import dsmooth_jax as ds

NUM_IMAGES, NUM_CLASSES = 200, 4
ABLATION, IMAGE_SHAPE = ds.Columns(4), (24, 24, 1)
PATCHES = (ds.Patch(5, 5), ds.Patch(2, 8))
THRESHOLD, STRENGTH = 0.4, 5.0  # with real data: choose them on validation images


def make_data() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images [N, H, W, C] in [0, 1], labels [N] and the patterns [K, H, W, C]."""
    rng = np.random.default_rng(0)
    patterns = rng.random((NUM_CLASSES, *IMAGE_SHAPE))
    labels = rng.integers(NUM_CLASSES, size=NUM_IMAGES)
    contrast = rng.uniform(0, 0.6, size=(NUM_IMAGES, 1, 1, 1))
    noise = rng.random((NUM_IMAGES, *IMAGE_SHAPE))
    return contrast * patterns[labels] + (1 - contrast) * noise, labels, patterns


def score(images: np.ndarray, patterns: np.ndarray) -> np.ndarray:
    """Your framework goes here: softmax scores [N, P, K] of every ablation."""
    ablated = np.asarray(ds.ablate(images, ABLATION))  # [N, P, H, W, 2C], 0 if hidden
    weights = np.concatenate([patterns - 0.5, 0.5 - patterns], axis=-1)
    logits = np.einsum("nphwc,khwc->npk", ablated, weights, optimize=True)
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def cast_votes(scores: np.ndarray) -> dict[str, np.ndarray | ds.GradedVotes]:
    """Two votings of the same scores."""
    return {
        f"threshold {THRESHOLD:g}": ds.threshold_votes(scores, THRESHOLD),
        f"graded {STRENGTH:g}": ds.graded_votes(scores, STRENGTH),
    }


def ask(store: ds.ScoreStore) -> None:
    """Prints what the scores certify; `for span, scores in store` reads in shards."""
    size, labels = store.image_size, store.labels
    for name, votes in cast_votes(store.read_all()).items():
        print(f"\n{name} votes")
        for patch in PATCHES:
            touched = ds.touched(store.ablation, patch, size)
            result = ds.evaluate(ds.certify(votes, touched), labels)
            if patch == PATCHES[0]:
                print(f"  right                     {100 * result.clean.value:5.1f} %")
            certified = 100 * result.certified.value
            print(f"  ... and certified at {patch}  {certified:5.1f} %")

        touched = ds.touched(store.ablation, ds.Patch(2, 2), size)
        two, is_exact = ds.certify_several(votes, touched, 2)
        certified = 100 * ds.evaluate(two, labels).certified.value
        bound = "exact" if is_exact else "lower bound"
        print(f"  ... at two 2x2 at once    {certified:5.1f} % ({bound})")

        side = ds.largest_certified_patch(votes, store.ablation, size)
        print(f"  largest certified square  {np.median(side):5.0f} pixels (median)")

        margin, rival = ds.vulnerability_map(votes, store.ablation, PATCHES[0], size)
        image = int(np.argmin(margin.min(axis=(1, 2))))
        row, column = np.unravel_index(margin[image].argmin(), margin.shape[1:])
        print(
            f"  most vulnerable           image {store.ids[image]}: a {PATCHES[0]} "
            f"patch at column {column} may turn it into class "
            f"{rival[image, row, column]} (margin {margin[image, row, column]})"
        )


def main(folder: pathlib.Path) -> None:
    """Scores, saves, opens and asks."""
    images, labels, patterns = make_data()
    scores = score(images, patterns)

    ds.save_scores(
        folder, scores, ablation=ABLATION, image_shape=IMAGE_SHAPE, labels=labels
    )
    store = ds.open_scores(folder)

    print(f"{len(store)} images, {store.ablation}, {store.num_classes} classes")
    ask(store)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(pathlib.Path(temporary, "scores"))
