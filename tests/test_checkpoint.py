"""A checkpoint comes back bit for bit, or is refused with the reason."""

import pathlib
import shutil
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from processes import fork

from dsmooth_jax.storage import checkpoint
from dsmooth_jax.storage.checkpoint import CheckpointError

# Orbax closes its event loop while a failed read's other futures still call into it.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)

METADATA = {
    "model": {"name": "small_cnn", "widths": [64, 128], "dropout": None},
    "seed": 3,
    "lr": 0.1,
    "nesterov": True,
}


def example_tree():
    kernel, bias = jax.random.normal(jax.random.key(0), (2, 40, 30))
    params = {
        "conv1": {"kernel": kernel, "bias": bias[0].astype(jnp.bfloat16)},
        "10": jnp.arange(5, dtype=jnp.int32),
        "2": jnp.array([True, False]),
    }
    floats = {"conv1": {"kernel": kernel}}
    return {
        "params": params,
        "opt": optax.adamw(1e-3).init(floats),
        "blocks": {0: jnp.ones(2), 1: jnp.zeros(2)},
        "step": 7,
        "loss": 0.25,
        "scale": np.float32(2.5),
        "none": None,
    }


def abstract(tree):
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.asarray(leaf).dtype),
        tree,
    )


def assert_same(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        a, b = np.asarray(jnp.asarray(a)), np.asarray(b)
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


def test_round_trip_keeps_every_leaf_and_the_metadata(tmp_path):
    """Params, an optimizer state, bfloat16, bool and scalars survive, as JAX arrays."""
    tree = example_tree()
    checkpoint.save(tmp_path / "new" / "run", 12, tree, METADATA)
    target = abstract(tree)
    restored, metadata = checkpoint.restore(str(tmp_path / "new" / "run"), target)
    assert_same(tree, restored)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(restored))
    assert metadata == METADATA
    assert checkpoint.read_metadata(tmp_path / "new" / "run") == METADATA
    again, _ = checkpoint.restore(tmp_path / "new" / "run", restored, step=12)
    assert_same(tree, again)


def test_restore_puts_leaves_where_the_target_says(tmp_path):
    """The target's sharding decides the device placement, not the saved one."""
    checkpoint.save(tmp_path, 1, {"w": jnp.arange(8.0)}, {})
    mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.NamedSharding(mesh, jax.P("x"))
    target = {"w": jax.ShapeDtypeStruct((8,), jnp.float32, sharding=sharding)}
    restored, _ = checkpoint.restore(tmp_path, target)
    assert restored["w"].sharding == sharding


def test_a_restored_tree_may_be_donated(tmp_path):
    """Restored arrays own their memory: a donating step neither fails nor corrupts."""
    checkpoint.save(tmp_path, 1, {"w": jnp.arange(64.0)}, {})
    tree, _ = checkpoint.restore(tmp_path, {"w": jnp.zeros(64)})
    stepped = jax.jit(lambda t: {"w": t["w"] + 1}, donate_argnums=0)(tree)
    np.testing.assert_array_equal(stepped["w"], np.arange(64.0) + 1)


def test_keeps_the_newest_steps_only(tmp_path):
    """Older steps go, the newest `keep` stay and each can be restored."""
    for step in (1, 2, 10, 11):
        checkpoint.save(tmp_path, step, {"w": jnp.full(2, step)}, {"s": step}, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["10", "11"]
    assert checkpoint.latest_step(tmp_path) == 11
    tree, metadata = checkpoint.restore(tmp_path, {"w": jnp.zeros(2, int)}, step=10)
    assert metadata == {"s": 10} and tree["w"].tolist() == [10, 10]


@pytest.mark.parametrize("step", [3, 5])
def test_an_existing_or_older_step_is_an_error(tmp_path, step):
    """Saving never silently does nothing, and never overwrites."""
    checkpoint.save(tmp_path, 5, {"w": jnp.ones(2)}, {"kept": True})
    with pytest.raises(CheckpointError, match=f"step={step} must be above 5"):
        checkpoint.save(tmp_path, step, {"w": jnp.zeros(2)}, {})
    assert checkpoint.read_metadata(tmp_path) == {"kept": True}


def test_a_flipped_bit_is_never_restored(tmp_path):
    """Every file in turn: refused, or else (a timestamp, an unused byte) no harm done.

    Some flips only our checksum finds: Orbax loads those as other weights.
    """
    weights = np.random.default_rng(0).normal(size=(40, 30)).astype(np.float32)
    tree = {"params": {"w": jnp.asarray(weights), "b": jnp.arange(300.0)}}
    whole = tmp_path / "whole"
    checkpoint.save(whole, 1, tree, METADATA)
    files = sorted(p for p in whole.rglob("*") if p.is_file() and p.stat().st_size)
    data_files = [p for p in files if p.parent.name == "d"]
    assert data_files and max(p.stat().st_size for p in data_files) > weights.nbytes / 2
    refusals: dict = {file: [] for file in files}
    for file in files:
        original = file.read_bytes()
        for place in (0.05, 0.5, 0.95):
            flipped = bytearray(original)
            flipped[int(place * len(flipped))] ^= 0x10
            file.write_bytes(flipped)
            try:
                restored, metadata = checkpoint.restore(whole, abstract(tree))
            except CheckpointError as error:
                assert str(whole) in str(error)
                refusals[file].append(str(error))
            else:
                assert_same(tree, restored)
                assert metadata == METADATA
        file.write_bytes(original)
    largest = max(data_files, key=lambda p: p.stat().st_size)
    assert any("its arrays were altered" in text for text in refusals[largest])
    assert refusals[whole / "1" / "state" / "manifest.ocdbt"]
    assert refusals[whole / "1" / "_CHECKPOINT_METADATA"]
    assert_same(tree, checkpoint.restore(whole, abstract(tree))[0])


@pytest.mark.parametrize(
    ("old", "new"),
    [('"seed": 3', '"seed": 4'), ("small_cnn", "large_cnn"), ("sha256", "sha257")],
)
def test_altered_metadata_are_refused(tmp_path, old, new):
    """An edited configuration is refused when read alone and when restored."""
    checkpoint.save(tmp_path, 1, {"w": jnp.ones(2)}, METADATA)
    file = tmp_path / "1" / "_CHECKPOINT_METADATA"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(CheckpointError, match=r"metadata.*retrain"):
        checkpoint.read_metadata(tmp_path)
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        checkpoint.restore(tmp_path, {"w": jnp.ones(2)})


def test_arrays_of_another_step_are_refused_and_another_step_is_offered(tmp_path):
    """Swapped arrays load well, so only the checksum tells; the message helps."""
    for step in (1, 2):
        checkpoint.save(tmp_path, step, {"w": jnp.full(9, float(step))}, {}, keep=2)
    shutil.rmtree(tmp_path / "2" / "state")
    shutil.copytree(tmp_path / "1" / "state", tmp_path / "2" / "state")
    match = r"does not match its checksum.*restore another step \(1\)"
    with pytest.raises(CheckpointError, match=match):
        checkpoint.restore(tmp_path, {"w": jnp.ones(9)})
    assert checkpoint.restore(tmp_path, {"w": jnp.ones(9)}, step=1)[1] == {}


@pytest.mark.parametrize(
    ("target", "match"),
    [
        ({"p": {"w": jnp.ones((2, 3))}}, "'p/b' was saved but is not wanted"),
        (
            {"p": {"w": jnp.ones((2, 3)), "b": jnp.ones(3), "c": jnp.ones(3)}},
            "'p/c' is wanted but was not saved",
        ),
        (
            {"p": {"w": jnp.ones((3, 2)), "b": jnp.ones(3)}},
            r"'p/w' was saved with shape \[2, 3\], wanted \[3, 2\]",
        ),
        (
            {"p": {"w": jnp.ones((2, 3)), "b": jnp.ones(3, jnp.bfloat16)}},
            "'p/b' was saved with dtype float32, wanted bfloat16",
        ),
    ],
)
def test_another_structure_shape_or_dtype_is_refused_by_path(tmp_path, target, match):
    """Nothing is cast, reshaped or filled in; the first differing leaf is named."""
    tree = {"p": {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}}
    checkpoint.save(tmp_path, 1, tree, {})
    with pytest.raises(CheckpointError, match=match) as error:
        checkpoint.restore(tmp_path, target)
    assert str(tmp_path) in str(error.value)


def test_missing_checkpoints_are_named(tmp_path):
    """No directory, an empty one, and a step that is not there."""
    nowhere = tmp_path / "nowhere"
    assert checkpoint.latest_step(nowhere) is None
    assert checkpoint.latest_step(tmp_path) is None
    with pytest.raises(CheckpointError, match=f"no checkpoint in {nowhere}"):
        checkpoint.restore(nowhere, {"w": jnp.ones(1)})
    with pytest.raises(CheckpointError, match=f"no checkpoint in {tmp_path}"):
        checkpoint.read_metadata(tmp_path)
    checkpoint.save(tmp_path, 4, {"w": jnp.ones(1)}, {})
    with pytest.raises(CheckpointError, match=r"step=3 is not in .*: it holds 4"):
        checkpoint.read_metadata(tmp_path, step=3)


def test_what_a_killed_save_left_is_ignored_and_cleaned(tmp_path):
    """A half-written or half-deleted step never counts, and goes with the next save."""
    checkpoint.save(tmp_path, 1, {"w": jnp.ones(2)}, {"n": 1})
    for name in ("2.orbax-checkpoint-tmp", "0.deleted.orbax-checkpoint-tmp"):
        (tmp_path / name / "state").mkdir(parents=True)
    assert checkpoint.latest_step(tmp_path) == 1
    assert checkpoint.read_metadata(tmp_path) == {"n": 1}
    checkpoint.save(tmp_path, 2, {"w": jnp.ones(2)}, {"n": 2})
    assert [p.name for p in tmp_path.iterdir()] == ["2"]


SAVE_IN_A_LOOP = """
import itertools, sys
import numpy as np
from dsmooth_jax.storage import checkpoint

for step in itertools.count(1):
    tree = {"w": np.full((300, 1000), step, np.float32)}
    checkpoint.save(sys.argv[1], step, tree, {"step": step})
"""


def test_a_process_killed_while_saving_leaves_a_whole_latest(tmp_path):
    """SIGKILL at an arbitrary moment: what is there restores and verifies."""
    forked = fork("-c", SAVE_IN_A_LOOP, tmp_path)
    deadline = time.monotonic() + 60
    while (checkpoint.latest_step(tmp_path) or 0) < 3:
        assert forked.process.is_alive() and time.monotonic() < deadline
        time.sleep(0.01)
    forked.process.kill()
    forked.finish()
    step = checkpoint.latest_step(tmp_path)
    tree, metadata = checkpoint.restore(tmp_path, {"w": jnp.zeros((300, 1000))})
    assert metadata == {"step": step} and bool((tree["w"] == step).all())


@pytest.mark.parametrize(
    ("tree", "error", "match"),
    [
        ({"a": {"b": "text"}}, TypeError, "'a/b' is a str"),
        ({"a": np.ones(2)}, TypeError, "'a' has dtype float64"),
        ({"a": jnp.zeros((0, 2))}, ValueError, r"'a' of shape \(0, 2\) has no"),
        ({}, ValueError, "at least one leaf"),
    ],
)
def test_leaves_that_would_not_come_back_are_refused(tmp_path, tree, error, match):
    """What JAX or Orbax would change or drop is refused before anything is written."""
    with pytest.raises(error, match=match):
        checkpoint.save(tmp_path, 1, tree, {})
    assert not list(tmp_path.iterdir())


def test_a_typed_key_is_refused_with_the_remedy(tmp_path):
    """Typed PRNG keys are not supported, and the message says what to save."""
    with pytest.raises(TypeError, match="'key' is a PRNG key: save its key_data"):
        checkpoint.save(tmp_path, 1, {"key": jax.random.key(0)}, {})


@pytest.mark.parametrize(
    ("metadata", "error", "match"),
    [
        ({"a": {"b": (1, 2)}}, TypeError, r"metadata.a.b=\(1, 2\) is a tuple"),
        ({"a": [np.float32(1)]}, TypeError, r"metadata.a\[0\]"),
        ({1: 2}, TypeError, "the key 1 in metadata"),
        ({"a": float("nan")}, ValueError, "metadata.a=nan must be finite"),
    ],
)
def test_metadata_that_json_would_change_are_refused(tmp_path, metadata, error, match):
    """Metadata come back exactly as given, so what JSON alters is named."""
    with pytest.raises(error, match=match):
        checkpoint.save(tmp_path, 1, {"w": jnp.ones(1)}, metadata)


def test_import_loads_no_orbax():
    """The package stays cheap to import: Orbax only when a checkpoint is used."""
    code = (
        "import sys, dsmooth_jax.storage.checkpoint; assert 'orbax' not in sys.modules"
    )
    root = pathlib.Path(__file__).parents[1]
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)


def damage(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x10
    file.write_bytes(content)


def largest_file(folder):
    files = [p for p in folder.rglob("*") if p.is_file()]
    return max(files, key=lambda p: p.stat().st_size)


@pytest.mark.parametrize("is_partial", [False, True])
def test_a_damaged_newest_is_named_and_the_one_before_used(tmp_path, is_partial):
    """A flipped bit, or half a folder: the older checkpoint, and room for new ones."""
    rng = np.random.default_rng(0)
    trees = [{"w": rng.random((40, 30), np.float32)} for _ in range(3)]
    for step, tree in enumerate(trees, start=1):
        checkpoint.save(tmp_path, step, tree, {"step": step}, keep=3)
    tree, metadata, problems = checkpoint.restore_newest(tmp_path, trees[0])
    assert metadata == {"step": 3} and problems == ()
    if is_partial:
        shutil.rmtree(tmp_path / "3" / "state")
    else:
        damage(largest_file(tmp_path / "3"))
    (tmp_path / "2" / "_CHECKPOINT_METADATA").unlink()
    tree, metadata, problems = checkpoint.restore_newest(tmp_path, trees[0])
    assert metadata == {"step": 1}
    assert_same(trees[0], tree)
    assert [str(tmp_path / str(step)) in problems[3 - step] for step in (3, 2)]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "2.damaged", "3.damaged"]
    checkpoint.save(tmp_path, 2, trees[1], {"step": 2})
    assert checkpoint.restore_newest(tmp_path, trees[0])[1] == {"step": 2}
    # A whole checkpoint of another model is no damage: nothing older is taken for it.
    with pytest.raises(CheckpointError, match="is not of this model"):
        checkpoint.restore_newest(tmp_path, {"w": jnp.zeros(3)})


def test_where_nothing_is_whole_all_is_left_as_it_is(tmp_path):
    """The last word on damage is an error, not a run that begins anew."""
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        checkpoint.restore_newest(tmp_path, {"w": jnp.zeros(2)})
    checkpoint.save(tmp_path, 1, {"w": jnp.ones((30, 30))}, {})
    damage(largest_file(tmp_path / "1"))
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* is whole"):
        checkpoint.restore_newest(tmp_path, {"w": jnp.zeros((30, 30))})
    assert [p.name for p in tmp_path.iterdir()] == ["1"]


def test_discard_after_leaves_what_is_at_or_before(tmp_path):
    """A run that goes on from an older step makes the later ones again."""
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, step, {"w": jnp.ones(2)}, {}, keep=3)
    checkpoint.discard_after(tmp_path, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "2"]
    checkpoint.discard_after(tmp_path / "none", 2)


SAVE_ON_A_FULL_DISK = """
import resource, sys
import numpy as np
from dsmooth_jax.storage import checkpoint

tree = {"w": np.random.default_rng(0).random((300, 1000), np.float32)}
checkpoint.save(sys.argv[1], 1, tree, {})
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
try:
    checkpoint.save(sys.argv[1], 2, tree, {})
except checkpoint.CheckpointError as error:
    print(error)
"""


def test_a_full_disk_is_said_and_the_old_checkpoint_kept(tmp_path):
    """No file may grow (as on a full disk): the error says so, step 1 is whole."""
    done = fork("-c", SAVE_ON_A_FULL_DISK, tmp_path).finish()
    assert done.returncode == 0, done.stderr
    assert "of step 2 cannot be written" in done.stdout
    assert "File too large" in done.stdout and "step 1 is still whole" in done.stdout
    assert [p.name for p in tmp_path.iterdir()] == ["1"]
    checkpoint.restore(tmp_path, {"w": jnp.zeros((300, 1000))})
