"""How the tests call a launcher."""

from absl import flags
from absl.testing import flagsaver


def launch(experiment, *arguments):
    """Runs a launcher's `main` in this process, as from its command line."""
    with flagsaver.flagsaver():
        for name in flags.FLAGS:
            flags.FLAGS[name].present = 0
        flags.FLAGS([experiment.__name__, *arguments])
        experiment.main()
