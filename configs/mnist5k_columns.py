"""Column smoothing of 5,000 real MNIST images in one pass: what `make demo` trains.

python train.py --config=configs/mnist5k_columns.py --workdir=runs/mnist5k
"""

from ml_collections import config_dict


def get_config():
    return config_dict.create(
        seed=0,
        data={"name": "mnist5k"},
        ablation={"kind": "Columns", "width": 2, "stride": 1},
        model={"name": "bandnet", "width": 32, "depth": 4, "crops": 4},
        train={
            "epochs": 150,
            "batch_size": 128,
            "num_accumulated": 1,
            "precision": "float32",
            "optimizer": {
                "name": "adamw",
                "learning_rate": 2e-3,
                "adam_learning_rate": 2e-3,
                "weight_decay": 5e-2,
                "momentum": 0.9,
                "schedule": "cosine",
                "warmup_epochs": 4.0,
                "boundaries": (),
            },
            "augment": {"shift": 2, "flip": False, "cutout": 0, "colour": 0.0},
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
        validation={
            "every_epochs": 5,
            "patch": (3, 3),  # what threshold and checkpoint are chosen for
        },
    )
