"""How the tests call a launcher."""

from experiments import command

# A run of seconds.
SMALL = [
    "--num_meta_steps=4",
    "--meta_batch_size=2",
    "--steps_per_call=2",
    "--validate_every=4",
    "--checkpoint_every=4",
    "--eval_tasks=3",
    "--num_eval_steps=2",
    "--validation_steps=1",
]


def launch(module, *arguments):
    """Carries out a command line of a launcher in this process."""
    return command.main(module.EXPERIMENT, [str(word) for word in arguments])
