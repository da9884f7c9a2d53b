"""Writes the logits of timm's and torchvision's networks that ours are tested against.

    python scripts/make_parity.py    # needs torch, torchvision and timm; minutes

For each network tests/data/weights/parity.json gets the names and shapes of its state
dict, and its logits on two images. Weights and images are not stored: `numbers` makes
them of a name and a shape, here and in tests/test_weights.py. Two small files that
torch.save wrote, in the format of today and in that of before 2020, are there for the
tests of the reader.
"""

import json
import pathlib
import sys

import numpy as np
import timm
import torch
import torchvision
from timm.models.vision_transformer import VisionTransformer
from torchvision.models.resnet import BasicBlock, Bottleneck

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from parity import MEAN, STD, two_images, weights  # noqa: E402

FOLDER = ROOT / "tests" / "data" / "weights"
SMALL = {"embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 7}
SPEC = {"name": "vit", "width": 24, "depth": 2, "heads": 3}


def transformers():
    """(module, image size, what ours is called) of the variants."""

    def make(img_size, patch, spec, **options):
        module = VisionTransformer(
            img_size=img_size, patch_size=patch, **SMALL, **options
        )
        return module, img_size, {"patch": patch, **spec}

    quick = timm.layers.get_act_layer("quick_gelu")
    plain = torch.nn.LayerNorm
    yield "vit, class token", *make(32, 8, {})
    yield "vit, mean pooling", *make(32, 16, {"pool": "avg"}, global_pool="avg")
    yield (
        "vit, mean pooling, no class token, no biases",
        *make(
            16,
            4,
            {"pool": "avg", "class_token": False, "qkv_bias": False},
            global_pool="avg",
            class_token=False,
            qkv_bias=False,
        ),
    )
    yield (
        "vit, registers, layer scale (as DINOv2)",
        *make(
            28,
            14,
            {"registers": 4, "layer_scale": True},
            reg_tokens=4,
            no_embed_class=True,
            init_values=1e-5,
        ),
    )
    yield (
        "vit, norm before, quick GELU (as CLIP)",
        *make(
            32,
            8,
            {"pre_norm": True, "activation": "quick_gelu", "epsilon": 1e-5},
            pre_norm=True,
            act_layer=quick,
            norm_layer=plain,
        ),
    )
    yield (
        "vit, positions without class token (as DeiT III)",
        *make(24, 8, {"layer_scale": True}, no_embed_class=True, init_values=1e-5),
    )


class NarrowResNet(torchvision.models.ResNet):
    """torchvision's, with an eighth of the channels."""

    def __init__(self, block, layers):
        super().__init__(block, layers)
        self.fc = torch.nn.Linear(64 * block.expansion, 7)

    def _make_layer(self, block, planes, *arguments, **options):
        if self.inplanes == 64 and planes == 64:
            self.inplanes = 8
            self.conv1 = torch.nn.Conv2d(3, 8, 7, stride=2, padding=3, bias=False)
            self.bn1 = torch.nn.BatchNorm2d(8)
        return super()._make_layer(block, planes // 8, *arguments, **options)


def resnets():
    for depth, block, layers in (
        (18, BasicBlock, (2, 2, 2, 2)),
        (50, Bottleneck, (3, 4, 6, 3)),
    ):
        module = NarrowResNet(block, layers)
        theirs = timm.create_model(f"resnet{depth}").state_dict().keys()
        assert module.state_dict().keys() == theirs
        spec = {"name": f"resnet{depth}", "stem": "imagenet", "width": 8}
        yield f"resnet{depth} of torchvision", module, spec


def case(module, image_size, given_size=None):
    """What is stored of a network: names, shapes, logits."""
    shapes = {
        name: list(tensor.shape)
        for name, tensor in module.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    state = {name: torch.tensor(a) for name, a in weights(shapes).items()}
    module.load_state_dict(state, strict=False)
    given_size = given_size or (image_size, image_size)
    images = two_images(given_size)
    normal = (images - np.array(MEAN)) / np.array(STD)
    inputs = torch.tensor(normal.transpose(0, 3, 1, 2), dtype=torch.float64)
    with torch.no_grad():
        logits = module.double().eval()(inputs).numpy()
    return {
        "image_size": list(given_size),
        "shapes": shapes,
        "logits": logits.round(8).tolist(),
    }


def main():
    cases = {}
    for name, module, image_size, spec in transformers():
        spec = {**SPEC, **spec}
        cases[name] = {"spec": spec, **case(module, image_size)}
    # timm resizes the positions of 4 x 4 tokens to 3 x 5.
    module = VisionTransformer(
        img_size=32, patch_size=8, dynamic_img_size=True, **SMALL
    )
    spec = {**SPEC, "patch": 8}
    cases["vit, another image size"] = {"spec": spec, **case(module, 32, (24, 40))}
    for name, module, spec in resnets():
        cases[name] = {"spec": spec, **case(module, 33)}
    module = timm.create_model("tf_efficientnet_lite0", num_classes=7)
    cases["efficientnet_lite0 of timm"] = {
        "spec": {"name": "efficientnet_lite0"},
        **case(module, 33),
    }
    FOLDER.mkdir(exist_ok=True)
    record = {
        "made_by": {
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "timm": timm.__version__,
        },
        "cases": cases,
    }
    text = json.dumps(record, separators=(",", ":"))
    (FOLDER / "parity.json").write_text(text.replace('},"', '},\n"') + "\n")
    write_small_files()


def write_small_files():
    """A checkpoint as scripts of the field write them, in both formats."""
    shared = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    state = {
        "module.a": shared.t(),
        "module.b": shared[1:3],
        "module.c": torch.nn.Parameter(torch.tensor([1.5, -2.0], dtype=torch.bfloat16)),
        "module.d": torch.tensor(3),
        "module.e": torch.tensor([[0.25]], dtype=torch.float16),
    }
    checkpoint = {"net": state, "acc": 93.5, "epoch": 7, "args": [1, (2, None)]}
    torch.save(checkpoint, FOLDER / "zip.pth")
    torch.save(checkpoint, FOLDER / "legacy.pth", _use_new_zipfile_serialization=False)


if __name__ == "__main__":
    main()
