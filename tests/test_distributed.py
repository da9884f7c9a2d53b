"""Several processes as one run: the same results, and never a hang."""

import json
import os
import re
import signal
import time

import numpy as np
import pytest
from processes import finish, fork, free_port, start

import dsmooth_jax as ds
from dsmooth_jax import distributed, distributed_scoring
from dsmooth_jax.distributed import Peers
from dsmooth_jax.storage.score_store import ScoreStore


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"distributed": "slurm"}, "--distributed=slurm must be auto"),
        ({"coordinator": "a:1"}, "--num_processes=None .* given together"),
        (
            {"coordinator": "a:1", "num_processes": 2, "process_id": 2},
            "--process_id=2 must be in 0..1",
        ),
        (
            {"coordinator": "a", "num_processes": 2, "process_id": 0},
            "--coordinator=a must be HOST:PORT",
        ),
        (
            {"coordinator": "a:1", "num_processes": 0, "process_id": 0},
            "--num_processes=0 must be >= 1",
        ),
        (
            {
                "coordinator": "a:1",
                "num_processes": 2,
                "process_id": 0,
                "distributed": "auto",
            },
            "without --distributed",
        ),
        ({"timeout": 0}, "--peer_timeout=0 must be >= 1"),
    ],
)
@pytest.mark.usefixtures("without_shape_checks")
def test_flags_that_do_not_fit_together_are_refused(arguments, match):
    """Before anything waits for anybody."""
    with pytest.raises(ValueError, match=match):
        Peers(**arguments)


def test_alone_nothing_is_started_and_errors_pass():
    """The default is one process, to which all of this is nothing."""
    with (
        pytest.raises(ValueError, match="as usual"),
        distributed.session(Peers()),
    ):
        assert distributed.is_first() and distributed.share() == (0, 1)
        distributed.barrier("nobody else")
        raise ValueError("as usual")


def test_sigterm_is_a_request_that_lasts_as_long_as_it_is_asked():
    """SIGTERM is noticed at the next step, and afterwards is what it was."""
    before = signal.getsignal(signal.SIGTERM)
    with distributed.stop_requested() as should_stop:
        assert not should_stop(1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert should_stop(2)
    assert signal.getsignal(signal.SIGTERM) == before


def test_auto_says_when_it_finds_nothing():
    """On a lone machine: an error with the flags that name processes."""
    code = """
from dsmooth_jax import distributed
with distributed.session(distributed.Peers(distributed="auto")):
    pass
"""
    done = fork("-c", code).finish()
    assert done.returncode == 1
    assert "found no TPU pod, Slurm, Kubernetes or Open MPI; give" in done.stderr
    assert "ended before" not in done.stderr


def test_nobody_at_the_address_and_one_too_few_end_in_time():
    """Unreachable coordinator, wrong count: a clear last line, within the limit."""
    lonely = start("", 1, port=free_port(), timeout=3)
    port = free_port()
    few = [start("", i, port=port, num_processes=3, timeout=5) for i in (0, 1)]
    status, _, line = finish(lonely, within=120)
    assert status == 1 and "process 1: error: nothing answers at the coord" in line
    for process in few:
        status, _, line = finish(process, within=120)
        assert status == 1
        assert "waits for some of --num_processes=3 processes; start them all" in line
        assert "gave up after --peer_timeout=5 s" in line


@pytest.mark.parametrize("dead", [0, 1])
def test_a_dead_peer_ends_the_others_in_time(dead):
    """SIGKILL of one, the others waiting for it: they end, and say what happened."""
    code = """
import numpy as np, time
mesh = distributed.batch_mesh()
while True:
    float(distributed.spread(np.ones(2, np.float32), mesh).sum())
    time.sleep(0.05)
"""
    port = free_port()
    processes = [start(code, i, port=port, timeout=5) for i in (0, 1)]
    for process in processes:
        process.wait_for("joined\n")
    time.sleep(1)
    processes[dead].process.kill()
    status, _, line = finish(processes[1 - dead], within=120)
    assert status != 0 and "error: " in line
    assert "another process of this run died or is out of reach" in line
    finish(processes[dead], within=120)


def test_an_error_of_one_process_ends_all():
    """A full disk of one machine: it says so, and nobody waits for it for ever."""
    code = """
if distributed.share()[0] == 1:
    raise ValueError("the disk is full")
distributed.barrier("never reached by the other")
"""
    port = free_port()
    processes = [start(code, i, port=port, timeout=5) for i in (0, 1)]
    status, _, line = finish(processes[1], within=120)
    assert status == 1 and line == "-c: process 1: error: the disk is full"
    assert finish(processes[0], within=120)[0] != 0


TRAIN = """
import jax, json
import numpy as np
import dsmooth_jax as ds
from dsmooth_jax import data, distributed, models
from dsmooth_jax.training import feeding, optimizers
from dsmooth_jax.training.step import init_state, make_train_step
from dsmooth_jax.training.augment import AugmentConfig

rng = np.random.default_rng(0)
labels = rng.integers(0, 3, 64)
shape = (64, 8, 8, 1)
images = (rng.integers(0, 60, shape) + 60 * labels[:, None, None, None]).astype("u1")
dataset = data.Dataset("", "train", images, labels, np.arange(64).astype(str), 3)
classifier = models.build(
    {"name": "bandnet", "width": 8, "depth": 2, "crops": 2},
    ablation=ds.Columns(3), image_shape=shape[1:], num_classes=3,
)
optimizer, _ = optimizers.make_optimizer(
    optimizers.OptimizerConfig(learning_rate=3e-3), num_epochs=1, steps_per_epoch=40
)
step = make_train_step(
    classifier, optimizer, AugmentConfig(shift=1, flip=True), num_accumulated=2,
    schedule=lambda step: 3e-3,
)
mesh = distributed.batch_mesh()
key_data = distributed.replicate(jax.random.key_data(jax.random.key(1)), mesh)

def rows(start, stop):
    each = range(start, stop)
    return np.array([data.batch_indices(64, 16, seed=0, step=step) for step in each])

def batches(start, stop):
    share = distributed.share()
    return data.batches(dataset, 16, seed=0, start=start, stop=stop, share=share)

found = [jax.device_count()]
for feed, most in (
    (feeding.Streamed(batches), 1), (feeding.Resident(images, labels, rows), 3)
):
    state = init_state(classifier, optimizer, jax.random.key(0))
    state = distributed.replicate(state, mesh)
    take, losses = feed.start(step, mesh, key_data, range(20), most), []
    while len(losses) < 20:
        count = min(most, 20 - len(losses))
        state, measured = take(state, len(losses), count)
        loss = measured.names.index("loss")
        losses += np.asarray(measured.values)[:count, loss].tolist()
    found.append(losses)
print(json.dumps(found))
"""


def test_one_device_four_devices_and_two_processes_train_alike():
    """The same losses to 1e-5 over 20 steps, batch statistics and accumulation too.

    Whether images come batch by batch or stay on every device, three steps in a call.
    """
    port = free_port()
    processes = [start(TRAIN, i, port=port, timeout=60) for i in (0, 1)]
    processes += [fork("-c", TRAIN, jax_num_cpu_devices=count) for count in (1, 4)]
    results = [finish(process) for process in processes]
    assert [status for status, _, _ in results] == [0] * 4, results
    found = [json.loads(out.splitlines()[-1]) for _, out, _ in results]
    assert [count for count, *_ in found] == [2, 2, 1, 4]
    losses = np.array([values for _, *values in found]).reshape(8, 20)
    assert losses[4, -1] < losses[4, 0]
    np.testing.assert_allclose(losses, losses[[4] * 8], rtol=0, atol=1e-5)


def test_machines_without_a_common_folder_or_config_are_told(tmp_path):
    """A workdir on local disks, another config: an error in every process at once."""
    code = """
import pathlib
index, _ = distributed.share()
folder = pathlib.Path({path!r}) / str(index if {is_local} else 0)
if index == 0:
    folder.mkdir()
    (folder / "config.json").touch()
distributed.check_shared(folder / "config.json")
distributed.check_same("config", "seed " + str(index))
"""
    for name, is_local, what in (
        ("local", True, "different files at .*/config.json; here it is exists: "),
        ("shared", False, "different config; here it is seed [01]: all need the same"),
    ):
        path = tmp_path / name
        path.mkdir()
        port = free_port()
        program = code.format(path=str(path), is_local=is_local)
        processes = [start(program, i, port=port) for i in (0, 1)]
        for process in processes:
            status, _, line = finish(process)
            assert status == 1 and re.search(what, line), line


SCORE = """
import pathlib
import numpy as np
import dsmooth_jax as ds
from dsmooth_jax import distributed_scoring
from dsmooth_jax.storage.score_store import ScoreStore
rng = np.random.default_rng(0)
images = rng.random((23, 6, 6, 1), np.float32)
weights = rng.random((72, 3), np.float32)
scores_fn = ds.masked_scores(lambda x: x.reshape(len(x), -1) @ weights, ds.Columns(2))
opened = distributed_scoring.take_up(
    pathlib.Path({path!r}), lambda: ScoreStore.create(
    {path!r}, ablation=ds.Columns(2), image_shape=(6, 6, 1), num_classes=3,
    labels=np.arange(23) % 3, ids=np.arange(23).astype(str), made_by={{}},
    shard_size=4,
))
done = list(distributed_scoring.fill(
    opened, images, lambda part: ds.score(scores_fn, part, batch_size=8)
))
print(done)
"""


def contents(path):
    return {file.name: file.read_bytes() for file in path.iterdir()}


def test_two_processes_fill_a_store_as_one_does(tmp_path):
    """Images dealt to two processes: the same files, byte for byte."""
    alone = {"distributed": distributed, "__builtins__": __builtins__}
    exec(SCORE.format(path=str(tmp_path / "one")), alone)
    assert alone["done"] == [4, 4, 4, 4, 4, 3]
    code = SCORE.format(path=str(tmp_path / "two"))
    port = free_port()
    processes = [start(code, i, port=port) for i in (0, 1)]
    results = [finish(process) for process in processes]
    assert [r[0] for r in results] == [0, 0], results
    assert [r[1].splitlines()[-1] for r in results] == ["[4, 4, 4]", "[4, 4, 3]"]
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_what_a_killed_process_scored_is_taken_up(tmp_path, monkeypatch):
    """Shards that wait for the manifest are entered later; a cut checksum is not."""
    scores = np.full((6, 4, 3), 0.25, np.float32)
    images = np.zeros((6, 4, 4, 1), np.float32)

    def create():
        return ScoreStore.create(
            tmp_path / "scores",
            ablation=ds.Columns(2),
            image_shape=(4, 4, 1),
            num_classes=3,
            labels=np.arange(6) % 3,
            ids=np.arange(6).astype(str),
            made_by={},
            shard_size=2,
        )

    opened = distributed_scoring.take_up(tmp_path / "scores", create)
    monkeypatch.setattr(distributed, "share", lambda: (1, 2))
    work = distributed_scoring.fill(
        opened, np.zeros((6, 4, 4, 1)), lambda part: scores[: len(part)]
    )
    assert next(work) == 2  # the second of three shards; then the process is killed
    work.close()
    (tmp_path / "scores" / "scores-00002.npy.sha256").write_text("1234")
    monkeypatch.undo()
    assert create().missing == [0, 1, 2]
    opened = distributed_scoring.take_up(tmp_path / "scores", create)
    assert opened.missing == [0, 2]
    assert not list((tmp_path / "scores").glob("*.sha256"))
    assert list(
        distributed_scoring.fill(opened, images, lambda part: scores[: len(part)])
    ) == [
        2,
        2,
    ]
    finished = ds.open_scores(tmp_path / "scores")
    np.testing.assert_array_equal(finished.read_all(), scores)
