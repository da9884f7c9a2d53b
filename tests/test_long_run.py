"""Protects the long run's plan: what is shortened, narrowed, joined, and taught."""

import importlib
import json

import pytest

from dsmooth_jax.training.config import from_json, to_json
from scripts import long_run


def config_of(name):
    made = importlib.import_module(f"configs.{name}").get_config()
    return from_json(json.loads(made.to_json()))


@pytest.fixture(scope="module")
def configs():
    return {name: config_of(name) for name in long_run.STAGES.split(",")}


def test_a_shorter_schedule_decays_the_weights_as_much(configs):
    """Decay acts by its sum over the run; a step that halves them is the most."""
    whole = configs["cifar10_columns3_card"].train
    half = long_run.shortened(configs["cifar10_columns3_card"], 0.5).train
    assert half.epochs == whole.epochs / 2
    decays = [t.optimizer.weight_decay * t.epochs for t in (whole, half)]
    assert decays[0] == pytest.approx(decays[1])
    warmups = [t.optimizer.warmup_epochs / t.epochs for t in (whole, half)]
    assert warmups[0] == pytest.approx(warmups[1])
    tiny = long_run.shortened(configs["cifar10_columns3_card"], 1e-4).train.optimizer
    assert tiny.weight_decay * tiny.learning_rate == pytest.approx(0.5)


def test_an_ensemble_is_as_narrow_as_its_members(configs):
    """So that the rehearsal's teacher is of the rehearsal's networks."""
    whole = long_run.narrowed(configs["cifar10_columns3_card_all"], 8)
    one = to_json(long_run.narrowed(configs["cifar10_columns3_card_a"], 8))["model"]
    assert one["width"] == 8 and one["max_width"] == 32
    assert to_json(whole)["model"]["members"] == [one] * 3
    masks = long_run.narrowed(configs["cifar10_masks_card"], 8).model
    assert masks.width == 8 and masks.max_width is None


def test_stages_know_their_teachers_and_are_placed_side_by_side(configs, tmp_path):
    """The student's teacher is the ensemble before it; the others have none."""
    joined = [name for name, one in configs.items() if long_run.is_joined(one)]
    assert joined == ["cifar10_columns3_card_all"]
    for name, config in configs.items():
        teacher = long_run.teacher_of(config, configs)
        is_student = name == "cifar10_columns3_card"
        assert teacher is (configs[joined[0]] if is_student else None)
    second = to_json(configs["cifar10_columns3_card_masked"])
    begins = long_run.placed(second, tmp_path)["train"]["init_from"]
    assert begins.endswith(f"{tmp_path.name}/cifar10_columns3_card")
