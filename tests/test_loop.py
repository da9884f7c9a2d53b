"""A run survives being killed, stopped and damaged, and ends as it would have."""

import json
import os
import random
import shutil
import signal
import sys
import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from processes import finish, fork, free_port, start

from dsmooth_jax.storage import checkpoint
from dsmooth_jax.storage.checkpoint import CheckpointError
from dsmooth_jax.storage.workdir import BEST, LATEST, METRICS
from dsmooth_jax.training import feeding, loop, metrics
from dsmooth_jax.training.choice import Choice
from dsmooth_jax.training.feeding import Resident, Streamed
from dsmooth_jax.training.loop import Plan
from dsmooth_jax.training.step import TrainState

RECORD = {"config": {"seed": 0}, "fingerprints": {"train": "abc"}}
PLAN = Plan(num_steps=23, steps_per_epoch=4.5, validate_every=4.5, save_every=3)


def first_state():
    params = {"w": jnp.arange(6.0).reshape(2, 3)}
    variables = {"params": params, "batch_stats": {}}
    average = jax.tree.map(jnp.copy, variables)
    return TrainState(jnp.zeros((), jnp.int32), variables, {"m": params["w"]}, average)


def train_step(state, images, labels, key):
    """A step that depends on everything that a real one depends on."""
    noise = jax.random.normal(jax.random.fold_in(key, state.step), (2, 3))
    pull = images.astype(jnp.float32).mean() + labels.sum().astype(jnp.float32)
    momentum = 0.9 * state.opt_state["m"] + noise + 0.01 * pull
    w = state.variables["params"]["w"] - 0.1 * momentum
    mean = jax.tree.map(lambda a: 0.8 * a + 0.2 * w, state.average["params"])
    variables = {"params": {"w": w}, "batch_stats": {}}
    average = {"params": mean, "batch_stats": {}}
    metrics = {"loss": jnp.abs(w).mean(), "accuracy": jnp.cos(w).mean()}
    metrics["learning_rate"] = jnp.float32(0.1)
    return TrainState(state.step + 1, variables, {"m": momentum}, average), metrics


def batches(start, stop):
    for step in range(start, stop):
        rng = np.random.default_rng(step)
        yield rng.integers(0, 256, (4, 2, 2, 1), np.uint8), rng.integers(0, 3, 4)


def validate(variables):
    score = round(float(np.cos(np.asarray(variables["params"]["w"])).sum()), 3)
    return Choice("graded", 0.3, 5.0, (2, 2), 1.0, score, 0.5)


def run(workdir, plan=PLAN, record=RECORD, step=train_step, read=batches):
    workdir.mkdir(parents=True, exist_ok=True)
    return loop.run(
        workdir,
        plan,
        record,
        first_state(),
        step,
        read if isinstance(read, Resident) else Streamed(read),
        validate,
        key=jax.random.key(7),
    )


def stopping(at, read=batches):
    """Batches that end the process's loop as a kill would, before a step."""

    def some(start, stop):
        for step, batch in enumerate(read(start, stop), start=start):
            if step == at:
                raise InterruptedError("as if killed")
            yield batch

    return some


def ending(workdir):
    """Everything a run leaves that must not depend on kills."""
    state, saved = checkpoint.restore(workdir / LATEST, first_state())
    return {
        "latest": checkpoint.fingerprint(workdir / LATEST),
        "best": checkpoint.fingerprint(workdir / BEST),
        "steps": (int(state.step), checkpoint.latest_step(workdir / BEST)),
        "saved": {key: saved[key] for key in ("best", "means")},
        "metrics": (workdir / "metrics.jsonl").read_text(),
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that was left alone, and its end."""
    workdir = tmp_path_factory.mktemp("whole")
    outcome = run(workdir)
    assert outcome.is_finished and (outcome.step, outcome.num_taken) == (23, 23)
    return ending(workdir)


def test_a_whole_run_validates_and_saves_when_it_should(whole):
    """Lines at every passed interval and at the end, each mean of its own steps."""
    lines = [json.loads(line) for line in whole["metrics"].splitlines()]
    assert [line["step"] for line in lines] == [5, 9, 14, 18, 23]
    assert all(np.isfinite(line["loss"]) for line in lines)
    best = max(reversed(lines), key=lambda line: line["certified_accuracy"])
    assert whole["steps"] == (23, best["step"])
    assert whole["saved"]["means"] == {"sums": {}, "count": 0}


@pytest.mark.parametrize("kills", [[0], [1], [4, 5, 6], [7, 7, 13, 22]])
def test_a_run_stopped_anywhere_ends_as_if_it_had_not_been(tmp_path, whole, kills):
    """Parameters, optimizer, average, metrics and choices: the same bits."""
    for step in kills:
        with pytest.raises(InterruptedError):
            run(tmp_path, read=stopping(step))
    outcome = run(tmp_path)
    assert outcome.is_finished and outcome.num_taken < 23 + (kills[-1] < 3)
    assert ending(tmp_path) == whole
    again = run(tmp_path)
    assert again.is_finished and again.num_taken == 0 and again.best == outcome.best


def test_a_kill_between_the_two_saves_of_a_best_loses_nothing(tmp_path, whole):
    """Killed after the latest was saved and before the best: it is made good."""
    run(tmp_path)
    step = whole["steps"][1]
    with pytest.raises(InterruptedError):
        shutil.rmtree(tmp_path)
        run(tmp_path, read=stopping(step))
    shutil.rmtree(tmp_path / BEST)
    run(tmp_path)
    assert ending(tmp_path) == whole


def test_sigterm_saves_and_leaves(tmp_path, whole):
    """It stops after the step it was in, says that it is not finished, and resumes."""

    def read(start, stop):
        for step, batch in enumerate(batches(start, stop), start=start):
            if step == 10:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    outcome = run(tmp_path, read=read)
    # That batch was read while the step before was taken.
    assert not outcome.is_finished and outcome.step in (10, 11)
    assert checkpoint.latest_step(tmp_path / LATEST) == outcome.step
    assert run(tmp_path).num_taken == 23 - outcome.step
    assert ending(tmp_path) == whole


IMAGES = np.random.default_rng(1).integers(0, 256, (7, 2, 2, 1), np.uint8)
LABELS = np.arange(7) % 3


def resident(at=None, asked=None):
    """Images that stay on the device, from which a kill may keep a step's rows."""

    def rows(start, stop):
        if at is not None and start <= at < stop:
            raise InterruptedError("as if killed")
        if asked is not None:
            asked.append(stop - start)
        steps = [np.random.default_rng(step) for step in range(start, stop)]
        return np.array([rng.integers(0, 7, 4) for rng in steps])

    return Resident(IMAGES, LABELS, rows)


def one_by_one(start, stop):
    """The same images, batch by batch."""
    for rows in resident().rows(start, stop):
        yield IMAGES[rows], LABELS[rows]


def many(steps_per_call, save_every=3):
    return Plan(23, 4.5, 4.5, save_every, steps_per_call=steps_per_call)


@pytest.mark.parametrize("steps_per_call", [1, 2, 100])
def test_steps_in_one_call_are_those_taken_one_by_one(tmp_path, steps_per_call):
    """Images in order, random numbers, metrics, choices; parameters to rounding."""
    run(tmp_path / "one", read=one_by_one)
    run(tmp_path / "many", many(steps_per_call), read=resident())
    one, several = (
        checkpoint.restore(tmp_path / name / LATEST, first_state())[0]
        for name in ("one", "many")
    )
    chex.assert_trees_all_close(one, several, rtol=1e-6)
    first, second = (
        [json.loads(x) for x in (tmp_path / name / METRICS).read_text().splitlines()]
        for name in ("one", "many")
    )
    for line, other in zip(first, second, strict=True):
        assert line == {**other, "loss": line["loss"], "accuracy": line["accuracy"]}
        assert line["loss"] == pytest.approx(other["loss"], rel=1e-6)


@pytest.mark.parametrize("kills", [[2], [4, 5, 6], [7, 13, 22]])
def test_no_result_depends_on_where_calls_end(tmp_path, kills):
    """Killed and not, checkpoints often and seldom: the same bits."""
    plan, seldom = many(4), many(4, save_every=1000)
    run(tmp_path / "whole", seldom, read=resident())
    for step in kills:
        with pytest.raises(InterruptedError):
            run(tmp_path / "killed", plan, read=resident(at=step))
    assert run(tmp_path / "killed", plan, read=resident()).is_finished
    assert ending(tmp_path / "killed") == ending(tmp_path / "whole")


def test_calls_grow_on_an_accelerator_and_end_where_checkpoints_fall(
    tmp_path, monkeypatch
):
    """Twice as long each time while they are short; one step each on a CPU."""
    monkeypatch.setattr(feeding, "CALL_SECONDS", 100.0)
    asked = []
    run(tmp_path / "cpu", many(None), read=resident(asked=asked))
    assert asked == [1] * 23
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    asked.clear()
    run(tmp_path / "gpu", many(None, save_every=1000), read=resident(asked=asked))
    assert asked == [1, 1, 2, 1, 4, 5, 4, 5]  # 5, 9, 14, 18, 23 are validated
    asked.clear()
    monkeypatch.setattr(feeding, "CALL_SECONDS", 0.0)
    run(tmp_path / "slow", many(None, save_every=1000), read=resident(asked=asked))
    assert asked == [1] * 23


def test_images_stay_on_a_device_that_has_room(monkeypatch):
    """A quarter of its memory, or any number where JAX does not say."""

    class Device:
        def memory_stats(self):
            return {"bytes_limit": limit}

    assert feeding.fits(IMAGES)
    monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
    for limit in (4 * IMAGES.nbytes, 4 * IMAGES.nbytes - 1):
        assert feeding.fits(IMAGES) == (limit == 4 * IMAGES.nbytes)


def damage(folder):
    largest = max(folder.rglob("*"), key=lambda p: p.is_file() and p.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)


def test_a_damaged_newest_checkpoint_is_named_and_made_again(tmp_path, whole, capsys):
    """The older one is used; steps, metrics and choices come out as they were."""
    run(tmp_path)
    newest = tmp_path / LATEST / "23"
    damage(newest)
    outcome = run(tmp_path)
    said = capsys.readouterr().err
    assert str(newest) in said and "set aside" in said
    assert "going on from step 21, the newest that is whole" in said
    assert outcome.num_taken == 2
    assert ending(tmp_path) == whole


def test_a_lost_best_is_said_and_another_chosen(tmp_path, whole, capsys):
    """Training goes on: the best of the validations that are still to come."""
    with pytest.raises(InterruptedError):
        run(tmp_path, read=stopping(20))
    shutil.rmtree(tmp_path / BEST)
    outcome = run(tmp_path)
    assert "is gone or damaged: the best is chosen among" in capsys.readouterr().err
    assert outcome.best.step == 23 == checkpoint.latest_step(tmp_path / BEST)
    found = ending(tmp_path)
    assert found["latest"] == whole["latest"] and found["metrics"] == whole["metrics"]


def test_other_settings_are_refused_with_the_difference(tmp_path):
    """Nothing of the run that is there changes, though the newest is damaged."""
    run(tmp_path)
    before = ending(tmp_path)
    for record, match in (
        ({**RECORD, "config": {"seed": 1}}, "config.seed: saved 0, wanted 1"),
        ({**RECORD, "fingerprints": {"train": "x"}}, 'train: saved "abc", wanted "x"'),
    ):
        with pytest.raises(ValueError, match=match):
            run(tmp_path, record=record)
    assert ending(tmp_path) == before


@pytest.mark.parametrize("read", [batches, resident()], ids=["one", "many"])
@pytest.mark.parametrize("is_parameter", [False, True])
def test_what_is_not_finite_stops_the_run(tmp_path, is_parameter, read):
    """NaN: the step, the learning rate, and a last checkpoint that is still good."""

    def step(state, images, labels, key):
        bad = state.step == 7
        new, metrics = train_step(state, images, labels, key)
        if is_parameter:
            w = jnp.where(bad, jnp.inf, new.variables["params"]["w"])
            variables = {"params": {"w": w}, "batch_stats": {}}
            return TrainState(new.step, variables, new.opt_state, new.average), metrics
        return new, {**metrics, "loss": jnp.where(bad, jnp.nan, metrics["loss"])}

    what = r"\.variables\['params'\]\['w'\] is no longer finite in step 8"
    what = what if is_parameter else "the loss became nan in step 8"
    match = f"{what}, at learning rate 0.1; the last good checkpoint is step 4 in "
    plan = Plan(23, 4.5, validate_every=9, save_every=4, steps_per_call=4)
    with pytest.raises(ValueError, match=match):
        run(tmp_path, plan=plan, step=step, read=read)
    state, _ = checkpoint.restore(tmp_path / LATEST, first_state())
    assert int(state.step) == 4
    chex.assert_tree_all_finite(state)


def test_a_full_disk_stops_the_run_and_room_lets_it_go_on(tmp_path, whole, monkeypatch):
    """The error names what is still whole; the same command goes on from there."""
    save = checkpoint._orbax().save

    class Full:
        def __getattr__(self, name):
            return getattr(v1, name)

        def save(self, path, *arguments, **keywords):
            if path.name == "9":
                raise OSError(28, "No space left on device")
            return save(path, *arguments, **keywords)

    v1 = checkpoint._orbax()
    monkeypatch.setattr(checkpoint, "_orbax", Full)
    match = r"of step 9 cannot .*No space left on device.*step 6 is still whole"
    with pytest.raises(CheckpointError, match=match):
        run(tmp_path)
    monkeypatch.undo()
    assert run(tmp_path).num_taken == 17
    assert ending(tmp_path) == whole


RUN = """
import sys, pathlib
sys.path.insert(0, "tests")
import test_loop
print("started", flush=True)
test_loop.run(pathlib.Path(sys.argv[1]))
"""


def test_a_run_killed_at_random_moments_ends_as_if_it_had_not_been(tmp_path, whole):
    """SIGKILL, again and again, in steps and in saves; files are all that is left."""
    rng = random.Random(0)
    kills = 0
    while kills < 3:
        forked = fork("-c", RUN, tmp_path)
        forked.wait_for("started\n")
        # Once it has saved: before that there is nothing to lose.
        before = checkpoint.latest_step(tmp_path / LATEST)
        deadline = time.monotonic() + 60
        while checkpoint.latest_step(tmp_path / LATEST) == before:
            if not forked.process.is_alive():
                break
            assert time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.1))
        forked.process.kill()
        if forked.finish().returncode == 0:
            break  # it was finished before the kill
        kills += 1
    assert kills
    run(tmp_path)
    assert ending(tmp_path) == whole


TOGETHER = """
import os, pathlib, signal, sys, time
sys.path.insert(0, "tests")
import test_loop

def read(begin, stop):
    index, count = distributed.share()
    part = slice(index * 4 // count, (index + 1) * 4 // count)
    for step, (images, labels) in enumerate(test_loop.batches(begin, stop), begin):
        if step == 10 and index == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        if step >= 10:
            time.sleep(0.5)  # the news takes a moment
        yield images[part], labels[part]

outcome = test_loop.run(pathlib.Path({path!r}), read=read)
print(outcome.is_finished, outcome.step)
"""


def test_sigterm_of_one_of_two_processes_stops_both_at_a_step(tmp_path, whole, capsys):
    """Both leave after the same step, and one process alone can go on from there."""
    port = free_port()
    code = TOGETHER.format(path=str(tmp_path))
    processes = [start(code, i, port=port, timeout=60) for i in (0, 1)]
    results = [finish(process) for process in processes]
    assert [status for status, _, _ in results] == [0, 0], results
    last, other = (out.splitlines()[-1] for _, out, _ in results)
    step = checkpoint.latest_step(tmp_path / LATEST)
    assert last == other == f"False {step}" and 10 <= step < 23
    assert run(tmp_path).is_finished
    assert "processes: saved 2, wanted 1" in capsys.readouterr().err
    # Sums of a few integers are exact: here, the order makes no difference.
    assert ending(tmp_path) == whole


def test_going_on_with_other_devices_is_said(tmp_path, capsys, monkeypatch):
    """It works, and is not claimed to be bit-identical."""
    with pytest.raises(InterruptedError):
        run(tmp_path, read=stopping(10))
    devices = {"kind": "cpu", "count": 8, "processes": 1}
    monkeypatch.setattr(loop, "_devices", lambda: devices)
    assert run(tmp_path).is_finished
    said = capsys.readouterr().err
    assert "count: saved 1, wanted 8): correct, but not bit-identical" in said


def test_the_journal_has_no_repeats_and_no_gaps(tmp_path):
    """Later lines and a half-written one go; nothing else is touched."""
    path = tmp_path / "metrics.jsonl"
    assert metrics.cut(path, 5) == [] and not path.exists()
    for step in (2, 4, 6):
        metrics.append(path, {"step": step})
    with open(path, "a") as file:
        file.write('{"step": 8, "lo')
    assert metrics.cut(path, 4) == [{"step": 2}, {"step": 4}]
    assert path.read_text() == '{"step": 2}\n{"step": 4}\n'
    written = path.stat().st_mtime_ns
    metrics.cut(path, 4)
    assert path.stat().st_mtime_ns == written


def test_tensorboard_is_written_when_asked(tmp_path):
    """Numbers by name, and an error with the remedy where the package is missing."""
    pytest.importorskip("tensorboardX")
    plan = Plan(9, 4.5, 4.5, tensorboard=True)
    run(tmp_path, plan=plan)
    (file,) = (tmp_path / "tensorboard").iterdir()
    content = file.read_bytes()
    assert b"learning_rate" in content and b"loss" in content
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "tensorboardX", None)
        with pytest.raises(ValueError, match="pip install tensorboardX"):
            run(tmp_path / "other", plan=plan)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_steps": 0},
        {"validate_every": 0},
        {"save_every": 0},
        {"steps_per_call": 0},
    ],
)
def test_plans_that_cannot_be_are_refused(changes):
    """By name and value."""
    arguments = {"num_steps": 9, "steps_per_epoch": 3.0, "validate_every": 3.0}
    (name,) = changes
    with pytest.raises(ValueError, match=f"{name}=0 must be"):
        Plan(**arguments | changes)
