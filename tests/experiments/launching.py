"""How the tests call a launcher."""

from experiments import command


def launch(module, *arguments):
    """Carries out a command line of a launcher in this process."""
    return command.main(module.EXPERIMENT, [str(word) for word in arguments])
