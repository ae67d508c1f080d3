"""Lists the launchers: `python -m experiments`."""

import os
import sys

from experiments import (
    cart_pole,
    images,
    language,
    locomotion,
    miniimagenet,
    navigation,
    omniglot,
    photographs,
    reptile_batches,
    reptile_gradients,
    show_episodes,
    sinusoid,
)

EXPERIMENTS = tuple(
    module.EXPERIMENT
    for module in (
        sinusoid,
        omniglot,
        miniimagenet,
        photographs,
        images,
        navigation,
        cart_pole,
        locomotion,
        language,
        reptile_gradients,
        reptile_batches,
        show_episodes,
    )
)


def main() -> None:
    """Prints every launcher with its presets."""
    print("usage: python -m experiments.NAME [--preset=PRESET] [--flag=value ...]")
    print("`--help` explains a launcher's flags, `--preset=list` shows its presets.")
    for experiment in EXPERIMENTS:
        print(f"\n{experiment.name}: {experiment.summary}")
        if experiment is not show_episodes.EXPERIMENT:  # those of the others
            experiment.print_presets(experiment.presets)
    print(
        "\ncompare: python -m experiments.compare RUN RUN ... shows what differs, and the results."
    )
    print("explore: python -m experiments.explore writes an interactive introduction.")


if __name__ == "__main__":
    try:
        main()
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
