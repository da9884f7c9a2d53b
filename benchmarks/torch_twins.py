"""The same training steps, and the paper's way of scoring, in PyTorch.

Channels last, bfloat16 by autocast, torch.compile where it works: what a careful
PyTorch user writes. `benchmarks.accelerator` runs them in turns with ours. A step is
all of ours: uint8 images on the device are moved, flipped, ablated (one random column
window each), encoded with their complements, and trained on by SGD.
"""

import functools

import torch
from torch import nn
from torch.nn import functional

from benchmarks.programs import Program

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}


def jobs_of(size):
    """{row: a function that makes its `Program`}, named as the rows of ours."""
    big = f"{size.side}x{size.side}"
    cifar = {"depth": 18, "width": size.resnet_width, "side": 32, "num_classes": 10}
    large = {"depth": 50, "width": size.resnet_width, "side": size.side}
    large["num_classes"] = size.num_imagenet
    return {
        "torch step ResNet-18": functools.partial(
            train_step, batch=size.batch, kept=4, shift=4, **cifar
        ),
        "torch score masked ResNet-18": functools.partial(
            scoring, batch=size.score_batch, **cifar
        ),
        f"torch step ResNet-50 {big}": functools.partial(
            train_step, batch=size.large_batch, kept=size.columns, shift=0, **large
        ),
    }


class Block(nn.Module):
    """A residual block: two 3x3 convolutions, or the bottleneck of three."""

    def __init__(self, channels, features, stride, is_deep):
        super().__init__()
        out = 4 * features if is_deep else features
        kernels = (1, 3, 1) if is_deep else (3, 3)
        widths = (features, features, out) if is_deep else (features, out)
        strides = (1, stride, 1) if is_deep else (stride, 1)
        layers, last = [], channels
        for kernel, width, step in zip(kernels, widths, strides, strict=True):
            layers += [conv(last, width, kernel, step), nn.BatchNorm2d(width)]
            layers.append(nn.ReLU(inplace=True))
            last = width
        self.body = nn.Sequential(*layers[:-1])
        self.shortcut = nn.Sequential()
        if stride != 1 or channels != out:
            self.shortcut = nn.Sequential(
                conv(channels, out, 1, stride), nn.BatchNorm2d(out)
            )

    def forward(self, x):
        return functional.relu(self.body(x) + self.shortcut(x))


def conv(channels, features, kernel, stride):
    return nn.Conv2d(channels, features, kernel, stride, kernel // 2, bias=False)


def resnet(depth, width, num_classes, is_small):
    """Layer for layer `dsmooth_jax.models.resnet` of RGB images and complements."""
    kernel, stride = (3, 1) if is_small else (7, 2)
    layers = [conv(6, width, kernel, stride), nn.BatchNorm2d(width), nn.ReLU()]
    if not is_small:
        layers.append(nn.MaxPool2d(3, 2, 1))
    channels = width
    for stage, count in enumerate(BLOCKS[depth]):
        features = width * 2**stage
        for index in range(count):
            stride = 2 if stage and not index else 1
            layers.append(Block(channels, features, stride, depth == 50))
            channels = features * (4 if depth == 50 else 1)
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes)]
    net = nn.Sequential(*layers).to(DEVICE)
    return net.to(memory_format=torch.channels_last)


def in_bfloat16():
    return torch.autocast(DEVICE.type, dtype=torch.bfloat16)


def ablated(images, kept, shift):
    """uint8 [B, 3, S, S] -> [B, 6, S, S]: moved, flipped, one window of columns."""
    batch, _, side, _ = images.shape
    pixels = images.float() / 255
    if shift:
        padded = functional.pad(pixels, (shift,) * 4)
        corners = torch.randint(0, 2 * shift + 1, (2, batch, 1), device=DEVICE)
        span = torch.arange(side, device=DEVICE)[None]
        rows, columns = corners[0] + span, corners[1] + span
        every = torch.arange(batch, device=DEVICE)[:, None, None]
        pixels = padded[every, :, rows[:, :, None], columns[:, None]]
        pixels = pixels.permute(0, 3, 1, 2)
    flipped = torch.rand(batch, 1, 1, 1, device=DEVICE) < 0.5
    pixels = torch.where(flipped, pixels.flip(-1), pixels)
    start = torch.randint(0, side, (batch, 1), device=DEVICE)
    offset = (torch.arange(side, device=DEVICE)[None] - start) % side
    is_kept = (offset < kept)[:, None, None, :]
    both = torch.cat([pixels, 1 - pixels], 1)
    both = torch.where(is_kept, both, torch.zeros((), device=DEVICE))
    return both.contiguous(memory_format=torch.channels_last)


def data(batch, side, num_classes):
    images = torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8)
    images = images.to(DEVICE).contiguous(memory_format=torch.channels_last)
    return images, torch.randint(0, num_classes, (batch,)).to(DEVICE)


def train_step(*, depth, width, side, num_classes, batch, kept, shift):
    net = resnet(depth, width, num_classes, side == 32).train()
    optimizer = torch.optim.SGD(net.parameters(), 0.1, 0.9, weight_decay=5e-4)
    images, labels = data(batch, side, num_classes)

    @torch.compile
    def loss_of(images, labels):
        with in_bfloat16():
            logits = net(ablated(images, kept, shift))
        return functional.cross_entropy(logits.float(), labels)

    def call():
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(images, labels)
        loss.backward()
        optimizer.step()
        return loss

    return ready(call, batch)


def scoring(*, depth, width, side, num_classes, batch):
    """Passes over ablated images, as many as an image has columns for an image."""
    net = resnet(depth, width, num_classes, side == 32).eval()
    images, _ = data(batch, side, num_classes)

    @torch.compile
    @torch.no_grad()
    def scores(images):
        with in_bfloat16():
            logits = net(ablated(images, 4, 0))
        return logits.float().softmax(-1)

    return ready(lambda: scores(images), batch / side)


def ready(call, images):
    """The compiled call; PyTorch compiles when it is first called."""
    wait(call())
    return Program(call, images, wait=wait)


def wait(_):
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
