"""Command lines that cannot work: one line with the remedy, and nothing left behind."""

import json

import pytest
from refusals import save

TRAIN = ["train.py", "--config=configs/mnist5k_smoke.py", "--workdir={tmp}/new"]
SCORED = ["certify.py", "--scores={scores}", "--out={tmp}/out"]
TRAINED = ["certify.py", "--workdir={trained}", "--out={tmp}/out"]
ATTACK = ["attack.py", "--workdir={trained}", "--out={tmp}/out"]
DEMO = "--workdir=runs/demo"
COMMANDS = {
    "train, no flag": (["train.py"], ["--config", "--workdir", "configs/mnist5k"]),
    "train, no workdir": (TRAIN[:2], ["--workdir"]),
    "train, no config": ([TRAIN[0], TRAIN[2]], ["--config", "configs/mnist5k"]),
    "train, unknown flag": ([*TRAIN, "--epochs=3"], ["epochs", "help"]),
    "train, no flag but a word": ([*TRAIN, "fast"], ["'fast'", "--help"]),
    "train, config typo": (
        [*TRAIN, "--config.train.epoch=3"],
        ["--config.train.epoch:", "nearest is --config.train.epochs"],
    ),
    "train, config value": ([*TRAIN, "--config.train.epochs=many"], ["epochs", "many"]),
    "train, config missing": (
        ["train.py", "--config=configs/mnist.py", TRAIN[2]],
        ["configs/mnist.py"],
    ),
    "train, no such optimizer": (
        [*TRAIN, "--config.train.optimizer.name=adam"],
        ["optimizer.name='adam'", "adamw"],
    ),
    "train, no learning rate": (
        [*TRAIN, "--config.train.optimizer.learning_rate=0"],
        ["optimizer.learning_rate=0", "> 0"],
    ),
    "train, no batch": ([*TRAIN, "--config.train.batch_size=0"], ["batch_size=0", "1"]),
    "train, no epochs": ([*TRAIN, "--config.train.epochs=0"], ["train.epochs=0"]),
    "train, validated never": (
        [*TRAIN, "--config.validation.every_epochs=0"],
        ["every_epochs=0"],
    ),
    "train, window too wide": (
        [*TRAIN, "--config.ablation.width=40"],
        ["width=40", "1..28"],
    ),
    "train, no such ablation": (
        [*TRAIN, "--config.ablation.kind=Bands"],
        ["kind='Bands'", "Columns"],
    ),
    "train, no such model": (
        [*TRAIN, "--config.model.name=vgg"],
        ["'vgg'", "small_cnn"],
    ),
    "train, no such data": ([*TRAIN, "--config.data.name=mnist6k"], ["mnist6k"]),
    "train, no such precision": (
        [*TRAIN, "--config.train.precision=float16"],
        ["train.precision='float16'", "bfloat16"],
    ),
    "train, parts of no batch": (
        [*TRAIN, "--config.train.num_accumulated=0"],
        ["train.num_accumulated=0", ">= 1"],
    ),
    "train, saved never": ([*TRAIN, "--save_every=0"], ["--save_every=0", ">= 1"]),
    "train, half a coordinator": (
        [*TRAIN, "--coordinator=10.0.0.1:8476"],
        ["--num_processes=None", "given together"],
    ),
    "train, no such cluster": (
        [*TRAIN, "--distributed=slurm"],
        ["--distributed=slurm", "must be auto"],
    ),
    "certify, no such process": (
        [*TRAINED, "--coordinator=a:1", "--num_processes=2", "--process_id=2"],
        ["--process_id=2", "0..1"],
    ),
    "certify, no flag": (["certify.py"], ["--workdir", "--scores", DEMO]),
    "certify, fewer of what is scored": (
        [*SCORED, "--num_images=3"],
        ["--num_images", "--scores", "--workdir"],
    ),
    "certify, sure of what is scored": (
        [*SCORED, "--confidence=0.5"],
        ["--confidence", "--scores", "--workdir"],
    ),
    "certify, sure of ablations": (
        [*TRAINED, "--confidence=0.5"],
        ["--confidence=0.5", "of masks of pixels", "leave it out"],
    ),
    "certify, anew what is scored": ([*SCORED, "--overwrite"], ["--overwrite"]),
    "certify, both": ([*SCORED, DEMO], ["either", "--workdir", "--scores"]),
    "certify, compare one": (["certify.py", "--compare={scores}"], ["two or more"]),
    "certify, compare nothing": (
        ["certify.py", "--compare={scores},{tmp}/typo"],
        ["typo", "no scores", "certify.py --workdir"],
    ),
    "certify, unknown flag": ([*SCORED, "--patch=2x2"], ["patch", "help"]),
    "certify, no flag but a word": ([*SCORED, "5x5"], ["'5x5'", "--help"]),
    "certify, no workdir there": (
        ["certify.py", "--workdir={tmp}/typo"],
        ["typo", "no checkpoint", "train"],
    ),
    "certify, no scores there": (
        ["certify.py", "--scores={tmp}/typo"],
        ["typo", "no store"],
    ),
    "certify, malformed patches": ([*SCORED, "--patches=5"], ["'5'", "HEIGHTxWIDTH"]),
    "certify, patch too large": ([*SCORED, "--patches=5x5"], ["patch 5x5", "4x6"]),
    "certify, no such voting": (
        [*SCORED, "--patches=2x2", "--voting=majority"],
        ["voting", "majority", "threshold", "top_one"],
    ),
    "certify, threshold too high": (
        [*SCORED, "--patches=2x2", "--threshold=1.5"],
        ["threshold=1.5", "(0, 1]"],
    ),
    "certify, threshold 0": (
        [*SCORED, "--patches=2x2", "--threshold=0"],
        ["threshold=0", "(0, 1]"],
    ),
    "certify, threshold text": ([*SCORED, "--threshold=low"], ["threshold", "low"]),
    "certify, top 0": ([*SCORED, "--top_k=0"], ["--top_k=0", "--top_k=3,5"]),
    "certify, alarms in votes": (
        [*SCORED, "--patches=2x2", "--alarms=5"],
        ["--alarms=5", "--alarms=1%,5%"],
    ),
    "certify, alarms with nothing to choose on": (
        [*SCORED, "--patches=2x2", "--alarms=5%"],
        ["--alarms", "validation/scores", "--split=validation"],
    ),
    "certify, alarms chosen on what is not there": (
        [*SCORED, "--patches=2x2", "--alarms=5%", "--validation_scores={tmp}/typo"],
        ["typo", "--validation_scores"],
    ),
    "certify, workdir, alarms with nothing to choose on": (
        [*TRAINED, "--alarms=5%"],
        ["--alarms", "validation/scores", "--split=validation"],
    ),
    "certify, workdir, patch too large": (
        [*TRAINED, "--patches=2x2,29x1"],
        ["patch 29x1", "28x28"],
    ),
    "certify, workdir, too many images": (
        [*TRAINED, "--num_images=1001"],
        ["--num_images=1001", "1..1000"],
    ),
    "certify, workdir, no such split": (
        [*TRAINED, "--split=eval"],
        ["split='eval'", "validation"],
    ),
    "certify, workdir, no such voting": (
        [*TRAINED, "--voting=majority"],
        ["voting", "majority", "top_one"],
    ),
    "certify, workdir, threshold too high": (
        [*TRAINED, "--threshold=1.5"],
        ["threshold=1.5", "(0, 1]"],
    ),
    "certify, workdir, no batch": (
        [*TRAINED, "--batch_size=0"],
        ["batch_size=0", ">= 1"],
    ),
    "attack, no flag": (["attack.py"], ["--workdir", DEMO]),
    "attack, no workdir there": (
        ["attack.py", "--workdir={tmp}/typo"],
        ["typo", "no checkpoint", "train"],
    ),
    "attack, no steps": ([*ATTACK, "--steps=0"], ["--steps=0", ">= 1"]),
    "attack, no such decision": (
        [*ATTACK, "--decision=masks"],
        ["--decision=masks", "double_masking", "undefended"],
    ),
    "attack, undefended by a decision": (
        [*ATTACK, "--undefended", "--decision=votes"],
        ["--undefended", "leave out --decision"],
    ),
    "attack, pictures below 0": (
        [*ATTACK, "--num_pictures=-1"],
        ["--num_pictures=-1", ">= 0"],
    ),
    "attack, patch too large": ([*ATTACK, "--patches=2x29"], ["2x29", "28x28"]),
    "attack, malformed patches": ([*ATTACK, "--patches=5"], ["'5'", "HEIGHTxWIDTH"]),
    "attack, too many images": (
        [*ATTACK, "--num_images=1001"],
        ["--num_images=1001", "1..1000"],
    ),
}

# Each command in a process of its own, forked where data are read already: as
# `python train.py ...` would run, in a fraction of the time.
DRIVER = """
import json, os, runpy, signal, sys, tempfile, traceback
import dsmooth_jax.data

dsmooth_jax.data.load("mnist5k", "test")  # read here, it is in memory there

def run(arguments):
    sys.argv = arguments
    try:
        runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0

results = {}
for name, arguments in json.loads(sys.argv[1]).items():
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        if not (child := os.fork()):
            # What is refused is refused at once: 10 s of processor time, however busy.
            signal.setitimer(signal.ITIMER_PROF, 10)
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            status = run(arguments)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        out.seek(0)
        err.seek(0)
        results[name] = status, out.read().decode(), err.read().decode()
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("scratch")


@pytest.fixture(scope="module")
def finished(scratch, smoke_run, run_script):
    """(exit status, stdout, stderr) of each command."""
    save(scratch / "scores")
    places = {"tmp": scratch, "scores": scratch / "scores", "trained": smoke_run}
    commands = {
        name: [argument.format(**places) for argument in arguments]
        for name, (arguments, _) in COMMANDS.items()
    } | {
        f"{name} --help": [name, "--help"]
        for name in ("train.py", "certify.py", "attack.py")
    }
    done = run_script("-c", DRIVER, json.dumps(commands), jax_platforms="cpu")
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_wrong_command_line_gets_one_line_with_the_remedy(finished, name):
    # Protects users of the scripts: a status that scripts see, and never a traceback.
    status, _, error = finished[name]
    assert "Traceback" not in error, error
    assert status > 0, f"status {status}; negative: killed, it was not refused at once"
    for word in COMMANDS[name][1]:
        assert word in error
    lines = error.strip().splitlines()
    if lines[-1:] == ["Pass --helpshort or --helpfull to see help on flags."]:
        lines.pop()  # absl adds this to its own errors
    assert len(lines) == 1, error


def test_a_wrong_command_line_leaves_nothing_behind(finished, scratch):
    # Protects folders: what was refused before any work has not begun a run there.
    assert sorted(path.name for path in scratch.iterdir()) == ["scores"]


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("train.py", ["python train.py --config=configs/", "--workdir", "killed"]),
        ("certify.py", ["python certify.py --workdir", "--patches", "HEIGHTxWIDTH"]),
        ("attack.py", ["python attack.py --workdir", "--undefended", "--steps"]),
    ],
)
def test_help_explains(finished, script, words):
    # Protects --help, the first thing a new user types: purpose, examples, own flags.
    _, text, error = finished[f"{script} --help"]
    assert "Traceback" not in error
    for word in words:
        assert word in text
