"""Settings of few-shot classification."""

from __future__ import annotations

import dataclasses

from experiments.settings import UsageError, setting
from experiments.supervised import ALGORITHMS, Supervised

BASELINES = ("fine_tuning", "nearest_neighbour")  # classifiers of all classes, see `baselines`
_STEP_SIZES = (
    "Step size of the inner optimizer, on a mean loss. Finn 2017 prints it for classification on a "
    "loss that is a sum over classes: 2.0 is the printed 0.4 of 5 ways and 0.1 of 20 on Omniglot, "
    "0.05 the printed 0.01 on Mini-ImageNet. Steps of Adam do not depend on that."
)


@dataclasses.dataclass(frozen=True)
class FewShot(Supervised):
    """Few-shot classification."""

    algorithm: str = setting(
        "maml",
        "The meta-learning algorithm, or a classifier of all classes that is put to use.",
        choices=(*ALGORITHMS, *BASELINES),
    )
    inner_learning_rate: float = setting(2.0, _STEP_SIZES, least=0.0)
    dataset: str = "omniglot"
    ways: int = setting(5, "Classes per task.", least=2)
    train_shots: int = setting(
        0, "Support examples per class in training; 0: as many as --shots.", least=0
    )
    eval_queries: int = setting(1, "Query examples per class in evaluation.", least=1)
    eval_inner_batch: int = setting(0, "Like --inner_batch, in evaluation.", least=0)
    train_on: str = setting(
        "train", "The classes of meta-training.", choices=("train", "train+validation")
    )
    choose: str = setting(
        "validation",
        "Which state is tested: the best on the meta-validation classes, or the last.",
        choices=("validation", "last"),
    )
    validation_tasks: int = setting(
        200, "Tasks of the meta-validation.", least=1, only={"choose": ("validation",)}
    )
    rotation: str = setting(
        "none",
        "Quarter turns: none; of every class, drawn anew for each task, in testing too; or as "
        "classes of their own in training, which makes four of one.",
        choices=("none", "task", "classes"),
    )
    network: str = setting(
        "conv",
        "The convolutions of Finn 2017 for the data set; those of Nichol 2018, of another head and "
        "normalization; those of MAML++, with a normalization for every inner step; 256-128-64-64; "
        "or 12 residual convolutions.",
        choices=("conv", "conv_nichol", "conv_per_step", "mlp", "resnet12"),
    )
    outer_loss: str = setting(
        "mean",
        "The query loss whose gradient is clipped and seen by the outer optimizer: the mean, or "
        "the sum over the query divided by the shots, which is Finn 2017's.",
        choices=("mean", "sum"),
    )
    adapt_norm: bool = setting(
        True, "Whether the inner loop adapts the parameters of batch normalizations."
    )
    compute_dtype: str = setting(
        "float32", "What the hidden layers compute in.", choices=("float32", "bfloat16")
    )
    pretrain_batch: int = setting(
        64,
        "Images per batch of the baselines' classifier.",
        least=1,
        only={"algorithm": BASELINES},
    )

    @property
    def loss_scale(self) -> float | None:
        return self.ways * self.queries / self.shots if self.outer_loss == "sum" else None

    def check(self) -> None:
        super().check()
        whole = self.adapt_norm and self.network != "conv_per_step"
        if self.algorithm in ("imaml", "meta_sgd") and not whole:
            raise UsageError(
                f"{self.algorithm} adapts all parameters: --adapt_norm, and no network per step."
            )
        if self.train_on == "train+validation" and self.choose == "validation":
            raise UsageError(
                "--choose=validation needs classes that are not trained on: use --choose=last or "
                "--train_on=train."
            )
        trained = self.ways * (self.train_shots or self.shots)
        for name, support in (
            ("inner_batch", trained),
            ("eval_inner_batch", self.ways * self.shots),
        ):
            if getattr(self, name) > support:
                raise UsageError(
                    f"--{name}={getattr(self, name)} is more than the {support} examples of a "
                    "support set."
                )


@dataclasses.dataclass(frozen=True)
class Omniglot(FewShot):
    """Drawings of characters."""

    split: str = setting(
        "finn",
        "The classes of training: 1,100 characters of all alphabets, or 1,028 by alphabet.",
        choices=("finn", "vinyals"),
    )
    # Pillow resizes the 1-bit drawings by the nearest pixel, whatever filter is asked for.
    resample: str = setting(
        "nearest", "How the drawings are made small.", choices=("lanczos", "nearest")
    )
    invert: bool = setting(True, "Whether the ink of a drawing is bright, 1 on paper of 0.")


@dataclasses.dataclass(frozen=True)
class Photographs(FewShot):
    """Small color photographs."""

    dataset: str = "mini_imagenet"
