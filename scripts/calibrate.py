"""Finds the bias of each class by which double masking certifies most.

    python -m scripts.calibrate --workdir=runs/joined --out=runs/calibrated

The sum over many ablations makes a small bias of one a large one, and what lies between
two stages (`scripts.join`) was never trained. So the head's bias, and nothing else, is
trained a little: on the margins of the second stage, of training images that are
changed as in training. So few numbers cannot learn images by heart. What decides, and
its settings, `scripts.ship` then chooses.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags

import dsmooth_jax as ds
from dsmooth_jax import data
from dsmooth_jax.checks import user_path
from dsmooth_jax.commands import cli
from dsmooth_jax.masking import to_unit
from dsmooth_jax.smoothed import restore_base
from dsmooth_jax.training import run
from dsmooth_jax.training.augment import augment
from dsmooth_jax.training.config import from_json
from dsmooth_jax.training.losses import margin_loss, masked_margins
from scripts import run_folder

FLAGS = flags.FLAGS
STEPS, BATCH, RATE = 200, 500, 0.02


def main(_):
    workdir = user_path("--workdir", FLAGS.workdir)
    out = user_path("--out", FLAGS.out)
    run_folder.check_new(out)
    classifier, variables, record = restore_base(workdir)
    if "bias" not in variables["params"].get("head", {}):
        raise ValueError(
            f"--workdir={workdir} has a model without a bias of its head; "
            "give a run of one network, not of an ensemble"
        )
    config = from_json(record["config"])
    images = data.load(split="train", data_dir=FLAGS.data_dir, **record["data"])
    num = min(FLAGS.num_images, len(images))
    chosen = images.take(np.arange(num) * len(images) // num)
    changed = augment(
        jax.random.key(0), to_unit(chosen.images[:]), config.train.augment
    )
    scores = ds.score(classifier.scores_fn(variables), changed)
    masks = run.masks_for(config.train.loss.patch, record, images.image_shape[:2])
    bias = best_bias(scores, chosen.labels, masks, config.train.loss)
    print("bias of each class:", *(f"{value:+.2f}" for value in bias))
    head = variables["params"]["head"]
    head = {**head, "bias": head["bias"] + bias}
    variables = {**variables, "params": {**variables["params"], "head": head}}
    record = {**record, "calibrated_on": num}
    run_folder.write(out, variables, record, like=workdir)


def best_bias(scores, labels, masks, loss):
    """The bias [K] of the least loss, of mean 0.

    Args:
      scores: [N, P, K], softmax scores.
      labels: [N].
      masks: bool [M, P], the ablations that each mask disregards.
      loss: whose target and temperature margins are measured by.
    """

    def mean_loss(bias, scores, labels):
        logits = jnp.log(jnp.maximum(scores, 1e-30)) + bias[None, None]
        margins = masked_margins(logits, labels, jnp.asarray(masks))
        return margin_loss(margins, target=loss.target, temperature=loss.temperature)

    optimizer = optax.adam(optax.linear_schedule(RATE, 0.0, STEPS))

    @jax.jit
    def step(bias, state, scores, labels):
        gradient = jax.grad(mean_loss)(bias, scores, labels)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(bias, updates), state

    bias = jnp.zeros(scores.shape[2])
    state = optimizer.init(bias)
    random = np.random.default_rng(0)
    for _ in range(STEPS):
        batch = random.choice(len(labels), min(BATCH, len(labels)), replace=False)
        bias, state = step(bias, state, scores[batch], labels[batch])
    return np.asarray(bias - bias.mean())


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of a run.", required=True)
    flags.DEFINE_string("out", None, "Where to write; must not exist.", required=True)
    flags.DEFINE_string(
        "data_dir", None, "Where the data set is; its default if unset."
    )
    flags.DEFINE_integer("num_images", 5000, "Training images, evenly spread.")
    cli.run("scripts.calibrate", main)
