"""Lists the launchers, `python -m experiments`, or starts one, `python -m experiments NAME`."""

import os
import sys

from metajax.__main__ import start


def main() -> None:
    """Prints every launcher with its presets."""
    from experiments.launchers import EXPERIMENTS  # `start` imports one of them as `__main__`

    print("usage: python -m experiments.NAME [--preset=PRESET] [--flag=value ...]")
    print("`--help` explains a launcher's flags, `--preset=list` shows its presets.")
    for experiment in EXPERIMENTS:
        print(f"\n{experiment.name}: {experiment.summary}")
        if experiment.name != "show_episodes":  # its presets are those of the others
            experiment.print_presets(experiment.presets)
    print(
        "\ncompare: python -m experiments.compare RUN RUN ... shows what differs, and the results."
    )
    print("status: python -m experiments.status [FOLDER ...] shows how far runs are.")
    print("explore: python -m experiments.explore writes an interactive introduction.")
    print("sweep: python -m experiments.sweep PRESET ... writes a command for every run of many.")


if __name__ == "__main__":
    try:
        if sys.argv[1:] and sys.argv[1] != "list":
            start(*sys.argv[1:])
        else:
            main()
            sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
