"""The feature cache: equal to the encoder, safe against cut writes and concurrent writers."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from modalign.data.features import FeatureStore, encoder_key
from modalign.data.images import open_image
from modalign.data.records import Media
from modalign.errors import DataError
from modalign.models.encoders.image import load_image_encoder
from modalign.training.sources import Parts, feature_store, fill_store

Result = list[tuple[np.ndarray, tuple[int, int] | None]]


def features_of(medium: Media) -> np.ndarray:
    """Made-up features that depend on the content only: 2 to 5 rows of 3."""
    content = medium.read()
    seed = int.from_bytes(content[:4], "little")
    return np.random.default_rng(seed).normal(size=(2 + content[0] % 4, 3)).astype(np.float32)


def encode(media: Sequence[Media]) -> Result:
    return [(features_of(medium), None) for medium in media]


def refuse(media: Sequence[Media]) -> Result:
    raise AssertionError("nothing was to be encoded")


def signals(count: int, first: int = 0) -> list[Media]:
    return [Media("image", data=bytes([i, 7, 7, 7, 7])) for i in range(first, first + count)]


def check(store: FeatureStore, media: Sequence[Media]) -> None:
    values, mask, _ = store.gather(media)
    for row, medium in enumerate(media):
        expected = features_of(medium)
        assert mask[row].tolist() == [i < len(expected) for i in range(mask.shape[1])]
        assert np.array_equal(values[row, : len(expected)].numpy(), expected)
        assert not values[row, len(expected) :].any()


def test_ragged_features_in_any_order(tmp_path: Path) -> None:
    store, media = FeatureStore(tmp_path, "key"), signals(9)
    assert store.ensure(media, encode, batch=4) == 9
    check(store, media)
    check(store, media[::-2])
    check(store, [media[3], media[3]])
    again = FeatureStore(tmp_path, "key")
    assert again.ensure(media, refuse) == 0
    check(again, media)
    assert all(isinstance(array, np.memmap) for array in again._arrays)


def test_equal_content_is_encoded_once(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"same bytes")
    (tmp_path / "b.bin").write_bytes(b"same bytes")
    media = [Media("image", path=str(tmp_path / name)) for name in ("a.bin", "b.bin")]
    store = FeatureStore(tmp_path / "cache", "key")
    assert store.ensure(media, encode) == 1
    check(store, media)


def test_changed_content_is_encoded_again(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"first")
    medium = Media("image", path=str(path))
    FeatureStore(tmp_path / "cache", "key").ensure([medium], encode)
    path.write_bytes(b"other")
    store = FeatureStore(tmp_path / "cache", "key")
    assert medium not in store
    assert store.ensure([medium], encode) == 1
    check(store, [medium])


def test_a_medium_never_encoded_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="<5 bytes> has no cached features"):
        FeatureStore(tmp_path, "key").gather(signals(1))


def _cut(folder: Path) -> None:
    (array,) = folder.glob("*.npy")
    array.write_bytes(array.read_bytes()[:-9])


def _empty(folder: Path) -> None:
    (array,) = folder.glob("*.npy")
    array.write_bytes(b"")


def _no_array(folder: Path) -> None:
    for array in folder.glob("*.npy"):
        array.unlink()


def _no_index(folder: Path) -> None:
    for index in folder.glob("*.json"):
        index.unlink()


def _cut_index(folder: Path) -> None:
    (index,) = folder.glob("*.json")
    index.write_text(index.read_text()[:-5])


def _wrong_index(folder: Path) -> None:
    (index,) = folder.glob("*.json")
    index.write_text("[1, 2]")


def _half_written(folder: Path) -> None:
    for path in [*folder.glob("*.npy"), *folder.glob("*.json")]:
        (folder / "tmpabc.part").write_bytes(path.read_bytes()[:10])
        path.unlink()


@pytest.mark.parametrize(
    "damage", [_cut, _empty, _no_array, _no_index, _cut_index, _wrong_index, _half_written]
)
@pytest.mark.parametrize("same_media", [True, False])
def test_a_damaged_shard_is_made_again(
    damage: Callable[[Path], None], same_media: bool, tmp_path: Path
) -> None:
    media = signals(6)
    FeatureStore(tmp_path, "key").ensure(media, encode)
    damage(tmp_path / "key")
    store = FeatureStore(tmp_path, "key")
    wanted = media if same_media else signals(8)
    assert store.ensure(wanted, encode) == len(wanted)
    check(store, wanted)
    fresh = FeatureStore(tmp_path, "key")
    assert fresh.ensure(wanted, refuse) == 0
    check(fresh, wanted)


def test_an_error_while_encoding_leaves_a_usable_store(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, "key")

    def fail(media: Sequence[Media]) -> Result:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError):
        store.ensure(signals(3), fail)
    assert store.ensure(signals(3), encode) == 3
    check(store, signals(3))


def _fill(root: str, first: int) -> None:
    store, media = FeatureStore(Path(root), "key"), signals(40, first)
    store.ensure(media, encode, batch=5)
    check(store, media)


def test_processes_that_fill_one_store_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_fill, args=(str(tmp_path), 20 * i)) for i in (0, 0, 1, 2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0, 0]
    store = FeatureStore(tmp_path, "key")
    check(store, signals(80))
    assert sum(len(array) for array in store._arrays) == sum(
        len(features_of(medium)) for medium in signals(80)
    )  # nothing was stored twice


def test_shards_of_limited_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modalign.data.features.SHARD_BYTES", 100)
    store, media = FeatureStore(tmp_path, "key"), signals(20)
    store.ensure(media, encode, batch=3)
    assert len(store._arrays) > 3
    check(store, media[::3])


def test_cached_equals_direct_encoding(
    tmp_path: Path, tower_folder: Callable[..., Path], small_data: Path
) -> None:
    encoder = load_image_encoder(str(tower_folder("siglip")), layer=-2)
    media = [Media("image", path=str(path)) for path in sorted(small_data.glob("*.png"))[:7]]
    store = feature_store(encoder, tmp_path)
    assert fill_store(store, encoder, media, torch.device("cpu")) == 7
    values, mask, grid = store.gather(media)
    pixels = encoder.processor(images=[open_image(m) for m in media], return_tensors="pt")
    with torch.no_grad():
        direct, _ = encoder.module(pixels["pixel_values"])
    assert grid == (4, 4)
    assert mask.all()
    assert tiny.largest_difference(values, direct) < 1e-6


def test_the_key_depends_on_weights_settings_and_layer(tower_folder: Callable[..., Path]) -> None:
    def key(change: Callable[[Any], Any] = lambda _: None, layer: int = -2) -> str:
        encoder = load_image_encoder(str(tower_folder("siglip")), layer=layer)
        change(encoder)
        return encoder_key(encoder.module, encoder.spec, encoder.processor)

    def nudge(encoder: Any) -> None:
        with torch.no_grad():
            next(encoder.module.parameters()).view(-1)[0] += 1e-3

    def brighter(encoder: Any) -> None:
        encoder.processor.image_mean = [0.4] * 3

    keys = [key(), key(nudge), key(brighter), key(layer=-1)]
    assert len(set(keys)) == 4
    assert key() == keys[0]


def test_the_key_of_modules_with_numbers_and_half_precision() -> None:
    """Batch norms count their batches in a tensor without dimensions."""
    module = torch.nn.BatchNorm2d(3).bfloat16()
    first = encoder_key(module, {}, None)
    module.num_batches_tracked += 1
    assert encoder_key(module, {}, None) != first


def test_half_precision_by_choice_with_its_error(tmp_path: Path) -> None:
    """Half the bytes; every value is the nearest half, and the error told is theirs."""
    media = signals(40)
    whole, half = FeatureStore(tmp_path, "key"), FeatureStore(tmp_path, "key", "float16")
    for store in (whole, half):
        assert store.ensure(media, encode, batch=7) == 40
    sizes = [sum(file.stat().st_size for file in s.folder.glob("*.npy")) for s in (whole, half)]
    assert sizes[1] < 0.55 * sizes[0]
    exact = np.concatenate([features_of(medium) for medium in media]).astype(np.float64)
    wanted = np.linalg.norm(exact.astype(np.float16) - exact) / np.linalg.norm(exact)
    assert half.rounding == pytest.approx(wanted, rel=1e-9)
    assert (
        FeatureStore(tmp_path, "key", "float16").rounding == half.rounding
    )  # kept with the shards
    assert 0 < half.rounding < 2**-11
    assert whole.rounding == 0
    values, _, _ = half.gather(media[:3])
    assert values.dtype == torch.float32
    first = features_of(media[0])
    assert np.array_equal(values[0, : len(first)].numpy(), first.astype(np.float16).astype(float))


def test_what_half_precision_cannot_say_is_refused(tmp_path: Path) -> None:
    def large(media: Sequence[Media]) -> Result:
        return [(features_of(medium) * 1e6, None) for medium in media]

    with pytest.raises(DataError, match=r"beyond float16: keep these features in float32"):
        FeatureStore(tmp_path, "key", "float16").ensure(signals(2), large)


def test_parts_choose_how_features_are_kept(
    tower_folder: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    parts = Parts(llm="none", encoder={"image": str(tower_folder())}, features="float16")
    (encoder,) = parts.load_encoders(())
    store = feature_store(encoder, tmp_path)
    assert store.folder.name.endswith("-float16")
    assert fill_store(store, encoder, [tiny.image(1)], torch.device("cpu")) == 1
    assert "image features are kept in float16: rounding changed" in caplog.text
