"""What objectives demand of a model."""

from jaxformer.model.config import ModelConfig

ANY_ORDER = (
    "attention without a window, latent_attention, differential_attention, "
    "tensor_product_attention, or parallel of these"
)


def check_mask(kind: str, model: ModelConfig) -> None:
    """Check that hidden tokens have an embedding.

    Raises:
        ValueError: they have none.
    """
    if not model.inputs.mask:
        raise ValueError(
            f"train.objective is {kind}, which hides tokens, but model.inputs.mask is false; give "
            f"model.inputs={{kind: {model.inputs.kind}, mask: true}}, which learns an embedding "
            f"for them"
        )


def check_last_layer(kind: str, model: ModelConfig) -> None:
    """Check that the outputs read the last layer alone.

    Raises:
        ValueError: the depth is trained through several exits.
    """
    if model.depth.weighs_losses:
        raise ValueError(
            f"train.objective is {kind}, which reads the last layer alone, but model.depth "
            f"{model.depth.kind} is trained through several exits; give another objective, or a "
            f"depth without exits"
        )


def check_any_order(kind: str, model: ModelConfig) -> None:
    """Check that all layers can let a token see later ones.

    Raises:
        ValueError: a mixer, the depth or the inputs cannot.
    """
    if not model.inputs.shows_tokens:
        raise ValueError(
            f"train.objective is {kind}, in which tokens see later ones, but with model.inputs "
            f"{model.inputs.kind} the layers do not see every token; allowed: tokens"
        )
    if not model.depth.sees_any_order:
        raise ValueError(
            f"train.objective is {kind}, in which tokens see later ones, but model.depth "
            f"{model.depth.kind} goes from left to right; allowed: fixed"
        )
    causal = [
        (index, layer.mixer.kind)
        for index, layer in enumerate(model.layers())
        if layer.mixer is not None and not layer.mixer.sees_any_order
    ]
    if causal:
        layers = ", ".join(str(index) for index, _ in causal)
        kinds = ", ".join(sorted({name for _, name in causal}))
        raise ValueError(
            f"train.objective is {kind}, in which tokens see later ones, but the mixers of layers "
            f"{layers} go from left to right: {kinds}; allowed: {ANY_ORDER}"
        )
