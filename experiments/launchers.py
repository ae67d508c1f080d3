"""All launchers."""

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
