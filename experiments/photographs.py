"""Few-shot classification of other photographs with the settings for Mini-ImageNet.

CIFAR-FS and FC100; what else `metajax.data.DATA_SETS` has is found here as well.

Command:   python -m experiments.photographs --preset=finn2017/cifar_fs_5w1s
Hardware:  not run on the real images yet
Expected:  the papers have no number for these
"""

from experiments import few_shot, images, miniimagenet, omniglot, protocols
from experiments.command import run
from metajax.data import DATA_SETS

OTHERS = [
    next(iter(launcher.EXPERIMENT.presets.values())).dataset
    for launcher in (omniglot, miniimagenet, images)
]

EXPERIMENT = few_shot.experiment(
    "photographs",
    "Few-shot classification of CIFAR-FS and FC100 with the settings for Mini-ImageNet.",
    protocols.photographs(name for name in DATA_SETS if name not in OTHERS),
)

if __name__ == "__main__":
    run(EXPERIMENT)
