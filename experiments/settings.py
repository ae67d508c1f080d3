"""The settings of launchers as frozen dataclasses, and the flags that are made from them.

A field is the only place that states a setting's name, type, default, bounds and help. A preset is
an instance; another preset is made from it with `dataclasses.replace`.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import textwrap
import types
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from absl import flags

MOST = 2**31 - 1  # the largest integer of JAX's default type, int32


class UsageError(ValueError):
    """The command cannot be carried out as given; the message is for the person who typed it."""


class Setting(NamedTuple):
    """The rules of a setting, beyond its name, type and default.

    Attributes:
      help: a sentence or two.
      least: the lower bound of a number.
      most: the upper bound of a number.
      choices: the strings that are allowed.
      only: other settings, and the values of them with which this one has an effect.
      evaluation: whether it concerns only the evaluation.
      shown: whether --help shows it.
    """

    help: str
    least: float | None = None
    most: float | None = None
    choices: tuple[str, ...] = ()
    only: Mapping[str, tuple[Any, ...]] = types.MappingProxyType({})
    evaluation: bool = False
    shown: bool = True


def setting(default: Any, help: str, **rules: Any) -> Any:
    """A dataclass field that becomes a flag; for the rules see `Setting`."""
    return dataclasses.field(default=default, metadata={"setting": Setting(help, **rules)})


@dataclasses.dataclass(frozen=True)
class Launch:
    """Where and how a run is executed. Results do not depend on it."""

    preset: str | None = setting(None, "Named settings; --preset=list prints them.")
    workdir: str | None = setting(
        None, "Where the run is written, and continued; by default a dated folder in runs/."
    )
    mode: str = setting(
        "train",
        "Train and evaluate, or evaluate the run in --workdir once more.",
        choices=("train", "eval"),
    )
    num_devices: int = setting(
        0,
        "Devices that share the tasks, on a CPU one a core; 0: as many as can share them equally.",
        least=0,
        most=4096,
    )
    profile: str | None = setting(
        None,
        "FIRST:LAST, the meta-steps of which a trace is written to the folder profile of the "
        "workdir, for TensorBoard or XProf.",
    )
    distributed: bool = setting(
        False,
        "Run as one of several processes, which share the tasks: those of Slurm (srun), Open MPI, "
        "Cloud TPU or GKE. Not needed under srun and mpirun.",
    )
    coordinator_address: str | None = setting(
        None, "HOST:PORT of process 0, if no scheduler provides it."
    )
    num_processes: int = setting(
        1, "How many processes there are, with --coordinator_address.", least=1
    )
    process_id: int = setting(
        0, "Which of the processes this is, with --coordinator_address.", least=0
    )


@dataclasses.dataclass(frozen=True)
class Training:
    """Training and evaluation."""

    algorithm: str = setting("maml", "The meta-learning algorithm.")
    seed: int = setting(0, "The root of all randomness.", least=0)
    weights: str | None = setting(
        None,
        "Where the parameters start instead of at random: a safetensors file, or the folder of a "
        "run or a record. Learned step sizes and the like start anew.",
    )
    num_meta_steps: int = setting(
        60_000, "Meta-updates; 0 evaluates --weights as they are.", least=0
    )
    meta_batch_size: int = setting(25, "Tasks per meta-update.", least=1)
    num_steps: int = setting(1, "Adaptation steps in training.", least=0)
    inner_learning_rate: float = setting(0.01, "Step size of the inner optimizer.", least=0.0)
    outer_learning_rate: float = setting(1e-3, "Step size of the outer optimizer.", least=0.0)
    outer_schedule: str = setting(
        "constant",
        "The outer step size, or trust region, over the meta-updates: constant, linear decay to 0, "
        "cosine decay to 1 %, or halved every 2,000.",
        choices=("constant", "linear", "cosine", "halved"),
    )
    task_chunk: int = setting(0, "Tasks per vmap; 0: chosen for the device.", least=0)
    validation_steps: int = setting(10, "Adaptation steps of the meta-validation.", least=0)
    steps_per_call: int = setting(10, "Meta-updates per compiled call and log line.", least=1)
    validate_every: int = setting(1_000, "Meta-updates between validations.", least=1)
    checkpoint_every: int = setting(100, "Meta-updates between checkpoints.", least=1)
    eval_tasks: int = setting(
        600, "Test tasks of the evaluation.", least=1, most=1_000_000, evaluation=True
    )
    num_eval_steps: int = setting(
        10, "Adaptation steps of the evaluation.", least=0, most=100_000, evaluation=True
    )

    def check(self) -> None:
        """Raises `UsageError` for settings that do not fit together."""
        if not self.num_meta_steps and self.weights is None:
            raise UsageError("--num_meta_steps=0 evaluates --weights: name them, or train.")
        for name in ("validate_every", "checkpoint_every"):
            if getattr(self, name) % self.steps_per_call:
                raise UsageError(
                    f"--{name}={getattr(self, name)} must be a multiple of --steps_per_call="
                    f"{self.steps_per_call}, the meta-updates of one compiled call."
                )

    def unused(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Yields reasons why settings have no effect beside the others, and their names."""
        yield from ()


def setting_rules(cls: Any) -> dict[str, Setting]:
    """The settings of a dataclass by name, without the fields that are no flags."""
    return {
        field.name: field.metadata["setting"]
        for field in dataclasses.fields(cls)
        if "setting" in field.metadata
    }


def training_config(settings: Training) -> dict[str, Any]:
    """The settings that determine the training, as JSON data."""
    evaluated = evaluation_config(settings)
    return {k: v for k, v in dataclasses.asdict(settings).items() if k not in evaluated}


def evaluation_config(settings: Training) -> dict[str, Any]:
    """The settings of the evaluation, which may differ when a finished run is evaluated again."""
    return {
        name: getattr(settings, name)
        for name, rule in setting_rules(settings).items()
        if rule.evaluation
    }


def check_bounds(settings: Any) -> None:
    """Raises `UsageError` for a value that its field does not allow."""
    for name, rule in setting_rules(settings).items():
        value = getattr(settings, name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            least = -math.inf if rule.least is None else rule.least
            most = (
                (MOST if isinstance(value, int) else math.inf) if rule.most is None else rule.most
            )
            if not (least <= value <= most and math.isfinite(value)):
                bounds = "".join(
                    f", {side} {bound:,}"
                    for side, bound in (("at least", least), ("at most", most))
                    if math.isfinite(bound)
                )
                raise UsageError(f"flag --{name}={value} must be a finite number{bounds}.")
        elif rule.choices and isinstance(value, str) and value not in rule.choices:
            raise UsageError(f"flag --{name}={value} must be one of {', '.join(rule.choices)}.")


def check_effect(given: Mapping[str, Any], settings: Any, default: Any) -> None:
    """Raises `UsageError` for a flag that is given and has no effect.

    Args:
      given: the values of the flags, by name.
      settings: the settings with these values.
      default: the settings without them, whose values may be repeated.
    """
    rules = setting_rules(settings)
    changed = [name for name in given if given[name] != getattr(default, name)]
    for name in changed:
        for other, values in rules[name].only.items():
            if getattr(settings, other) not in values:
                allowed = " or ".join(f"--{other}={value}" for value in values)
                raise UsageError(
                    f"--{name} has no effect with --{other}={getattr(settings, other)}: it is for "
                    f"{allowed}."
                )
    for reason, names in settings.unused():
        for name in changed:
            if name in names:
                raise UsageError(f"--{name}={given[name]} has no effect: {reason}.")


# Flags ----------------------------------------------------------------------------------------


def parse(
    classes: Sequence[Any], argv: Sequence[str], hidden: Collection[str] = ()
) -> dict[str, Any]:
    """The values given on the command line, by the names of the fields.

    The flags are ordinary ones of absl: a misspelt name is answered with the nearest, and
    `--flagfile` works.

    Args:
      classes: dataclasses of settings.
      argv: the words of the command line.
      hidden: names of settings that are no flags.

    Raises:
      UsageError: for an unknown flag, a value of the wrong type, or an argument that is no flag.
    """
    own = flags.FlagValues()
    for cls in classes:
        types_ = typing.get_type_hints(cls)
        for name, rule in setting_rules(cls).items():
            if name not in hidden:
                _define(own, name, types_[name], rule)
    try:
        _, *rest = own([sys.argv[0], *argv])
    except flags.Error as error:
        raise UsageError(" ".join(str(error).removeprefix("ERROR:: ").split())) from error
    except UnicodeDecodeError as error:
        raise UsageError("the flagfile is no text.") from error
    if any(word.lstrip("-").startswith("undefok") for word in argv):
        raise UsageError("Unknown command line flag 'undefok'")
    if rest:
        raise UsageError(f"unexpected argument {rest[0]!r}: flags are written --name=value.")
    given = {name: own[name].value for name in own if own[name].present}
    if empty := [name for name, value in given.items() if value == ""]:
        raise UsageError(f"flag --{empty[0]}= is empty: give it a value, or leave it out.")
    return given


def _define(own: flags.FlagValues, name: str, kind: Any, rule: Setting) -> None:
    bounds: dict[str, Any] = {"lower_bound": rule.least, "upper_bound": rule.most}
    if kind is bool:
        flags.DEFINE_bool(name, None, rule.help, flag_values=own)
    elif kind is int:
        bounds["upper_bound"] = MOST if rule.most is None else rule.most
        flags.DEFINE_integer(name, None, rule.help, flag_values=own, **bounds)
    elif kind is float:
        flags.DEFINE_float(name, None, rule.help, flag_values=own, **bounds)
    elif kind == tuple[str, ...]:
        flags.DEFINE_multi_enum(name, None, rule.choices, rule.help, flag_values=own)
    elif rule.choices:
        flags.DEFINE_enum(name, None, rule.choices, rule.help, flag_values=own)
    else:
        flags.DEFINE_string(name, None, rule.help, flag_values=own)


def help_text(groups: Sequence[Any], hidden: Collection[str] = ()) -> str:
    """The flags of some instances, grouped by the class that states them, with their values.

    Args:
      groups: instances of dataclasses, whose values are shown as the defaults.
      hidden: names of settings that are no flags.
    """
    lines = []
    for group in groups:
        rules, shown = setting_rules(group), set()
        rules = {k: rule for k, rule in rules.items() if rule.shown and k not in hidden}
        for cls in reversed(type(group).__mro__):
            own = [n for n in rules if n in getattr(cls, "__annotations__", {}) and n not in shown]
            if not own:
                continue
            shown |= {*own}
            lines += ["", (cls.__doc__ or cls.__name__).splitlines()[0].rstrip(".") + ":"]
            for name in own:
                lines += _described(name, getattr(group, name), rules[name])
    return "\n".join(lines)


def _described(name: str, value: Any, rule: Setting) -> list[str]:
    if isinstance(value, bool):
        head = f"  --[no]{name} (default: {str(value).lower()})"
    elif value is None:
        head = f"  --{name}"
    else:
        shown = ",".join(value) if isinstance(value, tuple) else value
        head = f"  --{name} (default: {shown})"
    words = rule.help
    if rule.choices:
        words += f" One of {', '.join(rule.choices)}."
    for other, values in rule.only.items():
        words += f" For --{other}={'|'.join(map(str, values))}."
    indent = " " * 6
    return [head, *textwrap.wrap(words, 99, initial_indent=indent, subsequent_indent=indent)]
