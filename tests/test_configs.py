"""Protects runs from their config's file: every key in every one, old ones readable."""

import importlib
import json
import pathlib

import pytest

from dsmooth_jax.storage.provenance import flatten
from dsmooth_jax.training import config

ROOT = pathlib.Path(__file__).resolve().parent.parent
# What these files said before they had every key: what runs begun then have saved.
BEFORE = json.loads((ROOT / "tests" / "data" / "configs_before_base.json").read_text())
NAMES = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))


def said_by(name):
    module = importlib.import_module(f"configs.{name}")
    return json.loads(module.get_config().to_json())


@pytest.mark.parametrize("name", NAMES)
def test_every_config_has_every_key_and_changes_defaults_only(name):
    """So that each setting can be given by a flag, whatever the config."""
    everything = flatten(json.loads(config.template().to_json()))
    assert flatten(said_by(name)).keys() == everything.keys()
    assert {"data.channels", "data.size", "model.stem"} <= everything.keys()


@pytest.mark.parametrize("name", sorted(BEFORE))
def test_a_run_of_the_config_before_goes_on_with_the_one_of_today(name):
    """The same settings, once what was left out then has its default."""
    assert config.canonical(BEFORE[name]) == config.canonical(said_by(name))


@pytest.mark.parametrize("name", ["cifar10_columns3"])
def test_configs_of_shipped_models_are_read(name):
    """With fewer keys than today's; none of theirs is lost."""
    saved = json.loads((ROOT / "pretrained" / name / "config.json").read_text())
    found = flatten(config.canonical(saved))
    assert flatten(saved).items() <= found.items()


def test_a_key_has_its_former_name_in_what_was_saved_only():
    """Old runs are read; both names at once are a mistake, and so is a new flag."""
    old = config.from_json({"train": {"augment": {"colour": 0.3}}})
    assert old.train.augment.color == 0.3
    assert config.to_json(old)["train"]["augment"]["color"] == 0.3
    with pytest.raises(ValueError, match=r"'train\.augment\.colour'.*color'"):
        config.from_json({"train": {"augment": {"colour": 0.3, "color": 0.2}}})
    with pytest.raises(ValueError, match=r"nearest is --config\.train\.augment\.color"):
        config.check_flags(["--config.train.augment.colour=0.3"])


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"train": {"epoch": 3}}, ["'train.epoch'", "'train.epochs'"]),
        ({"trian": {"epochs": 3}}, ["'trian'", "nearest"]),
        ({"data": {"chanels": 3}}, ["'data.chanels'", "'data.channels'"]),
        ({"seed": 1.5}, ["seed=1.5", "integer"]),
        ({"data": {"name": 3}}, ["data.name=3", "text"]),
        ({"train": {"epochs": "many"}}, ["train.epochs='many'", "number"]),
        ({"train": {"augment": {"flip": "yes"}}}, ["flip='yes'", "True or False"]),
        ({"train": 3}, ["train=3", "keys"]),
        ({"data": {"size": (0, 5)}}, ["data.size=(0, 5)"]),
        ({"model": {"depth": 2.5}}, ["model.depth=2.5", "integer"]),
    ],
)
def test_a_wrong_key_or_value_is_named_with_what_is_nearest(
    record, words, without_shape_checks
):
    """Of a config file of one's own, which no flag parser sees."""
    with pytest.raises((TypeError, ValueError)) as raised:
        config.from_json(record)
    for word in words:
        assert word in str(raised.value)


def test_none_is_left_out_and_defaults_are_there():
    """One form for all, that reads itself."""
    plain = config.to_json(config.Config())
    assert "size" not in plain["data"] and plain["train"]["loss"]["patch"] == [5, 5]
    assert config.to_json(config.from_json(plain)) == plain


@pytest.mark.parametrize(
    ("flag", "nearest"),
    [
        ("--config.train.epoch=3", "--config.train.epochs"),
        ("--config.data.chanels=3", "--config.data.channels"),
        ("-config.optimizer.learning_rate=1", "config.train.optimizer.learning_rate"),
        ("--noconfig.train.augment.flipp", "--config.train.augment.flip"),
        ("--config.train.epochs.more=3", "--config.train.epochs"),
    ],
)
def test_a_flag_of_no_setting_gets_the_nearest(flag, nearest):
    """Whatever part of the name is wrong."""
    with pytest.raises(ValueError, match="there is no such setting") as raised:
        config.check_flags(["train.py", "--config=configs/mnist5k_smoke.py", flag])
    assert nearest in str(raised.value)


def test_flags_of_settings_pass():
    """Whole parts as well, and what is no flag of the config."""
    for flag in ("--config.data.size=(3,3)", "--config.data=x", "--configs.no", "a.b"):
        config.check_flags([flag])
