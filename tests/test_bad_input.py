"""Every public function refuses bad input: each has a row in test_refused_*.py."""

import dataclasses
import inspect

import test_refused_attacks
import test_refused_geometry
import test_refused_images
import test_refused_masking
import test_refused_scores
import test_refused_stores
import test_refused_training

import dsmooth_jax as ds

TABLES = (
    test_refused_attacks,
    test_refused_geometry,
    test_refused_images,
    test_refused_masking,
    test_refused_scores,
    test_refused_stores,
    test_refused_training,
)


def test_every_public_function_has_a_row():
    # Protects the tables from functions that they do not know.
    filled_by_us = {"Accuracy", "Certificate", "Evaluation", "ScoreStore", "Ablation"}
    filled_by_us |= {"AlarmCertificate", "AlarmEvaluation"}
    filled_by_us |= {"Analysis", "Attack", "Attacked", "ChosenVoting", "Origin"}
    filled_by_us |= {"MaskedCertificate", "LabelStore"}
    # Arithmetic on a number that `missing` gave; lookups.
    unchecked = {"ScoreStore.span", "Request.setting", "Request.sizes"}
    unchecked |= {"Analysis.is_right", "Analysis.squares"}
    unchecked |= {"Analysis.is_hit", "Analysis.way_against"}
    unchecked |= {"ScoreStore.check", "LabelStore.check"}  # what they read themselves
    constants = {"GRADES"}
    wanted = set()
    for name in set(ds.__all__) - constants:
        value = getattr(ds, name)
        if inspect.isclass(value):
            for key, member in vars(value).items():
                is_abstract = getattr(member, "__isabstractmethod__", False)
                if (
                    inspect.isfunction(member)
                    and not key.startswith("_")
                    and not is_abstract
                ):
                    wanted |= {f"{name}.{key}"} if takes_arguments(member) else set()
            if not dataclasses.is_dataclass(value):
                continue
        wanted.add(name)
    rows = {row[0].partition(":")[0] for table in TABLES for row in table.calls()}
    missing = sorted(wanted - filled_by_us - unchecked - rows)
    assert not missing, " ".join(missing)


def takes_arguments(method):
    return len(inspect.signature(method).parameters) > 1
