"""Few-shot classification of CIFAR-FS and FC100 with the settings for Mini-ImageNet.

Command:   python -m experiments.cifar --preset=finn2017/cifar_fs_5w1s
Hardware:  not run on the real images yet
Expected:  the papers have no number for these
"""

from absl import flags

from experiments import common, few_shot

flags.adopt_module_key_flags(few_shot)


def main() -> None:
    few_shot.run("cifar", "finn2017/cifar_fs_5w1s")


if __name__ == "__main__":
    common.run(main)
