"""From a command line to a `Command`: preset, settings, workdir and devices."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax
from absl import app, flags, logging
from jax.sharding import Mesh

import metajax
from experiments import processes
from experiments import settings as typed
from experiments.settings import Launch, Training, UsageError
from metajax import train
from metajax.data.cache import default_dir
from metajax.machine import largest_divisor, num_cores, processor

# Of compiled programs, of which an experiment has about 1 MB; those used least recently go.
PROGRAMS_BYTES = 2**30
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
        return {
            **named,
            "overrides": [*self.overrides],
            **typed.training_config(self.settings),
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
    """

    name: str
    summary: str
    presets: Mapping[str, Any]
    execute: Callable[[Command], int]
    print_presets: Callable[[Mapping[str, Any]], None]
    by_algorithm: Mapping[type, Mapping[str, Mapping[str, Any]]] = {}
    launch: Any = Launch()
    build: Callable[[Command], Any] | None = None


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

    sys.excepthook = _report
    app.run(guarded, flags_parser=parse)


def _report(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """Leaves out what threads of TensorStore report after a failed checkpoint, which has a line."""
    if not (kind is RuntimeError and str(error) == "Event loop is closed"):
        sys.__excepthook__(kind, error, trace)


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
    default = next(iter(experiment.presets.values()))
    wants_help = [word for word in argv if word in HELP]
    given = typed.parse(
        [type(default), type(experiment.launch)], [word for word in argv if word not in HELP]
    )
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
        + typed.help_text([dataclasses.replace(experiment.launch, preset=name), settings])
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
    keep_programs()
    traced_steps(launch.profile)
    if launch.num_devices:
        _divide_cpu(launch.num_devices)
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
    typed.check_bounds(settings)
    typed.check_effect(changes, settings)
    settings.check()
    num_devices = _share(settings, launch)
    launch, mesh = dataclasses.replace(launch, num_devices=num_devices), None
    if num_devices > 1:
        with as_usage_error():
            mesh = metajax.task_mesh(num_devices)
    return Command(experiment.name, name, settings, overrides, launch, workdir, mesh)


def traced_steps(text: str | None) -> tuple[int, int] | None:
    """The meta-steps of `--profile=FIRST:LAST`."""
    if text is None:
        return None
    first, _, last = text.partition(":")
    if not (first.isdecimal() and last.isdecimal() and int(first) < int(last)):
        raise UsageError(f"--profile={text} must be two meta-steps, such as --profile=100:120.")
    return int(first), int(last)


def _check_platform() -> None:
    """Raises `UsageError` if JAX finds no device of the platform that `JAX_PLATFORMS` names."""
    try:
        train.provenance()
    except (RuntimeError, AssertionError) as error:
        platforms = os.environ.get("JAX_PLATFORMS", "")
        raise UsageError(
            f"JAX_PLATFORMS={platforms} asks for devices that JAX does not find here: unset it, or "
            "install the plugin of that platform."
        ) from error


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
        by_algorithm = experiment.by_algorithm.get(type(preset), {})
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
    if config.get("experiment") != experiment.name:
        raise UsageError(
            f"--workdir={launch.workdir} is of the experiment {config.get('experiment')}."
        )
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
    for key, value in kept.items():
        default = getattr(preset, key)
        kinds = (int, float) if type(default) is float else (type(default), type(None))
        if default is not None and not isinstance(value, kinds):
            raise UsageError(f"{launch.workdir}/config.json has {key}={value}: it is damaged.")
    settings = dataclasses.replace(preset, **{**kept, **changes})
    return name, settings, tuple(config["overrides"])


def keep_programs() -> None:
    """Lets later runs find what is compiled, in the user's cache, unless JAX is told where to."""
    if jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    # Programs for a CPU are for the instructions of its model.
    model = hashlib.sha256(processor().encode()).hexdigest()[:8]
    with contextlib.suppress(OSError, RuntimeError):  # no home, or one that is read-only
        folder = default_dir("programs") / model
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            jax.config.update("jax_compilation_cache_dir", str(folder))
            jax.config.update("jax_compilation_cache_max_size", PROGRAMS_BYTES)
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def _share(settings: Any, launch: Launch) -> int:
    """The number of devices that share the tasks; a CPU is divided into as many.

    Raises:
      UsageError: for devices that are not there or cannot share the tasks equally.
    """
    serial = getattr(settings, "carry", None) == "serial"
    equal = 1 if serial else math.gcd(*_shared(settings).values())
    several = jax.distributed.is_initialized()
    choose = not (several or launch.num_devices)
    cores = largest_divisor(equal, num_cores())
    if choose:
        _divide_cpu(cores)
    _check_platform()
    if choose:
        most = cores if jax.default_backend() == "cpu" else jax.device_count()
        return largest_divisor(equal, min(most, jax.device_count()))
    num_devices = jax.device_count() if several else launch.num_devices
    check_shared(settings, num_devices)
    return num_devices


def _shared(settings: Any) -> dict[str, int]:
    """The numbers of tasks that the devices share equally."""
    names = ["meta_batch_size", "eval_tasks"]
    if getattr(settings, "choose", "validation") == "validation":
        names.append("validation_tasks")
    return {name: getattr(settings, name, 0) for name in names}


def check_shared(settings: Any, num_devices: int) -> None:
    """Raises `UsageError` for numbers of tasks that the devices cannot share equally."""
    for name, count in _shared(settings).items():
        if count % num_devices:
            raise UsageError(
                f"--{name}={count}: {num_devices} devices cannot share so many tasks equally; make "
                f"it a multiple of {num_devices}, or change --num_devices."
            )


def _divide_cpu(num_devices: int) -> None:
    # JAX refuses this once it has been used. Then `task_mesh` reports the number of devices.
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", num_devices)
