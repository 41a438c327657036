"""The paper-scale recipes load through the strict loader and hold the paper's and MoE-LLaVA's settings."""

from pathlib import Path

import pytest

from mote.cli.experiment import Experiment, read_experiment
from mote.upcycle.config import PRESETS

RECIPES = Path(__file__).parents[2] / "recipes"
LANGUAGE = {
    "0.5b": "Qwen/Qwen2.5-0.5B-Instruct",
    "1.5b": "Qwen/Qwen2.5-1.5B-Instruct",
    "3b": "Qwen/Qwen2.5-3B-Instruct",
}
# MoE-LLaVA's scripts: stage -> (peak learning rate, conversations per optimiser step)
SCRIPTS = {"align": (1e-3, 256), "instruct": (2e-5, 128), "experts": (2e-5, 128)}


@pytest.fixture(params=LANGUAGE)
def size(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def experiment(size: str) -> Experiment:
    return read_experiment(RECIPES / f"qwen2.5-{size}-siglip.yaml")


def test_the_parts_are_the_papers(size: str, experiment: Experiment) -> None:
    parts = experiment.assemble
    assert experiment.name == f"qwen2.5-{size}-siglip"
    assert (parts.family, parts.vision.source) == ("llava", "google/siglip-so400m-patch14-384")
    assert parts.language.source == LANGUAGE[size]
    patches, rest = divmod(parts.image_size, 14)
    assert (patches**2, rest) == (729, 0), "assembling wants a multiple of the patch"


@pytest.mark.parametrize("stage", SCRIPTS)
def test_stages_follow_moe_llavas_scripts(experiment: Experiment, stage: str) -> None:
    config = getattr(experiment, stage)
    rate, batch = SCRIPTS[stage]
    assert (config.learning_rate, config.batch_size * config.accumulate) == (rate, batch)
    assert (config.epochs, config.max_steps, config.max_length) == (1.0, 0, 2048)
    assert (config.schedule, config.warmup, config.weight_decay, config.precision) == ("cosine", 0.03, 0.0, "bf16")
    assert (config.warm_start_epochs, config.train_embeddings) == (0, True), "ours, for small data only"


def test_the_mixture_is_the_papers(experiment: Experiment) -> None:
    assert experiment.upcycle == PRESETS["mote"]
    assert experiment.pack.codec == "base3"
