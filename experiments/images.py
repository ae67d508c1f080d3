"""Few-shot classification of your own images: a folder of folders, one for each class.

Command:   python -m experiments.images --data_dir=FOLDER --preset=finn2017/folder_5w1s
Hardware:  that of Mini-ImageNet, whose settings these are; --size=28 is faster
Expected:  depends on the images
"""

from experiments import few_shot, protocols
from experiments.command import run

EXPERIMENT = few_shot.experiment(
    "images",
    "Few-shot classification of a folder of class folders with the settings for Mini-ImageNet.",
    protocols.own_images(),
)

if __name__ == "__main__":
    run(EXPERIMENT)
