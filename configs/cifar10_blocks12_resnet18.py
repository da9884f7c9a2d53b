"""The paper's block smoothing of CIFAR-10: ResNet-18 on blocks of 12 x 12 pixels.

python train.py --config=configs/cifar10_blocks12_resnet18.py --workdir=runs/blocks

Needs the TFDS data set cifar10, or its npz files (--data_dir says where). Not run here.
A training step costs what it costs for columns (0.43 TFLOP); scoring an image takes
1,024 passes instead of 32.
"""

from configs import cifar10_columns4_resnet18


def get_config():
    config = cifar10_columns4_resnet18.get_config()
    config.ablation = {"kind": "Blocks", "height": 12, "width": 12, "stride": 1}
    # 5,000 validation images would take 5 million passes each time.
    config.data.num_validation = 1000
    config.validation.every_epochs = 50
    return config
