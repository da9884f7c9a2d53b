"""CIFAR-10 on columns of 4 pixels, all ablations in one pass.

python train.py --config=configs/cifar10_columns4.py --workdir=runs/cifar10_columns4

The recipe of cifar10_columns3, where it was measured; for columns of 4 it was not run.
docs/training.md.
"""

from ml_collections import config_dict


def get_config():
    return config_dict.create(
        seed=0,
        data={"name": "cifar10", "num_validation": 1000},
        ablation={"kind": "Columns", "width": 4, "stride": 1},
        model={
            "name": "bandnet",
            "width": 80,
            "max_width": 320,
            "depth": 6,
            "crops": 2,
            "mirror": True,
            "shift": 0,
        },
        train={
            "epochs": 82.0,
            "batch_size": 512,
            "num_accumulated": 1,
            "precision": "bfloat16",
            "optimizer": {
                "name": "muon",
                "learning_rate": 0.08,
                "adam_learning_rate": 2e-3,
                "weight_decay": 0.03,
                "momentum": 0.95,
                "newton_schulz_steps": 3,
                "schedule": "linear",
                "warmup_epochs": 2.0,
                "boundaries": (),
            },
            "augment": {"shift": 4, "flip": True, "cutout": 0, "colour": 0.2},
            "loss": {
                "name": "cross_entropy",
                "label_smoothing": 0.0,
                "every": 1,
                "patch": (5, 5),
                "target": 1.0,
                "temperature": 4.0,
                "cross_entropy": 0.1,
            },
            "ema_decay": 0.0,
            "init_from": "",  # a workdir: start from its best variables
        },
        validation={"every_epochs": 10.25, "patch": (5, 5)},
    )
