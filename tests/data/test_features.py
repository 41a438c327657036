from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image

from mote.data.features import FeatureCache
from mote.errors import DataError


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    paths = []
    for shade in range(10, 15):
        paths.append(tmp_path / f"{shade}.png")
        Image.new("RGB", (4, 4), (shade, 0, 0)).save(paths[-1])
    return paths


class Tower:
    """Features that say which picture they are of, and how often they were asked for."""

    def __init__(self, value: float = 1.0) -> None:
        self.seen: list[int] = []
        self.value = value

    def __call__(self, images: Sequence[Image.Image]) -> torch.Tensor:
        shades = [image.getpixel((0, 0))[0] for image in images]
        self.seen += shades
        return torch.tensor(shades).float().view(-1, 1, 1).expand(-1, 3, 2) * self.value


def test_every_picture_goes_through_the_tower_once(tmp_path: Path, pictures: list[Path]) -> None:
    tower, told = Tower(), []
    cache = FeatureCache(tmp_path / "cache", "tower")
    cache.fill([*pictures, *pictures], tower, batch=2, progress=lambda done, total: told.append((done, total)))
    cache.fill(pictures, tower)

    assert sorted(tower.seen) == [10, 11, 12, 13, 14]
    assert told == [(2, 5), (4, 5), (5, 5)]
    assert len(cache) == 5
    for shade, picture in enumerate(pictures, start=10):
        assert cache[picture].dtype == torch.bfloat16
        assert torch.equal(cache[picture], torch.full((3, 2), shade, dtype=torch.bfloat16))


def test_features_outlive_the_process_and_follow_the_content(tmp_path: Path, pictures: list[Path]) -> None:
    FeatureCache(tmp_path / "cache", "tower").fill(pictures, Tower())
    pictures[0].rename(tmp_path / "renamed.png")

    again = FeatureCache(tmp_path / "cache", "tower")

    assert again[tmp_path / "renamed.png"][0, 0] == 10
    pictures[1].write_bytes(pictures[2].read_bytes())
    assert again[pictures[1]][0, 0] == 12


def test_another_tower_shares_nothing(tmp_path: Path, pictures: list[Path]) -> None:
    FeatureCache(tmp_path / "cache", "tower").fill(pictures, Tower())

    assert len(FeatureCache(tmp_path / "cache", "other")) == 0


@pytest.mark.parametrize(("name", "lost"), [("features.bin", 5), ("index.txt", 70), ("index.txt", 3)])
def test_a_killed_run_loses_only_what_was_not_complete(
    tmp_path: Path, pictures: list[Path], name: str, lost: int
) -> None:
    FeatureCache(tmp_path / "cache", "tower").fill(pictures, Tower())
    path = tmp_path / "cache" / "tower" / name
    path.write_bytes(path.read_bytes()[:-lost])

    cache, tower = FeatureCache(tmp_path / "cache", "tower"), Tower()
    cache.fill(pictures, tower)

    assert len(tower.seen) == (2 if lost == 70 else 1)
    assert [int(cache[p][0, 0]) for p in pictures] == [10, 11, 12, 13, 14]


def test_two_writers_do_not_overwrite_each_other(tmp_path: Path, pictures: list[Path]) -> None:
    one, two = FeatureCache(tmp_path / "cache", "tower"), FeatureCache(tmp_path / "cache", "tower")
    one.fill(pictures[:3], Tower())
    two.fill(pictures[2:], Tower())
    one.fill(pictures[:1], Tower())

    for cache in (two, FeatureCache(tmp_path / "cache", "tower")):
        assert [int(cache[p][0, 0]) for p in pictures] == [10, 11, 12, 13, 14]


def test_a_picture_without_features_is_named(tmp_path: Path, pictures: list[Path]) -> None:
    with pytest.raises(DataError, match=r"10\.png: has no features"):
        FeatureCache(tmp_path / "cache", "tower")[pictures[0]]


@pytest.mark.filterwarnings("ignore:overflow")
def test_nan_and_other_shapes_and_dtypes_are_refused(tmp_path: Path, pictures: list[Path]) -> None:
    cache = FeatureCache(tmp_path / "cache", "tower")
    cache.fill(pictures[:1], Tower())

    with pytest.raises(DataError, match="NaN or infinite"):
        cache.fill(pictures, Tower(float("nan")))
    with pytest.raises(DataError, match="features of shape"):
        cache.fill(pictures, lambda images: torch.zeros(len(images), 3, 5))
    with pytest.raises(DataError, match="holds bfloat16 features, not float32"):
        FeatureCache(tmp_path / "cache", "tower", dtype="float32")
    assert len(cache) == 1


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(DataError, match=r"feature cache: .*; free space or choose another folder"):
        FeatureCache(tmp_path / "file", "tower")
