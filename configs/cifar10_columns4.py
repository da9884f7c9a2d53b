"""CIFAR-10 on columns of 4 pixels, all ablations in one pass.

python train.py --config=configs/cifar10_columns4.py --workdir=runs/cifar10_columns4

51 minutes on two shared Intel Xeon cores: 74.1 % clean, 46.0 % certified at 5x5 on
5,000 validation images (graded votes, placement rule; JPEGs of CIFAR-10). See
docs/training.md.
"""

from ml_collections import config_dict


def get_config():
    return config_dict.create(
        seed=0,
        data={"name": "cifar10", "num_validation": 5000},
        ablation={"kind": "Columns", "width": 4, "stride": 1},
        model={"name": "bandnet", "width": 64, "depth": 6, "crops": 4, "mirror": False},
        train={
            "epochs": 32.0,
            "batch_size": 512,
            "num_accumulated": 1,
            "precision": "float32",
            "optimizer": {
                "name": "muon",
                "learning_rate": 0.04,
                "adam_learning_rate": 2e-3,
                "weight_decay": 0.0,
                "momentum": 0.95,
                "schedule": "linear",
                "warmup_epochs": 2.0,
                "boundaries": (),
            },
            "augment": {"shift": 4, "flip": True, "cutout": 0, "colour": 0.0},
            "loss": {
                "name": "cross_entropy",
                "label_smoothing": 0.0,
                "patch": (5, 5),
                "target": 1.0,
                "temperature": 4.0,
                "cross_entropy": 0.1,
            },
            "ema_decay": 0.0,
            "init_from": "",  # a workdir: start from its best variables
        },
        validation={"every_epochs": 2.0, "patch": (5, 5)},
    )
