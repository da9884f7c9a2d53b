"""What a folder holds of another run stays; one command writes to it at a time."""

import json
import os
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from processes import fork

from dsmooth_jax import distributed, distributed_scoring
from dsmooth_jax.storage import checkpoint
from dsmooth_jax.storage.checkpoint import CheckpointError, DamagedCheckpointError
from dsmooth_jax.storage.shards import StoreError
from dsmooth_jax.storage.workdir import BEST, LATEST
from dsmooth_jax.training import metrics, ownership

MINE = {"config": {"seed": 1}, "fingerprints": {"train": "a"}}
OTHER = {"config": {"seed": 2}, "fingerprints": {"train": "a"}}
TREE = {"w": np.arange(12, dtype=np.float32).reshape(3, 4)}


def save(folder, step=5, record=OTHER):
    checkpoint.save(folder, step, TREE, record, keep=9)


def lines(folder, count):
    for step in range(count):
        metrics.append(folder / "metrics.jsonl", {"step": step})


def begun(folder, record=OTHER):
    (folder / "config.json").write_text(json.dumps(record["config"]))


def contents(folder):
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# What is left of a run, and a word of the refusal.
LEFT = {
    "best alone, of other settings": (lambda f: save(f / BEST), "seed: saved 2"),
    "best alone, of the same": (lambda f: save(f / BEST, record=MINE), "best/5"),
    "latest, of other settings": (lambda f: save(f / LATEST), "seed: saved 2"),
    "other data": (
        lambda f: save(f / LATEST, record={**MINE, "fingerprints": {"train": "b"}}),
        "fingerprints.train",
    ),
    "an older best of others beside a latest": (
        lambda f: (save(f / LATEST, 9, MINE), save(f / BEST)),
        "seed: saved 2",
    ),
    "begun by others": (begun, "seed: saved 2"),
    "config that is no JSON": (
        lambda f: (f / "config.json").write_text("{"),
        "config.json is not what train.py writes",
    ),
    "a list": (
        lambda f: (f / "config.json").write_text("[1]"),
        "config.json is not what train.py writes",
    ),
    "checkpoints gone, metrics left": (
        lambda f: (begun(f, MINE), lines(f, 2)),
        "metrics.jsonl with 2 validations",
    ),
    "checkpoints gone, curve left": (
        lambda f: (begun(f, MINE), (f / "curve.png").touch()),
        "curve.png",
    ),
    "certificates left": (
        lambda f: (begun(f, MINE), (f / "certify" / "test").mkdir(parents=True)),
        "certify",
    ),
    "damaged ones left": (
        lambda f: (begun(f, MINE), (f / LATEST / "5.damaged").mkdir(parents=True)),
        "5.damaged",
    ),
    "metrics of whoever": (lambda f: lines(f, 1), "metrics.jsonl"),
    "ids of whoever": (lambda f: (f / "validation_ids.txt").touch(), "validation_ids"),
    "what was found of scores": (lambda f: (f / "summary.json").touch(), "summary"),
    "a comparison": (lambda f: (f / "comparison.csv").touch(), "comparison.csv"),
    "a store": (lambda f: (f / "manifest.json").touch(), "manifest.json"),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_is_left_of_a_run_is_never_written_over(tmp_path, name):
    """In whatever state of completeness: refused in a line, nothing changed."""
    make, word = LEFT[name]
    make(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=word) as raised:
        ownership.check_free(tmp_path, MINE)
    assert "another --workdir" in str(raised.value)
    assert str(tmp_path) in str(raised.value) and "\n" not in str(raised.value)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "make",
    [
        lambda f: None,
        lambda f: begun(f, MINE),
        lambda f: (begun(f, MINE), lines(f, 1), (f / "validation_ids.txt").touch()),
        lambda f: (f / LATEST / "5.orbax-checkpoint-tmp").mkdir(parents=True),
        lambda f: save(f / LATEST, record=MINE),
        lambda f: (save(f / LATEST, record=MINE), save(f / BEST, record=MINE)),
        lambda f: (f / "notes.txt").touch(),
        shutil.rmtree,
    ],
)
def test_what_a_kill_leaves_can_be_gone_on_from(tmp_path, make):
    """Before the first checkpoint, while it is saved, after it; and an empty folder."""
    make(tmp_path)
    ownership.check_free(tmp_path, MINE)


def test_a_finished_model_survives_a_training_that_is_given_its_folder(
    run_script, tmp_path, smoke_run
):
    """Only the best is left, as of what is shipped: train.py refuses, twice."""
    shutil.copytree(smoke_run / BEST, tmp_path / BEST)
    before = contents(tmp_path)
    for flags in (["--config.train.batch_size=64"], []):
        done = run_script(
            "train.py",
            "--config=configs/mnist5k_smoke.py",
            f"--workdir={tmp_path}",
            *flags,
            is_ok=False,
        )
        assert str(tmp_path) in done.stderr and "another --workdir" in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert contents(tmp_path) == before


@pytest.mark.parametrize("place", ["file", "file/sub", "link", "run/checkpoints/best"])
def test_places_where_no_run_can_be_are_refused(tmp_path, place):
    """A file, below a file, a broken link, among the checkpoints of a run."""
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    save(tmp_path / "run" / BEST)
    before = contents(tmp_path)
    for folder in (tmp_path / place, tmp_path / place / "new"):
        with pytest.raises((ValueError, NotADirectoryError)) as raised:
            ownership.check_folder("--out", folder)
        assert str(raised.value).startswith("--out=")
    assert contents(tmp_path) == before


def test_the_second_writer_is_told_who_the_first_is(tmp_path):
    """Process and machine; the lock goes when its process does, however that ends."""
    code = """
import os, pathlib, signal, sys
from dsmooth_jax.training import ownership
with ownership.locked("--workdir", pathlib.Path(sys.argv[1]), "a.lock"):
    print("locked", flush=True)
    signal.pause()
"""
    first = fork("-c", code, tmp_path)
    first.wait_for("locked\n")
    pid = first.process.pid
    match = f"--workdir={tmp_path} is being written to by process {pid} on "
    with (
        pytest.raises(ValueError, match=match),
        ownership.locked("--workdir", tmp_path, "a.lock"),
    ):
        pass
    first.process.kill()
    first.finish()
    with ownership.locked("--workdir", tmp_path, "a.lock"):
        assert f"process {os.getpid()} on " in (tmp_path / "a.lock").read_text()


def test_the_same_training_started_twice_at_once_trains_once(run_script, tmp_path):
    """The second command is told who the first is, and writes nothing."""
    folder = tmp_path / "run"
    flags = ["--config=configs/mnist5k_smoke.py", f"--workdir={folder}"]
    code = f"""
import os, pathlib, runpy, signal, sys, time
sys.argv = ["train.py", *{flags!r}]
lock = pathlib.Path({str(folder)!r}, "train.lock")
if not (first := os.fork()):
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    runpy.run_path("train.py", run_name="__main__")
while not (lock.exists() and lock.read_text()):
    time.sleep(0.05)
    assert os.waitpid(first, os.WNOHANG) == (0, 0), "the first one ended"
if not os.fork():
    os.close(2)
    os.dup(1)
    runpy.run_path("train.py", run_name="__main__")
print("ended with", os.waitstatus_to_exitcode(os.wait()[1]))
os.kill(first, signal.SIGKILL)
os.wait()
print("the first was", first)
"""
    done = run_script("-c", code)
    assert "ended with 1\n" in done.stdout, done.stdout
    first = done.stdout.split()[-1]
    assert f"--workdir={folder} is being written to by process {first} on " in (
        done.stdout
    )


def test_a_folder_that_is_not_utf8_is_refused_before_training(tmp_path):
    """Orbax cannot write there: hours of training would end without a checkpoint."""
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    for refuse in (
        lambda: ownership.check_free(folder, MINE),
        lambda: ownership.check_free(folder / "run", MINE),
        lambda: checkpoint.save(folder, 1, TREE, {}),
    ):
        with pytest.raises(ValueError, match="is not UTF-8"):
            refuse()
    assert not folder.exists()


def test_where_there_are_no_locks_the_run_goes_on(tmp_path, monkeypatch, capsys):
    """Some network file systems have none: it is said, not an end."""
    import fcntl

    def refuse(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with ownership.locked("--workdir", tmp_path, "a.lock"):
        assert "cannot be locked" in capsys.readouterr().err


@pytest.fixture
def saved(tmp_path):
    for step in (5, 10):
        save(tmp_path, step)
    return tmp_path


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(24, "Too many open files"),
        ValueError("RESOURCE_EXHAUSTED: out of memory"),
        ValueError("PERMISSION_DENIED: Error opening file"),
    ],
)
def test_what_keeps_us_from_reading_is_no_damage(saved, monkeypatch, error):
    """Memory, descriptors, permissions: refused, and nothing is set aside."""
    v1 = checkpoint._orbax()

    class Failing:
        def __getattr__(self, name):
            return getattr(v1, name)

        def load(self, *arguments, **keywords):
            raise error

    monkeypatch.setattr(checkpoint, "_orbax", Failing)
    with pytest.raises(CheckpointError, match="cannot be read here") as raised:
        checkpoint.restore_newest(saved, TREE)
    assert not isinstance(raised.value, DamagedCheckpointError)
    monkeypatch.undo()
    assert checkpoint.restore_newest(saved, TREE)[2] == ()
    assert checkpoint.steps(saved) == [5, 10]


@pytest.mark.parametrize("part", ["", "state", "_CHECKPOINT_METADATA"])
def test_a_step_without_permissions_is_not_set_aside(saved, part):
    """EACCES of the folder, of the arrays, of the metadata."""
    if os.getuid():
        user = os.getuid()
    else:  # root may read everything: be somebody else for a moment
        user = 65534
        for folder in (saved, *saved.parents):
            if not folder.stat().st_mode & 0o005 and folder.owner() == "root":
                folder.chmod(0o755)
    (saved / "10" / part).chmod(0)
    os.seteuid(user)
    try:
        with pytest.raises((CheckpointError, PermissionError)) as raised:
            checkpoint.restore_newest(saved, TREE)
    finally:
        os.seteuid(os.getuid())
    assert "Permission denied" in str(raised.value)
    assert not isinstance(raised.value, DamagedCheckpointError)
    assert checkpoint.steps(saved) == [5, 10]
    (saved / "10" / part).chmod(0o755)
    assert checkpoint.restore_newest(saved, TREE)[2] == ()


@pytest.mark.parametrize("cut", [0, 1, 0.5])
def test_a_truncated_step_is_damage(saved, cut):
    """Proven: the older one is used, and this one renamed."""
    files = [p for p in (saved / "10").rglob("*") if p.is_file()]
    largest = max(files, key=lambda p: p.stat().st_size)
    content = largest.read_bytes()
    largest.write_bytes(content[: int(len(content) * cut) if cut < 1 else 1])
    _, _, problems = checkpoint.restore_newest(saved, {"w": jnp.zeros((3, 4))})
    assert len(problems) == 1 and (saved / "10.damaged").exists()


@pytest.mark.parametrize("platform", ["tpu", "cuda", "nonsense"])
def test_a_device_that_is_not_there_is_no_damage(platform, tmp_path):
    """JAX_PLATFORMS is named, in both programs; no checkpoint is blamed."""
    code = f"""
import os, sys, runpy
for program, flags in (
    ("train.py", ["--config=configs/mnist5k_smoke.py", "--workdir={tmp_path}/new"]),
    ("certify.py", ["--workdir=pretrained/cifar10_columns3"]),
):
    sys.argv = [program, *flags]
    if not os.fork():
        runpy.run_path(program, run_name="__main__")
    print(os.waitstatus_to_exitcode(os.wait()[1]))
"""
    done = fork("-c", code, jax_platforms=platform).finish()
    assert done.stdout.split() == ["1", "1"]
    said = [line for line in done.stderr.splitlines() if "error: " in line]
    assert len(said) == 2 and "Traceback" not in done.stderr
    for line in said:
        assert f"JAX_PLATFORMS={platform} is not to be had here" in line
    assert not (tmp_path / "new").exists()


def test_devices_that_are_there_are_not_refused():
    """What check_devices must let pass."""
    distributed.check_devices()


def test_overwriting_deletes_stores_and_nothing_else(tmp_path):
    """A folder named scores may hold anything."""
    folder = tmp_path / "scores"
    distributed_scoring.remove(folder)
    folder.mkdir()
    for name in ("manifest.json.part", "labels.npy", "scores-00000.npy.sha256"):
        (folder / name).touch()
    distributed_scoring.remove(folder)
    assert not folder.exists()
    folder.mkdir()
    for name in ("manifest.json", "thesis.txt"):
        (folder / name).touch()
    with pytest.raises(StoreError, match=r"'thesis\.txt', which is no part"):
        distributed_scoring.remove(folder)
    assert len(list(folder.iterdir())) == 2
