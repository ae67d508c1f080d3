"""From a command line to a `Command`: preset, settings, workdir and devices."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax
from absl import app, flags, logging
from jax.sharding import Mesh

import metajax
from experiments import devices, processes
from experiments import settings as typed
from experiments.settings import Launch, Training, UsageError
from metajax import train

HELP = ("--help", "-help", "-h", "--helpshort", "-helpshort")


class Command(NamedTuple):
    """A command line, resolved.

    Attributes:
      experiment: the launcher's name.
      preset: the name of the settings that it starts from.
      settings: those of the preset, with the changes by flags.
      overrides: the names of the training settings that differ from the preset.
      launch: where and how it is executed.
      workdir: the folder of the run.
      mesh: the devices that share the tasks, `None` for a single one.
    """

    experiment: str
    preset: str
    settings: Any
    overrides: tuple[str, ...]
    launch: Any
    workdir: Path
    mesh: Mesh | None

    @property
    def evaluates_only(self) -> bool:
        """Whether the command evaluates an existing run again."""
        return self.launch.mode == "eval"

    @property
    def profile(self) -> tuple[int, int] | None:
        """The meta-steps to trace."""
        return traced_steps(self.launch.profile)

    @property
    def config(self) -> dict[str, Any]:
        """The content of `config.json`: everything that determines the training."""
        named = {"experiment": self.experiment, "preset": self.preset}
        chosen = typed.training_config(self.settings).items()
        return {
            **named,
            "overrides": [*self.overrides],
            # What is not given is not written: earlier runs do not have it.
            **{name: value for name, value in chosen if value is not None},
        }

    @property
    def line(self) -> str:
        """The command that repeats the run, without the folders of its data and its results."""
        values = {"preset": self.preset, "num_meta_steps": self.settings.num_meta_steps}
        values |= {name: getattr(self.settings, name) for name in self.overrides}
        values |= typed.evaluation_config(self.settings)
        if self.launch.num_devices > 1:
            values["num_devices"] = self.launch.num_devices
        words = [f"--{name}={value}" for name, value in values.items()]
        return " ".join(["python -m", f"experiments.{self.experiment}", *words])


class Experiment(NamedTuple):
    """A launcher.

    Attributes:
      name: the name of its module.
      summary: one line on what it reproduces.
      presets: settings by name; the first is the default.
      execute: executes a command and returns the exit status.
      print_presets: prints the presets, as `--preset=list` asks for.
      by_algorithm: for each class of presets, the settings that `--algorithm` changes besides, in
        a preset of another algorithm.
      launch: the defaults of the flags that do not affect results.
      build: makes the `skeleton.Method` of a run; `None` for a sweep.
      hidden: names of settings that are no flags, as the launcher does without them.
      trains: whether it trains; if not, settings of a training need not fit together.
    """

    name: str
    summary: str
    presets: Mapping[str, Any]
    execute: Callable[[Command], int]
    print_presets: Callable[[Mapping[str, Any]], None]
    by_algorithm: Mapping[type, Mapping[str, Mapping[str, Any]]] = {}
    launch: Any = Launch()
    build: Callable[[Command], Any] | None = None
    hidden: Collection[str] = ()
    trains: bool = True

    def parse(self, argv: Sequence[str]) -> dict[str, Any]:
        """The values that are given on the command line, by name."""
        default = next(iter(self.presets.values()))
        return typed.parse([type(default), type(self.launch)], argv, self.hidden)


@contextlib.contextmanager
def as_usage_error() -> Iterator[None]:
    """Turns the library's errors about values into messages for the command line."""
    try:
        yield
    except (ValueError, FileNotFoundError, ImportError) as error:
        raise UsageError(str(error)) from error


def run(experiment: Experiment) -> None:
    """Starts a launcher from the command line. A user's mistake gets one line, not a traceback."""

    def parse(argv: list[str]) -> list[str]:
        flags.FLAGS(argv[:1])
        logging.set_verbosity(logging.WARNING)  # orbax reports every file it renames
        return argv

    def guarded(argv: list[str]) -> int:
        try:
            return main(experiment, argv[1:])
        except (UsageError, train.WorkdirError, train.NonFiniteError) as error:
            _fail(error, 1)
        except KeyboardInterrupt:
            _fail("interrupted; repeat the command with its --workdir to continue.", 130)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                processes.end_if_lost(error)
                raise
            _fail(
                "the device has not enough memory: lower --task_chunk, --meta_batch_size "
                "or --eval_tasks.",
                1,
            )
        except Exception as error:
            processes.end_if_lost(error)
            raise

    app.run(guarded, flags_parser=parse)


def _fail(message: object, code: int) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


def main(experiment: Experiment, argv: Sequence[str]) -> int:
    """Executes a command line.

    Returns:
      The exit status: 0, or that of the signal that stopped the run (130 for Ctrl-C).

    Raises:
      UsageError: for a command that cannot be carried out as given.
    """
    wants_help = [word for word in argv if word in HELP]
    given = experiment.parse([word for word in argv if word not in HELP])
    if wants_help:
        print(_help(experiment, given))
        return 0
    if given.get("preset") == "list":
        experiment.print_presets(experiment.presets)
        return 0
    command = resolve(experiment, given)
    with processes.one_voice():
        return experiment.execute(command)


def _help(experiment: Experiment, given: Mapping[str, Any]) -> str:
    name = given.get("preset") or next(iter(experiment.presets))
    settings = _preset(experiment, name)
    return (
        f"{experiment.summary}\n\nusage: python -m experiments.{experiment.name} [--flag=value ...]"
        f"\n\nDefaults are those of --preset={name}."
        + typed.help_text(
            [dataclasses.replace(experiment.launch, preset=name), settings], experiment.hidden
        )
        + "\n\n--flagfile=FILE reads flags from a file, one a line."
    )


def resolve(experiment: Experiment, given: Mapping[str, Any]) -> Command:
    """Makes a command of the values given on the command line."""
    fields = {field.name for field in dataclasses.fields(experiment.launch)}
    launch = dataclasses.replace(
        experiment.launch, **{k: v for k, v in given.items() if k in fields}
    )
    changes = {k: v for k, v in given.items() if k not in fields}
    typed.check_bounds(launch)
    devices.keep_programs()
    if launch.num_devices:
        devices.divide_cpu(launch.num_devices)
    processes.start(launch)
    processes.check(launch)
    if launch.mode == "eval":
        name, settings, overrides = _existing(experiment, launch, changes)
        workdir = train.place(launch.workdir)
    else:
        name = launch.preset or next(iter(experiment.presets))
        settings, overrides = with_changes(experiment, name, changes)
        now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        workdir = train.place(
            launch.workdir or f"runs/{experiment.name}-{settings.algorithm}-{now}"
        )
        if workdir.exists() and not workdir.is_dir():
            raise UsageError(f"--workdir={workdir} is a file: name a directory.")
        _check_experiment(experiment, workdir)
    check(experiment, name, changes, settings)
    profile = traced_steps(launch.profile)
    if profile and (launch.mode == "eval" or profile[1] > settings.num_meta_steps):
        raise UsageError(
            f"--profile={launch.profile} traces a training, of which this command has "
            f"{0 if launch.mode == 'eval' else settings.num_meta_steps} meta-steps."
        )
    num_devices = devices.share(settings, launch)
    launch, mesh = dataclasses.replace(launch, num_devices=num_devices), None
    if num_devices > 1:
        with as_usage_error():
            mesh = metajax.task_mesh(num_devices)
    return Command(experiment.name, name, settings, overrides, launch, workdir, mesh)


def _check_experiment(experiment: Experiment, workdir: Path) -> None:
    """Raises `UsageError` for the directory of another experiment, which differs in nearly all."""
    found = None
    with contextlib.suppress(ValueError, OSError):  # there is none, or it is damaged: told later
        found = train.read_config(workdir).get("experiment")
    if found not in (None, experiment.name):
        raise UsageError(
            f"--workdir={workdir} holds a run of the experiment {found}: choose another directory."
        )


def check(
    experiment: Experiment, preset: str, changes: Mapping[str, Any], settings: Training
) -> None:
    """Raises `UsageError` for settings that are out of bounds, without effect, or do not fit."""
    typed.check_bounds(settings)
    default, _ = with_changes(experiment, preset, {"algorithm": settings.algorithm})
    typed.check_effect(changes, settings, default)
    if experiment.trains:
        settings.check()


def traced_steps(text: str | None) -> tuple[int, int] | None:
    """The meta-steps of `--profile=FIRST:LAST`."""
    if text is None:
        return None
    first, _, last = text.partition(":")
    if not (first.isdecimal() and last.isdecimal() and int(first) < int(last)):
        raise UsageError(f"--profile={text} must be two meta-steps, such as --profile=100:120.")
    return int(first), int(last)


def _preset(experiment: Experiment, name: str) -> Training:
    if name not in experiment.presets:
        raise UsageError(f"--preset={name} is unknown; --preset=list prints the presets.")
    return experiment.presets[name]


def with_changes(
    experiment: Experiment, name: str, changes: Mapping[str, Any]
) -> tuple[Training, tuple[str, ...]]:
    """The preset with changes, and the names of the settings that then differ from it."""
    preset = _preset(experiment, name)
    fields = {field.name for field in dataclasses.fields(preset)}
    if unknown := sorted(changes.keys() - fields):
        raise UsageError(f"--{unknown[0]} is no setting of --preset={name}.")
    algorithm = changes.get("algorithm", preset.algorithm)
    if algorithm != preset.algorithm:
        kinds = [kind for kind in type(preset).__mro__ if kind in experiment.by_algorithm]
        by_algorithm = experiment.by_algorithm[kinds[0]] if kinds else {}
        changes = {**by_algorithm.get(algorithm, {}), **changes}
    settings = dataclasses.replace(preset, **changes)
    before, after = typed.training_config(preset), typed.training_config(settings)
    # The length of a run does not count: the record has it separately, and it may grow later.
    changed = {key for key in after if after[key] != before[key]} - {"num_meta_steps"}
    return settings, tuple(sorted(changed))


def _existing(
    experiment: Experiment, launch: Launch, changes: Mapping[str, Any]
) -> tuple[str, Training, tuple[str, ...]]:
    """The settings of the run in a workdir, with the given changes to its evaluation."""
    if launch.workdir is None:
        raise UsageError("--mode=eval needs --workdir, the directory of the run to evaluate.")
    with as_usage_error():
        config = train.read_config(train.place(launch.workdir))
    _check_experiment(experiment, train.place(launch.workdir))
    expected = {"preset": str, "algorithm": str, "overrides": list}
    for key, kind in expected.items():
        if not isinstance(config.get(key), kind):
            raise UsageError(f"{launch.workdir}/config.json has no {key}: it is damaged.")
    name = config["preset"]
    if launch.preset not in (None, name):
        raise UsageError(
            f"--mode=eval keeps the configuration of the run, which has --preset={name}: leave out "
            "--preset."
        )
    preset, _ = with_changes(experiment, name, {"algorithm": config["algorithm"]})
    for key in config["overrides"]:
        if key not in config:
            raise UsageError(f"{launch.workdir}/config.json has no {key}: it is damaged.")
    evaluated = typed.evaluation_config(preset)
    lost = [k for k, v in changes.items() if k not in evaluated and config.get(k) != v]
    if lost:
        raise UsageError(
            "--mode=eval keeps the configuration of the run: leave out "
            + ", ".join(f"--{key}" for key in lost)
            + "."
        )
    known = {field.name for field in dataclasses.fields(preset)}
    kept = {k: v for k, v in config.items() if k in known}
    _check_types(f"{launch.workdir}/config.json", kept, preset)
    finished = _evaluated(train.place(launch.workdir), preset, evaluated)
    settings = dataclasses.replace(preset, **{**kept, **finished, **changes})
    return name, settings, tuple(config["overrides"])


def _check_types(file: str, values: Mapping[str, Any], preset: Any) -> None:
    """Raises `UsageError` for values of a file that have other types than the preset's."""
    for name, value in values.items():
        default = getattr(preset, name)
        kinds = (int, float) if type(default) is float else (type(default), type(None))
        switch = isinstance(value, bool) and not isinstance(default, bool)
        if default is not None and (switch or not isinstance(value, kinds)):
            raise UsageError(f"{file} has {name}={value}: it is damaged.")


def _evaluated(workdir: Path, preset: Training, names: Collection[str]) -> dict[str, Any]:
    """The settings of the evaluation in a finished run."""
    path = workdir / "result.json"
    if not path.exists():
        return {}
    with as_usage_error():
        config = train.read_json(path).get("config")
    if not isinstance(config, dict):
        raise UsageError(f"{path} has no config: it is damaged.")
    found = {name: config[name] for name in names if name in config}
    _check_types(str(path), found, preset)
    return found
