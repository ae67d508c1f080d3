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
    xland,
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
        xland,
        locomotion,
        language,
        reptile_gradients,
        reptile_batches,
        show_episodes,
    )
)
