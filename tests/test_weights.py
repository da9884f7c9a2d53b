"""Weights of other libraries: the same logits, every misfit told, nothing run."""

import dataclasses
import hashlib
import json
import pathlib
import pickle
import re
import struct
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from doubles import in_float64
from parity import MEAN, STD, numbers, two_images, weights

import dsmooth_jax as ds
from dsmooth_jax.masking import encode
from dsmooth_jax.models import (
    ViTConfig,
    build,
    efficientnet_lite0,
    resnet,
    vit,
    weight_files,
)
from dsmooth_jax.models.weight_files import read_tensors
from dsmooth_jax.training.config import TrainConfig
from dsmooth_jax.training.run import first_variables

FOLDER = pathlib.Path(__file__).parent / "data" / "weights"
CASES = json.loads((FOLDER / "parity.json").read_text())["cases"]
TINY = CASES["vit, class token"]


def network_of(case, num_classes=7):
    """Our network, for all images (no ablation)."""
    spec = dict(case["spec"])
    name = spec.pop("name")
    task = {"image_shape": (*case["image_size"], 3), "num_classes": num_classes}
    if name == "vit":
        return vit(ViTConfig(**spec), None, **task)
    if name == "efficientnet_lite0":
        return efficientnet_lite0(**task)
    return resnet(int(name.removeprefix("resnet")), **spec, **task)


def logits_of(net, variables, case):
    images = two_images(case["image_size"])
    inputs = encode(jnp.asarray(images, jnp.float32))
    return in_float64(net.logits, variables, inputs)


def saved(path, tensors):
    safetensors.numpy.save_file(tensors, path)
    return path


def drawn(model):
    """Variables that cost no compilation."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: numbers(str(path), leaf.shape).astype(np.float32),
        jax.eval_shape(model.init, jax.random.key(0)),
    )


def lite_name(name):
    """timm's name of a layer of EfficientNet-Lite0 in the names of the PyPI package."""
    if match := re.match(r"blocks\.(\d)\.(\d)\.(\w+)\.", name):
        stage, index, layer = int(match[1]), int(match[2]), match[3]
        number = sum((1, 2, 2, 3, 3, 4, 1)[:stage]) + index
        known = {"conv_dw": "_depthwise_conv", "conv_pwl": "_project_conv"}
        known |= {
            "bn1": "_bn0",
            "bn2": "_bn1",
            "bn3": "_bn2",
            "conv_pw": "_expand_conv",
        }
        if stage == 0:
            known |= {"conv_pw": "_project_conv", "bn1": "_bn1", "bn2": "_bn2"}
        return f"_blocks.{number}.{known[layer]}.{name[match.end() :]}"
    for theirs, ours in (
        ("conv_stem", "_conv_stem"),
        ("bn1", "_bn0"),
        ("conv_head", "_conv_head"),
        ("bn2", "_bn1"),
        ("classifier", "_fc"),
    ):
        name = re.sub(rf"^{theirs}\.", f"{ours}.", name)
    return name


# The other library's logits.


@pytest.mark.parametrize("name", CASES)
def test_logits_are_the_other_librarys(name, tmp_path):
    # Protects every layer, option, name and layout, the normalisation that is folded
    # into the first layer, and the positions that are resized. In float64, as the
    # expected are: what is left is the weights' rounding, whatever compiles them.
    case = CASES[name]
    tensors = weights(case["shapes"])
    if "efficientnet" in name:
        tensors = {lite_name(key): value for key, value in tensors.items()}
    path = saved(tmp_path / "theirs.safetensors", tensors)
    net = network_of(case)
    variables = ds.load_weights(path, net, mean=MEAN, std=STD)
    expected = np.array(case["logits"])
    assert np.ptp(expected, axis=0).max() > 1e-2  # the images differ
    np.testing.assert_allclose(
        logits_of(net, variables, case), expected, rtol=1e-6, atol=2e-6
    )
    # And the way back: the same names, shapes and numbers but for the first layer.
    back = tmp_path / "ours.safetensors"
    ds.save_weights(back, variables)
    again = ds.load_weights(back, net)
    jax.tree.map(np.testing.assert_array_equal, again, variables)
    ours = safetensors.numpy.load_file(back)
    if "no_embed_class" not in name and "positions" not in name:
        assert ours.keys() == tensors.keys()


@pytest.fixture
def tiny():
    """A small vision transformer and a state dict that fits it."""
    return network_of(TINY), weights(TINY["shapes"])


def test_wrapped_names_and_half_precision_are_read(tiny, tmp_path):
    # Protects checkpoints as scripts write them: DataParallel's prefix, float16.
    net, tensors = tiny
    plain = ds.load_weights(saved(tmp_path / "a.safetensors", tensors), net)
    wrapped = {f"module.{k}": v.astype(np.float16) for k, v in tensors.items()}
    wrapped["module.head_norm.num_batches_tracked"] = np.array(3)
    found = ds.load_weights(saved(tmp_path / "b.safetensors", wrapped), net)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(found))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a, b, atol=5e-2)


def test_names_of_the_cifar_resnets_are_known(tmp_path):
    # Protects the paper authors' checkpoints: six channels, "shortcut" and "linear".
    net = resnet(18, image_shape=(8, 8, 3), num_classes=4, stem="cifar", width=8)
    variables = drawn(net)
    ds.save_weights(tmp_path / "ours.safetensors", variables)
    tensors = safetensors.numpy.load_file(tmp_path / "ours.safetensors")
    assert tensors["conv1.weight"].shape == (8, 6, 3, 3)
    assert "layer2.0.downsample.1.running_var" in tensors
    renamed = {
        "module." + re.sub(r"^fc\.", "linear.", k.replace("downsample", "shortcut")): v
        for k, v in tensors.items()
    }
    path = saved(tmp_path / "theirs.safetensors", renamed)
    found = ds.load_weights(path, net)
    jax.tree.map(np.testing.assert_array_equal, found, variables)


def test_hidden_pixels_are_of_the_mean_color(tmp_path):
    # Protects the claim about the first layer: NULL is what the mean color would give.
    case = CASES["resnet18 of torchvision"]
    path = saved(tmp_path / "theirs.safetensors", weights(case["shapes"]))
    kernel = ds.load_weights(path, network_of(case), mean=MEAN, std=STD)["params"][
        "stem_conv"
    ]["kernel"]
    color = encode(jnp.asarray(MEAN, jnp.float32))
    np.testing.assert_allclose(jnp.einsum("hwio,i->hwo", kernel, color), 0, atol=1e-6)
    assert np.abs(np.asarray(kernel)).max() > 0.1


def test_another_head_is_left_out_when_asked(tiny, tmp_path):
    # Protects fine-tuning to other classes: a new head at zero, all else as it was.
    _, tensors = tiny
    path = saved(tmp_path / "theirs.safetensors", tensors)
    net = network_of(TINY, num_classes=3)
    with pytest.raises(ValueError, match=r"'head.bias' has shape \[7\], not \[3\]"):
        ds.load_weights(path, net)
    found = ds.load_weights(path, net, has_head=False)["params"]
    assert not np.any(found["head"]["kernel"]) and not np.any(found["head"]["bias"])
    np.testing.assert_array_equal(found["norm"]["bias"], tensors["norm.bias"])
    without = {k: v for k, v in tensors.items() if not k.startswith("head.")}
    saved(tmp_path / "features.safetensors", without)
    ds.load_weights(tmp_path / "features.safetensors", net, has_head=False)


def test_every_misfit_is_told_at_once(tiny, tmp_path):
    # Protects users from mending a file name by name, and from half a network.
    net, tensors = tiny
    del tensors["norm.bias"]
    tensors["blocks.0.attn.proj.weight"] = np.zeros((24, 25), np.float32)
    tensors["blocks.1.mlp.fc1.bias"] = np.zeros(96, np.int32)
    tensors["blocks.1.mlp.fc2.bias"] = np.full(24, np.nan, np.float32)
    tensors["fc_norm.weight"] = np.zeros(24, np.float32)
    path = saved(tmp_path / "theirs.safetensors", tensors)
    with pytest.raises(ValueError, match="does not fit the model") as error:
        ds.load_weights(path, net)
    for text in (
        "'norm.bias' is missing",
        "'blocks.0.attn.proj.weight' has shape [24, 25], not [24, 24]",
        "'blocks.1.mlp.fc1.bias' has dtype int32, which is no weight's",
        "'blocks.1.mlp.fc2.bias' has values that are not finite",
        "'fc_norm.weight' has no place in the model",
    ):
        assert text in str(error.value)
    assert "\n" not in str(error.value)


def test_normalisation_must_fit_the_channels(tiny, tmp_path):
    # Protects the first layer from a mean of another number of colors.
    net, tensors = tiny
    path = saved(tmp_path / "theirs.safetensors", tensors)
    for options in ({"mean": (0.5,)}, {"std": (0.2, 0.0, 0.2)}):
        with pytest.raises(ValueError, match=r"must have 3 numbers each"):
            ds.load_weights(path, net, **options)


@pytest.mark.parametrize("net", ["bandnet", "small_cnn"])
def test_our_own_networks_are_saved_and_read(net, tmp_path):
    # Protects networks that no other library has: their names, and the way back.
    model = build(
        {"name": net}, ablation=ds.Columns(3), image_shape=(8, 8, 1), num_classes=3
    )
    variables = drawn(model)
    path = tmp_path / "ours.safetensors"
    ds.save_weights(path, variables)
    found = ds.load_weights(path, model)
    jax.tree.map(np.testing.assert_array_equal, found, variables)
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match="there already"):
        ds.save_weights(path, variables)
    with pytest.raises(ValueError, match="format='pth' must be one of"):
        ds.save_weights(tmp_path / "other", variables, format="pth")
    assert path.read_bytes() == before


def test_training_begins_with_a_file(tiny, tmp_path):
    # Protects train.init_from of a file: its settings reach the weights.
    _, tensors = tiny
    path = saved(tmp_path / "theirs.safetensors", tensors)
    model = build(
        TINY["spec"], ablation=ds.Columns(3), image_shape=(32, 32, 3), num_classes=7
    )
    settings = TrainConfig(
        init_from=str(path), init_head=False, init_mean=MEAN, init_std=STD
    )
    found, checksum = first_variables(settings, model)
    expected = ds.load_weights(path, model, mean=MEAN, std=STD, has_head=False)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert checksum == hashlib.sha256(path.read_bytes()).hexdigest()
    usual, _ = first_variables(TrainConfig(init_from=str(path)), model)
    assert np.any(usual["params"]["head"]["kernel"] != 0)
    jax.tree.map(np.testing.assert_array_equal, usual, ds.load_weights(path, model))


# The reader of files.


@pytest.mark.parametrize("name", ["zip.pth", "legacy.pth"])
def test_files_of_torch_are_read_without_it(name):
    # Protects both formats: views that share a storage, bfloat16, scalars, wrappers.
    tensors = read_tensors(FOLDER / name)
    shared = np.arange(24, dtype=np.float32).reshape(4, 6)
    np.testing.assert_array_equal(tensors["module.a"], shared.T)
    np.testing.assert_array_equal(tensors["module.b"], shared[1:3])
    np.testing.assert_array_equal(tensors["module.c"], np.array([1.5, -2], np.float32))
    assert tensors["module.d"].shape == () and tensors["module.d"] == 3
    assert tensors["module.e"].dtype == np.float16 and tensors["module.e"] == 0.25
    assert len(tensors) == 5


@pytest.mark.parametrize("name", ["zip.pth", "legacy.pth"])
def test_torch_reads_the_same(name):
    # Protects our reader from disagreeing with PyTorch's own.
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    expected = torch.load(FOLDER / name, weights_only=True)["net"]
    found = read_tensors(FOLDER / name)
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        np.testing.assert_array_equal(found[key], tensor.detach().float().numpy())


def test_moving_averages_come_first():
    # Protects the choice among several sets of weights in one file.
    tensor = weight_files._Tensor(weight_files._Storage("0", "F32"), 0, (1,), (1,))
    other = dataclasses.replace(tensor, offset=1)
    content = {"epoch": tensor, "state_dict": {"a": tensor}, "model_ema": {"a": other}}
    assert weight_files._state_dict(content) == {"a": other}


class Evil:
    """A pickle that would create a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (exec, (f"open({str(self.path)!r}, 'w')",))


def zipped(path, data, **options):
    with zipfile.ZipFile(path, "w", **options) as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/data/0", bytes(16))
    return path


def pickled(storage="FloatStorage", size=(2,), stride=(1,), offset=0, key="0"):
    """A pickle of {"a": tensor}, opcode by opcode, as torch.save writes it."""

    def text(value):
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    def numbers(values):
        return b"(" + b"".join(b"J" + struct.pack("<i", v) for v in values) + b"t"

    identity = [b"(", text("storage"), b"ctorch\n", storage.encode(), b"\n", text(key)]
    identity += [text("cpu"), b"K\x04tQ"]
    view = [b"J", struct.pack("<i", offset), numbers(size), numbers(stride), b"\x89N"]
    call = [b"ctorch._utils\n_rebuild_tensor_v2\n(", *identity, *view, b"tR"]
    return b"".join([b"\x80\x02}", text("a"), *call, b"s."])


def test_a_tensor_written_by_hand_is_read(tmp_path):
    # Protects the tests below: without their faults these files would be read.
    found = read_tensors(zipped(tmp_path / "a.pth", pickled()))
    np.testing.assert_array_equal(found["a"], np.zeros(2, np.float32))


def hostile(folder):
    """Files that must be refused, and words of the reason."""
    evil = folder / "evil"
    yield zipped(folder / "a.pth", pickle.dumps(Evil(evil))), "asks for 'builtins.exec'"
    yield (
        zipped(folder / "b.pth", pickle.dumps({"a": Evil(evil)}, protocol=2)),
        "asks for '__builtin__.exec'",
    )
    path = folder / "c.pth"
    path.write_bytes(pickle.dumps(Evil(evil)))
    yield path, "asks for 'builtins.exec'"
    bomb = {"compression": zipfile.ZIP_DEFLATED}
    yield zipped(folder / "d.pth", bytes(2**20), **bomb), "compressed entries"
    memo = b"\x80\x02]r\xff\xff\xff\x7f."  # index 2**31 - 1: Python's own would grow
    yield zipped(folder / "e.pth", memo), "no tensors by name"
    # One byte each, 64 in memory; and a key that would exhaust the stack when hashed.
    for name, program, words in (
        ("many", b"}" * (weight_files.MAX_STEPS + 1), "more than 262,144 steps"),
        ("deep", b"})" + b"\x85" * 10**5 + b"Ns", "a key of type tuple"),
        ("system", b")", "no tensors by name"),
        ("name", b"\x8c\x03a\nb\x8c\x01c\x93", r"asks for 'a\nb.c'"),
    ):
        yield zipped(folder / f"{name}.pth", b"\x80\x02" + program + b"."), words
    for words, fault in (
        ("reaches beyond", {"size": (5,)}),
        ("reaches beyond", {"size": (2**30, 2**30), "stride": (0, 0)}),
        ("reaches beyond", {"offset": 3}),
        ("strides", {"stride": (-1,)}),
        ("a tensor of", {"stride": (1, 1)}),
        ("asks for 'torch.QInt8Storage'", {"storage": "QInt8Storage"}),
        ("archive/data/9", {"key": "9"}),
    ):
        path = folder / f"{len(list(folder.iterdir()))}.pth"
        yield zipped(path, pickled(**fault)), words
    whole = (FOLDER / "legacy.pth").read_bytes()
    path = folder / "f.pth"
    path.write_bytes(whole[:-4])
    yield path, "ends within storage"
    path = folder / "g.pth"
    path.write_bytes(whole[:300])
    yield path, "cannot be read as weights"
    path = folder / "h.pth"
    path.write_bytes((FOLDER / "zip.pth").read_bytes()[:700])
    yield path, "cannot be read as weights"
    for name, content, words in (
        ("i", struct.pack("<Q", 2**60) + b"{}", "header"),
        ("j", b"", "header"),
        ("k", safetensors.numpy.save({"a": np.zeros(3)})[:-1], "cannot be read"),
    ):
        path = folder / f"{name}.safetensors"
        path.write_bytes(content)
        yield path, words


def test_hostile_and_damaged_files_are_refused(tmp_path):
    # Protects users who load what a stranger sent: one line, and nothing was run.
    for path, words in hostile(tmp_path):
        with pytest.raises(ValueError, match="cannot be read as weights") as error:
            read_tensors(path)
        assert words in str(error.value), str(error.value)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "evil").exists()
    with pytest.raises(FileNotFoundError, match="is no file"):
        read_tensors(tmp_path)


def test_flipped_bytes_are_refused_or_read(tmp_path):
    # Protects the reader's own code: whatever a file says, an error that it means.
    rng = np.random.default_rng(0)
    for name in ("zip.pth", "legacy.pth"):
        whole = np.frombuffer((FOLDER / name).read_bytes(), np.uint8)
        for _ in range(100):
            damaged = whole.copy()
            where = rng.integers(len(whole), size=3)
            damaged[where] = rng.integers(256, size=3)
            (tmp_path / name).write_bytes(damaged.tobytes())
            try:
                read_tensors(tmp_path / name)
            except ValueError as error:
                assert "cannot be read as weights" in str(error)
