"""The flags of the launchers: their help, and one clear line for each mistake."""

import pytest

from experiments import command as commands
from experiments import omniglot, sinusoid
from experiments.launchers import EXPERIMENTS
from experiments.settings import UsageError, setting_rules


@pytest.mark.parametrize(
    ("experiment", "arguments", "message"),
    [
        ("sinusoid", ["--num_meta_stpes=5"], "Did you mean: num_meta_steps"),
        ("sinusoid", ["--algorithm=mamll"], "value should be one of <maml|fomaml|reptile"),
        ("sinusoid", ["--num_meta_steps=0"], "=0 evaluates --weights"),
        ("sinusoid", ["--validate_every=7"], "validate_every=7 must be a multiple of"),
        ("sinusoid", ["--shots=ten"], "flag --shots=ten"),
        ("sinusoid", ["eval"], "unexpected argument 'eval'"),
        ("sinusoid", ["--preset=finn2016"], "--preset=finn2016 is unknown"),
        ("sinusoid", ["--mode=eval"], "--mode=eval needs --workdir"),
        ("sinusoid", ["--algorithm=reptile", "--num_steps=0"], "reptile needs at least one step"),
        ("sinusoid", ["--num_devices=2", "--meta_batch_size=5"], "--meta_batch_size=5: 2 devices"),
        ("sinusoid", ["--workdir=README.md"], "README.md is a file"),
        ("sinusoid", ["--inner_batch=100"], "--inner_batch=100 is more than the 10 examples"),
        ("sinusoid", ["--queries=0"], "--queries=0: maml learns from query examples"),
        ("omniglot", ["--inner_batch=9"], "--inner_batch=9 is more than the 5 examples"),
        ("omniglot", ["--num_devices=3", "--meta_batch_size=6"], "--validation_tasks=200: 3 dev"),
        ("omniglot", ["--ways=0"], "flag --ways=0"),
        ("omniglot", ["--data_dir=/nowhere"], "no prepared Omniglot in /nowhere"),
        ("omniglot", ["--tail=shared"], "--tail has no effect with --algorithm=maml: it is for"),
        ("sinusoid", ["--cg_steps=3"], "--cg_steps has no effect with --algorithm=maml"),
        ("sinusoid", ["--clip=nan"], "--clip=nan must be a finite number"),
        ("sinusoid", ["--inner_learning_rate=inf"], "--inner_learning_rate=inf must be a finite"),
        ("sinusoid", ["--eval_tasks=99999999"], "flag --eval_tasks=99999999"),
        ("sinusoid", ["--num_meta_steps=99999999999"], "flag --num_meta_steps=99999999999"),
        ("sinusoid", ["--algorithm=fine_tuning"], "value should be one of <maml|fomaml|reptile"),
        ("sinusoid", ["--ways=5"], "Unknown command line flag 'ways'"),
        ("navigation", ["--outer_optimizer=sgd"], "Unknown command line flag 'outer_optimizer'"),
        ("navigation", ["--clip=3"], "Unknown command line flag 'clip'"),
        ("navigation", ["--shots=2"], "Unknown command line flag 'shots'"),
        ("navigation", ["--traiectories=2"], "Did you mean: trajectories"),
        ("locomotion", ["--carry=mean"], "Unknown command line flag 'carry'"),
        ("cart_pole", ["--memory_size=2"], "--memory_size has no effect with --algorithm=maml"),
        (
            "cart_pole",
            ["--algorithm=rl2", "--num_steps=1"],
            "rl2 takes no gradient steps: --num_steps=0 --validation_steps=0 --num_eval_steps=0",
        ),
        (
            "omniglot",
            ["--preset=nichol2018/omniglot_5w1s", "--validation_tasks=9"],
            "--validation_tasks=9 has no effect: the last state is tested",
        ),
        ("miniimagenet", ["--preset=finn2017/omniglot_5w1s"], "is unknown; --preset=list"),
        ("sinusoid", ["--pdb"], "Unknown command line flag 'pdb'"),  # absl's own
        ("sinusoid", ["--process_id=1"], "--process_id need --coordinator_address"),
        ("navigation", ["--init_std=0.1"], "--init_std=0.1 must be positive, and at least --min"),
        ("navigation", ["--init_std=0", "--min_std=0"], "--init_std=0.0 must be positive"),
        ("navigation", ["--algorithm=reptile", "--num_steps=0"], "reptile needs at least one step"),
        ("show_episodes", ["--num_steps=3"], "Unknown command line flag 'num_steps'"),
        ("reptile_batches", ["--inner_batch=3"], "Unknown command line flag 'inner_batch'"),
        (
            "miniimagenet",
            ["--algorithm=nearest_neighbour", "--num_eval_steps=3"],
            "nearest_neighbour takes no steps: --num_eval_steps=0",
        ),
        ("miniimagenet", ["--data_dir=/nowhere"], "/nowhere"),
        ("sinusoid", ["--coordinator_address=localhost"], "must be HOST:PORT of process 0"),
        ("sinusoid", ["--coordinator_address=localhost:99999"], "must be HOST:PORT of process 0"),
        ("sinusoid", ["--undefok=x", "--x=5"], "Unknown command line flag"),
        ("sinusoid", ["--profile=5:90000"], "traces a training, of which this command has 70000"),
        ("navigation", ["--max_kl=0"], "the trust region must have a size"),
        ("reptile_gradients", ["--choose=last"], "Unknown command line flag 'choose'"),
        (
            "miniimagenet",
            ["--algorithm=fine_tuning", "--train_on=train+validation", "--choose=last"],
            "fine_tuning chooses its step size on classes that are not trained on",
        ),
    ],
)
def test_a_mistake_is_one_clear_line(experiment, arguments, message, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (launcher,) = (each for each in EXPERIMENTS if each.name == experiment)
    with pytest.raises(UsageError) as error:
        commands.main(launcher, [*arguments])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("experiment", "arguments", "because"),
    [
        ("sinusoid", ["--carry=mean"], "SGD has no state to pass on"),
        ("sinusoid", ["--batches=replacement"], "every inner step takes the whole support"),
        ("sinusoid", ["--num_steps=0", "--inner_batch=3"], "training takes no inner steps"),
        ("omniglot", ["--algorithm=prototypical", "--num_steps=3"], "takes no inner steps"),
        ("omniglot", ["--algorithm=r2d2", "--inner_learning_rate=3"], "takes no inner steps"),
        ("omniglot", ["--algorithm=matching", "--noadapt_norm"], "takes no inner steps"),
        ("miniimagenet", ["--algorithm=fine_tuning", "--inner_batch=3"], "in testing only"),
        ("miniimagenet", ["--algorithm=fine_tuning", "--queries=3"], "not trained on episodes"),
        ("miniimagenet", ["--algorithm=nearest_neighbour", "--carry=mean"], "takes no inner steps"),
        ("navigation", ["--algorithm=random", "--num_meta_steps=3"], "is not trained"),
        ("navigation", ["--algorithm=oracle", "--surrogate=dice"], "no gradient step is taken"),
        ("navigation", ["--preset=finn2017", "--every_step"], "no second gradient step"),
        ("cart_pole", ["--init_std=2"], "chooses among two actions"),
        ("xland", ["--benchmark=sets", "--num_objects=2"], "are those of the rule sets"),
        ("omniglot", ["--algorithm=reptile", "--outer_loss=sum"], "no query loss is descended"),
        ("omniglot", ["--algorithm=anil", "--noadapt_norm"], "which has no normalization"),
        (
            "miniimagenet",
            ["--algorithm=fine_tuning", "--choose=last", "--inner_learning_rate=9"],
            "the step size is chosen at the end",
        ),
        (
            "navigation",
            ["--preset=finn2017", "--algorithm=reptile", "--every_step"],
            "reptile has no meta-objective",
        ),
        (
            "sinusoid",
            ["--algorithm=maml_plus_plus", "--annealed_updates=9"],
            "no step before the last",
        ),
        (
            "sinusoid",
            ["--inner_optimizer=adam", "--carry=serial", "--task_chunk=2"],
            "one after another",
        ),
    ],
)
def test_a_flag_without_effect_is_refused(experiment, arguments, because):
    (launcher,) = (each for each in EXPERIMENTS if each.name == experiment)
    with pytest.raises(UsageError, match=f"has no effect: .*{because}"):
        commands.resolve(launcher, launcher.parse(arguments))


def test_a_flag_may_repeat_the_preset_where_it_has_no_effect():
    given = omniglot.EXPERIMENT.parse(["--algorithm=prototypical", "--num_steps=0"])
    assert commands.resolve(omniglot.EXPERIMENT, given).settings.num_steps == 0


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda each: each.name)
def test_presets_are_listed(experiment, capsys):
    assert commands.main(experiment, ["--preset=list"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]]
    assert names == list(experiment.presets)


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda each: each.name)
def test_help_explains_every_flag_with_the_preset_s_value(experiment, capsys):
    name, preset = list(experiment.presets.items())[-1]
    assert commands.main(experiment, [f"--preset={name}", "--help"]) == 0
    told = capsys.readouterr().out
    for each in (preset, experiment.launch):
        for flag, rule in setting_rules(each).items():
            if not rule.shown or flag in experiment.hidden:
                assert f"--{flag} (" not in told
                continue
            value = getattr(each, flag)
            if isinstance(value, bool):
                assert f"  --[no]{flag} (default: {str(value).lower()})\n" in told
            elif flag != "preset" and not isinstance(value, tuple) and value is not None:
                assert f"  --{flag} (default: {value})\n" in told
            assert all(choice in told for choice in rule.choices)


def test_flags_come_from_a_file_too(tmp_path):
    (tmp_path / "flags").write_text("--algorithm=reptile\n--num_meta_steps=7\n")
    given = commands.typed.parse([sinusoid.SineWaves], [f"--flagfile={tmp_path / 'flags'}"])
    assert given == {"algorithm": "reptile", "num_meta_steps": 7}
