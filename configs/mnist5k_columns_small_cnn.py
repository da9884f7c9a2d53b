"""The paper's column smoothing and network on 5,000 real MNIST images.

python train.py --config=configs/mnist5k_columns_small_cnn.py --workdir=runs/small_cnn
"""

from ml_collections import config_dict


def get_config():
    return config_dict.create(
        seed=0,
        data={"name": "mnist5k"},
        ablation={"kind": "Columns", "width": 2, "stride": 1},
        model={"name": "small_cnn"},
        train={
            "epochs": 150,
            "batch_size": 128,
            "optimizer": {
                "name": "adamw",
                "learning_rate": 1e-3,
                "weight_decay": 5e-4,
                "momentum": 0.9,
                "schedule": "cosine",
                "warmup_epochs": 0.0,
                "boundaries": (),
            },
            "augment": {"shift": 2, "flip": False},
        },
        validation={
            "every_epochs": 10,
            "patch": (3, 3),  # what threshold and checkpoint are chosen for
        },
    )
