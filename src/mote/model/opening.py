"""The one way a checkpoint becomes a transformers model and a processor: nothing in it is run, fetched or made up.

transformers would run Python that a checkpoint brings (`auto_map`, after asking), follow `adapter_config.json` to
another model, fetch attention kernels, read pickles, and fill a tensor that the files lack with random numbers. Here
each of these is an error.
"""

import copy
from pathlib import Path
from typing import Any

import torch

from mote.checkpoint.shards import Checkpoint
from mote.errors import CheckpointError, MoteError
from mote.model.families import anatomy
from mote.model.guard import BASE_KEY, unguard

CLOSED: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
"""Options of every `from_pretrained`: no code of a checkpoint's, no network."""
ADAPTER_FILE = "adapter_config.json"


def open_model(checkpoint: Path, **options: Any) -> Any:
    """The transformers model of a checkpoint directory, dense, up-cycled or packed, on the CPU and in eval mode.

    options: further ones of `from_pretrained`, such as dtype. Raises CheckpointError, naming the directory, when config
    and tensors do not fit, tensors are missing, or the checkpoint brings code of its own.
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    opened = Checkpoint.open(checkpoint)
    root = opened.root
    _check_closed(opened)
    auto = AutoModelForImageTextToText if "vision_config" in opened.config else AutoModelForCausalLM
    try:
        _check_size(opened, auto)
        model, found = auto.from_pretrained(
            root, use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True, **CLOSED, **options
        )
    except MoteError:
        raise
    except Exception as error:  # a config.json from a stranger can make transformers raise anything at all
        raise CheckpointError(f"{root}: transformers cannot build this model: {_one_line(error)}") from error
    _check_fit(root, found)
    ends = model.generation_config.eos_token_id
    if not all(isinstance(token, int) for token in (ends if isinstance(ends, list) else [ends or 0])):
        raise CheckpointError(f"{root / 'generation_config.json'}: eos_token_id {ends!r} is no token id; correct it")
    return model


def open_processor(checkpoint: Path, model: Any) -> Any:
    """The checkpoint's processor, or its tokenizer when the model has no vision tower.

    Raises CheckpointError when there is none that can be read, it does not fit `model`, or it brings code of its own.
    """
    processor = open_processor_files(checkpoint)
    check_processor(checkpoint, processor, model.get_input_embeddings().num_embeddings, anatomy(model).image_token_id)
    return processor


def open_processor_files(checkpoint: Path) -> Any:
    """The processor or tokenizer as it lies in the directory; see `open_processor`, which also compares it."""
    from transformers import AutoProcessor

    try:
        return AutoProcessor.from_pretrained(checkpoint, **CLOSED)
    except Exception as error:  # the tokenizers library raises plain Exception
        raise CheckpointError(
            f"{checkpoint}: no usable processor or tokenizer: {_one_line(error)}; fetch those files again"
        ) from error


def check_processor(checkpoint: Path, processor: Any, rows: int, image: int | None) -> None:
    """Raises CheckpointError unless the tokens fit `rows` embeddings, and `image`, the pictures' token, is one."""
    tokenizer = getattr(processor, "tokenizer", processor)
    # A padding token beyond the embeddings is common, and never looked up.
    highest = max((i for token, i in tokenizer.get_vocab().items() if token != tokenizer.pad_token), default=0)
    if highest >= rows or (image is not None and tokenizer.convert_ids_to_tokens(image) is None):
        wrong = f"token {highest}" if highest >= rows else f"no token {image} for pictures"
        raise CheckpointError(
            f"{checkpoint}: tokenizer of another model: it has {wrong}, the model {rows} embeddings; fetch it again"
        )


def open_config(checkpoint: Checkpoint) -> Any:
    """The transformers config of a checkpoint as the wrapped model's own class has it, whose defaults its file may
    leave out. Imports no model. Raises CheckpointError.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    _check_closed(checkpoint)
    plain = {key: value for key, value in checkpoint.config.items() if key not in (BASE_KEY, "quantization_config")}
    kind = checkpoint.config.get(BASE_KEY) or checkpoint.config.get("model_type")
    try:
        return CONFIG_MAPPING[kind].from_dict({**plain, "model_type": kind})
    except Exception as error:  # a config.json from a stranger can make transformers raise anything at all
        raise CheckpointError(
            f"{checkpoint.root / 'config.json'}: transformers cannot read it: {_one_line(error)}; fetch it again"
        ) from error


def _check_closed(checkpoint: Checkpoint) -> None:
    """Raises CheckpointError for a directory that leads to another model, or to code on a hub."""
    root = checkpoint.root
    if (root / ADAPTER_FILE).exists():
        raise CheckpointError(
            f"{root / ADAPTER_FILE}: names another model to load, which mote does not follow; merge the adapter"
        )
    if kernel := _kernel(checkpoint.config):
        raise CheckpointError(
            f"{root / 'config.json'}: {kernel!r} is code on a hub, which mote does not run; take that key out"
        )


def _check_fit(root: Path, found: dict[str, Any]) -> None:
    """Raises CheckpointError for tensors that the model lacks, has no place for, or has in another shape."""
    missing, mismatched = sorted(found["missing_keys"]), sorted(found["mismatched_keys"])
    # Others, such as buffers that were parameters once, do no harm.
    unexpected = sorted(name for name in found["unexpected_keys"] if ".layers." in name or ".layer." in name)
    if mismatched:
        name, held, asked = mismatched[0]
        raise CheckpointError(
            f"{root}: tensor {name!r} is {list(held)}, config.json asks for {list(asked)}; fetch both again"
        )
    for names, what in (
        (missing, "lacks {} tensors that config.json asks for"),
        (unexpected, "holds {} tensors that config.json has no place for"),
    ):
        if names:
            raise CheckpointError(f"{root}: {what.format(len(names))}, such as {names[0]!r}; fetch it again")


def _check_size(checkpoint: Checkpoint, auto: Any) -> None:
    """Raises CheckpointError when config.json describes a far larger model than the files hold.

    transformers would make up the rest, and so fill the memory: a config without its `text_config` means some default
    of billions. Built without memory (on the meta device), and compared without the networks that blocks replace.
    """
    from transformers import AutoConfig

    layers = max(_values(checkpoint.config, "num_hidden_layers"), default=0)
    if layers > len(checkpoint.tensors):
        raise CheckpointError(f"{checkpoint.root}: config.json says {layers} layers, more than there are tensors")
    config = copy.deepcopy(AutoConfig.from_pretrained(checkpoint.root, **CLOSED))
    unguard(config)
    if checkpoint.mote is not None:
        del config.quantization_config
    with torch.device("meta"):
        skeleton = auto.from_config(config, trust_remote_code=False)
    expected = sum(
        p.numel() for name, p in skeleton.named_parameters() if checkpoint.mote is None or ".mlp." not in name
    )
    held = sum(info.numel for info in checkpoint.tensors.values())
    if expected > 2 * held:
        raise CheckpointError(
            f"{checkpoint.root}: config.json describes {expected:,} parameters, the files hold {held:,}; fetch it again"
        )


def _values(config: Any, key: str) -> list[int]:
    """What `key` says in a config and in those nested in it."""
    if not isinstance(config, dict):
        return []
    here = [config[key]] if isinstance(config.get(key), int) else []
    return here + [value for nested in config.values() for value in _values(nested, key)]


def _kernel(config: Any) -> str:
    """What a config, or one nested in it, names as an implementation to fetch ("owner/name"), else ""."""
    if not isinstance(config, dict):
        return ""
    named = [config.get(key) for key in ("attn_implementation", "_attn_implementation", "experts_implementation")]
    here = [value for value in named if isinstance(value, str) and "/" in value]
    return here[0] if here else next(filter(None, map(_kernel, config.values())), "")


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
