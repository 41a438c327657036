"""The model type that only `import mote` can read.

transformers merely warns about a quantisation method it does not know and goes on with a dense or random model. So
`config.json` of a MoTE checkpoint says `"model_type": "mote_lmm"` and keeps the wrapped model's own type in
`base_model_type`: an Auto class that has not met `mote` stops with a message that names it (`pip install mote-lmm`,
then `import mote`). With it, `base_model_type` decides the config class: a subclass of the base's, of the same name,
that writes both keys back and is known to every Auto class that knows the base.
"""

from functools import cache
from typing import Any

from mote.checkpoint.contract import MODEL_TYPE
from mote.errors import CheckpointError, UnsupportedModelError

BASE_KEY = "base_model_type"


@cache
def guarded_class(base_type: str) -> type[Any]:
    """The config class of MoTE checkpoints that wrap `base_type`, such as "llama" or "aya_vision".

    Raises UnsupportedModelError when this transformers does not know the type.
    """
    from transformers import AutoConfig  # noqa: F401  registers the config modules
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    try:
        base = CONFIG_MAPPING[base_type]
    except KeyError:
        raise UnsupportedModelError(
            f"config.json: {BASE_KEY} {base_type!r} is unknown to this transformers; looked in its list of model types"
        ) from None

    def to_dict(self: Any) -> dict[str, Any]:
        plain = base.to_dict(self)
        return {**plain, "model_type": MODEL_TYPE, BASE_KEY: base_type}

    # Named like the base: the registries compare class names. `model_type` of the class stays the base's, so
    # that code which branches on it still takes the base's way.
    guarded = type(base.__name__, (base,), {"to_dict": to_dict, "__module__": __name__, "mote_base": base})
    _register(guarded, base)
    return guarded


def guard(config: Any) -> None:
    """Makes a model's config write itself as a MoTE checkpoint's, in place (again is harmless)."""
    if not hasattr(type(config), "mote_base"):
        config.__class__ = guarded_class(config.model_type)


def unguard(config: Any) -> None:
    """Undoes `guard`: the config is the base's again."""
    base = getattr(type(config), "mote_base", None)
    if base is not None:
        config.__class__ = base


def register() -> None:
    """Teaches `AutoConfig` the type; called once, when transformers' registry has been imported."""
    from transformers.configuration_utils import PretrainedConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    class MoteLmmConfig(PretrainedConfig):
        """Never instantiated: hands a config.json to the class that its base type asks for."""

        model_type = MODEL_TYPE

        @classmethod
        def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
            plain = dict(config_dict)
            base_type = plain.pop(BASE_KEY, None)
            if base_type is None:
                raise CheckpointError(f"config.json: model_type {MODEL_TYPE!r} without {BASE_KEY}; the file is damaged")
            plain["model_type"] = base_type
            return guarded_class(base_type).from_dict(plain, **kwargs)

    CONFIG_MAPPING.register(MODEL_TYPE, MoteLmmConfig, exist_ok=True)


def _register(guarded: type[Any], base: type[Any]) -> None:
    import transformers.models.auto.modeling_auto as modeling_auto

    for name in dir(modeling_auto):
        mapping = getattr(getattr(modeling_auto, name), "_model_mapping", None)
        if mapping is not None and base in mapping:
            mapping.register(guarded, mapping[base], exist_ok=True)
