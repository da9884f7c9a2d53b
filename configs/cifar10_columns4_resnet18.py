"""The paper's CIFAR-10 classifier: ResNet-18 on columns of 4 pixels, 350 epochs.

python train.py --config=configs/cifar10_columns4_resnet18.py --workdir=runs/cifar10

Needs the TFDS data set cifar10 (--data_dir says where). Not run here: the paper reports
83.8 % clean and 57.6 % certified accuracy at 5x5 after 15.4 hours on an RTX 2080 Ti.
One training step costs 0.43 TFLOP (128 images x 3 passes x 1.1 GFLOP), an epoch of
45,000 images 0.15 PFLOP and the whole run 53 PFLOP.
"""

from ml_collections import config_dict


def get_config():
    return config_dict.create(
        seed=0,
        data={"name": "cifar10", "num_validation": 5000},
        ablation={"kind": "Columns", "width": 4, "stride": 1},
        model={"name": "resnet18", "stem": "cifar"},
        train={
            "epochs": 350,
            "batch_size": 128,
            "num_accumulated": 1,
            "precision": "float32",
            "optimizer": {
                "name": "sgd",
                "learning_rate": 0.1,
                "adam_learning_rate": 2e-3,
                "weight_decay": 5e-4,
                "momentum": 0.9,
                "schedule": "piecewise",
                "warmup_epochs": 0.0,
                "boundaries": (150, 250),
            },
            "augment": {"shift": 4, "flip": True, "cutout": 0, "colour": 0.0},
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
        validation={"every_epochs": 10, "patch": (5, 5)},
    )
