"""Images are decoded whole or refused by name, read by their model's own processor, and federate as texts do."""

import dataclasses
import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from pictures import CLASSES, drawing, image_settings, image_values, make_domains, make_vit, png
from PIL import Image
from world import assert_moved, crash_in_round, simulate, what_is_left

from clients.node import NodeContext
from clients.session import holding_of, session_of
from fedasym.adapters import trainable_state
from fedasym.adapters.projection import seeded_normal
from fedasym.data.examples import load_examples
from fedasym.models.build import build
from fedasym.models.party_equivalence import TOLERANCES, digest_image_processor, logits_gap
from fedasym.runs.communication import communication_cost, config_of
from fedasym.runs.peft_folder import write_adapter
from fedasym.runs.record import read_json, read_rounds
from fedasym.settings import from_run_config
from fedasym.tasks import task_of
from fedasym.tasks.base import Examples
from fedasym.tasks.images import LARGEST, Images, Picture, pixel_values

IMAGES = Images("image")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world")
    image_values(root)
    return root


PIXELS = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
WHOLE = png(PIXELS)


@given(st.integers(0, len(WHOLE) - 1), st.integers(0, 255), st.booleans())
def test_a_spoilt_file_is_decoded_or_refused_by_name(place, value, cut) -> None:
    spoilt = WHOLE[:place] if cut else WHOLE[:place] + bytes([value]) + WHOLE[place + 1 :]
    try:
        pixels = Picture("some.png", spoilt).pixels()
    except ValueError as error:
        assert str(error).startswith("some.png: ")
    else:
        assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
        assert not cut or np.array_equal(pixels, PIXELS)  # what lacks is the end of the file, and no pixel


def test_an_image_whose_header_says_that_it_is_huge_is_refused_before_it_is_decoded() -> None:
    side = int(LARGEST**0.5)
    header = struct.pack(">IIBBBBB", side, side + 1, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    raw = WHOLE[:8] + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + WHOLE[33:]
    with pytest.raises(
        ValueError, match=f"^bomb: has {side} x {side + 1} pixels, more than {LARGEST}; make it smaller"
    ):
        Picture("bomb", raw).require_image()


def test_what_another_program_would_draw_is_no_image() -> None:
    stream = io.BytesIO()
    Image.fromarray(drawing("bar", "grey", 0)).save(stream, format="EPS")
    with pytest.raises(ValueError, match="drawing: cannot be decoded as one of PNG"):
        Picture("drawing", stream.getvalue()).require_image()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_every_mode_of_eight_bits_is_read_as_rgb(mode) -> None:
    image = Image.fromarray(drawing("ring", "dark", 3)).convert(mode)
    raw = png(image, format="TIFF" if mode == "CMYK" else "PNG")
    assert np.array_equal(Picture("x", raw).pixels(), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_pixels_of_more_bits_are_refused_and_not_cut(dtype) -> None:
    raw = png(Image.fromarray(np.ones((3, 3), dtype)), format="TIFF")
    with pytest.raises(
        ValueError, match=r"x: has pixels of mode '.*', which are no 8 bits a channel; write it as 8 bits"
    ):
        Picture("x", raw).pixels()


def test_pixel_values_are_what_the_models_processor_makes_of_the_image_kept_or_not(world) -> None:
    settings = image_settings(world)
    train, _ = load_examples(settings)
    processor = transformers.AutoImageProcessor.from_pretrained(settings.model, backend="pil")
    size = 4 * 3 * 8 * 8
    kept = Images("image", kept=size * len(train)).encode(processor, train, 64)
    again = Images("image", kept=size * len(train) - 1).encode(processor, train, 64)
    assert all(isinstance(item, np.ndarray) for item in kept.items)
    assert all(isinstance(item, Picture) for item in again.items)
    places = [5, 0, 11]
    (one, labels), (two, _) = (IMAGES.collate(processor, encoded, places) for encoded in (kept, again))
    assert torch.equal(one["pixel_values"], two["pixel_values"]) and labels.tolist() == train.labels[places].tolist()
    images = [Image.open(train.inputs[0][i].name) for i in places]
    assert torch.equal(one["pixel_values"], processor(images=images, return_tensors="pt")["pixel_values"])


def test_images_that_the_processor_gives_other_sizes_are_refused_by_name(world) -> None:
    processor = transformers.ViTImageProcessorPil(do_resize=False)
    cells = [
        Picture("one.png", png(np.zeros((4, 6, 3), np.uint8))),
        Picture("two.png", png(np.zeros((4, 4, 3), np.uint8))),
    ]
    with pytest.raises(
        ValueError, match=r"two\.png: .* pixel values \(3, 4, 4\) of it, and \(3, 4, 6\) of one\.png; take"
    ):
        IMAGES.encode(processor, Examples((cells,), np.zeros(2, np.int64), ()), 64)


def test_the_processors_digest_is_of_what_it_does(world, tmp_path) -> None:
    make = transformers.ViTImageProcessorPil
    usual = {"size": {"height": 8, "width": 8}}
    digest = digest_image_processor(make(**usual), IMAGES)
    make(**usual).save_pretrained(tmp_path)
    config = tmp_path / "preprocessor_config.json"
    config.write_text(
        json.dumps(json.loads(config.read_text()) | {"processor_class": "Other", "feature_extractor_type": "x"})
    )
    assert (
        digest_image_processor(transformers.AutoImageProcessor.from_pretrained(tmp_path, backend="pil"), IMAGES)
        == digest
    )
    others = [
        make(size={"height": 9, "width": 8}),
        make(**usual, resample=3),
        make(**usual, image_mean=[0.4, 0.5, 0.5]),
        make(**usual, do_normalize=False),
    ]
    assert len({digest, *(digest_image_processor(other, IMAGES) for other in others)}) == 5

    class Turned(make):
        """The same settings, and red for blue."""

        def __call__(self, images, **options):
            return super().__call__(images=images[..., ::-1].copy(), **options)

    assert digest_image_processor(Turned(**usual), IMAGES) != digest


def test_a_head_of_another_number_of_outputs_is_drawn_from_the_seed_and_one_of_another_width_refused(
    world, tmp_path
) -> None:
    settings = image_settings(world, seed=3).resolved()
    lacking = build(settings, 2, IMAGES)
    assert lacking.output == "classifier" and lacking.seeded == ("classifier.bias", "classifier.weight")
    stored = transformers.ViTForImageClassification.from_pretrained(settings.model, num_labels=5)
    stored.save_pretrained(tmp_path)
    transformers.AutoImageProcessor.from_pretrained(settings.model).save_pretrained(tmp_path)
    other = build(dataclasses.replace(settings, model=str(tmp_path)), 2, IMAGES)
    assert (other.seeded, other.base, other.logits) == (lacking.seeded, lacking.base, lacking.logits)
    drawn = torch.from_numpy(seeded_normal(3, "classifier.weight", (2, 16), 0.3))
    assert torch.equal(other.model.classifier.weight, drawn) and not other.model.classifier.bias.any()
    kept = build(dataclasses.replace(settings, model=str(tmp_path)), 5, IMAGES)
    assert kept.seeded == () and torch.equal(kept.model.classifier.weight, stored.classifier.weight)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"intermediate_size": 32}))
    with pytest.raises(
        ValueError, match=r"vit\..*fc.*: its shape is .* in the checkpoint and .* by its config\.json; only"
    ):
        build(dataclasses.replace(settings, model=str(tmp_path)), 2, IMAGES)


def test_a_pooling_of_tokens_is_refused(world) -> None:
    with pytest.raises(ValueError, match="pooling='mean' pools the tokens of a text; leave it at 'auto' for images"):
        build(image_settings(world, pooling="mean").resolved(), 2, IMAGES)


FAMILIES = {
    "vit": ("ViT", {"image_size": 8, "patch_size": 4}),
    "deit": ("Deit", {"image_size": 8, "patch_size": 4}),
    "beit": ("Beit", {"image_size": 8, "patch_size": 4}),
    "dinov2": ("Dinov2", {"image_size": 8, "patch_size": 4}),
    "convnext": ("ConvNext", {"hidden_sizes": [4, 4, 8, 8], "depths": [1, 1, 1, 1], "image_size": 32}),
    "swin": (
        "Swin",
        {"image_size": 32, "patch_size": 2, "embed_dim": 4, "depths": [1, 1], "num_heads": [1, 1], "window_size": 4},
    ),
    "resnet": ("ResNet", {"embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1]}),
}  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_image_classifiers_are_built_adapted_and_moved_by_training(tmp_path, world, family, dtype) -> None:
    name, more = FAMILIES[family]
    kind = {"Deit": "DeiT"}.get(name, name)
    if "patch_size" in more and family != "swin":
        more = more | {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = getattr(transformers, f"{kind}Config")(**more)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        getattr(transformers, f"{kind}Model")(config).save_pretrained(tmp_path)
    side = more.get("image_size", 32)
    transformers.ViTImageProcessorPil(size={"height": side, "width": side}).save_pretrained(tmp_path)
    settings = image_settings(world, model=str(tmp_path), rank=2, dtype=dtype, kind="kaiming").resolved()
    if family == "resnet":  # it has no linear layer but the output
        settings = dataclasses.replace(settings, targets="convolution")
    built = build(settings, 2, IMAGES)
    train, _ = load_examples(settings)
    encoded = IMAGES.encode(built.processor, train, 64)
    inputs, labels = IMAGES.collate(built.processor, encoded, [0, 1, 8, 9])
    loss = task_of(settings).target.loss(built.model(**inputs).logits, labels)
    loss.backward()
    assert all(p.grad is not None for p in trainable_state.trainable(built.model).values())
    assert built.layers and np.isfinite(built.logits).all()


def test_logits_of_two_builds_agree_and_of_another_patch_embedding_do_not(world, tmp_path) -> None:
    settings = image_settings(world).resolved()
    one, two = build(settings, 2, IMAGES), build(settings, 2, IMAGES)
    assert one.logits == two.logits and len(one.logits) == 3 * 2
    assert len({*map(tuple, np.reshape(one.logits, (3, 2)))}) == 3
    other = build(dataclasses.replace(settings, model=str(make_vit(tmp_path, hidden_act="relu"))), 2, IMAGES)
    assert logits_gap(one.logits, other.logits) > TOLERANCES["float32"]


def test_peft_computes_the_same_logits_from_the_folder_with_the_patch_embedding_adapted(world, tmp_path) -> None:
    settings = image_settings(world, targets="all-linear,projection", exclude="fc1").resolved()
    built = build(settings, 2, IMAGES)
    assert "vit.embeddings.patch_embeddings.projection" in built.layers
    assert not any(name.endswith("fc1") for name in built.layers)
    rng, moving = np.random.default_rng(0), trainable_state.trainable(built.model)
    trainable_state.load(moving, {n: rng.standard_normal(tuple(p.shape)).astype(np.float32) for n, p in moving.items()})
    write_adapter(tmp_path, built, settings)
    base = transformers.AutoModelForImageClassification.from_pretrained(settings.model, num_labels=2)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path).eval()
    train, _ = load_examples(settings)
    inputs, _ = IMAGES.collate(built.processor, IMAGES.encode(built.processor, train, 64), range(6))
    with torch.no_grad():
        # float32 roundings of 1e-7 through one layer, on logits of size ten, in PEFT's order of the products.
        torch.testing.assert_close(theirs(**inputs).logits, built.model(**inputs).logits, atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def whole(world: Path) -> Path:
    """A run of two clients each of two domains, judged on the third, the patch embedding adapted too."""
    return simulate(image_settings(world, targets="all-linear,projection", out=str(world / "whole")))


def test_the_run_moved_the_bytes_that_are_computed_from_its_configuration(world: Path, whole: Path) -> None:
    settings = image_settings(world, targets="all-linear,projection").resolved()
    assert_moved(whole, communication_cost(settings, config_of(settings.model), 2), 4)


def test_a_federation_of_domains_learns_and_is_judged_in_and_out_of_domain(whole: Path) -> None:
    rows = read_rounds(whole)
    for row in rows:
        assert row["clients_valid"] == 4 and row["weights"] == {str(k): 6 for k in range(4)}
        assert row["metrics"].keys() == {
            f"{name}{suffix}" for name in ("accuracy", "loss") for suffix in ("", "_bright", "_dark")
        }
        assert row["mismatch"] < 1e-6
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]
    config = read_json(whole / "config.json")
    assert config["partition"]["sizes"] == [6] * 4 and config["held_out_examples"] == 4
    assert json.loads(config["contract"])["labels"] == [*CLASSES]


def test_two_workers_give_the_same_bits(world: Path, whole: Path, tmp_path: Path) -> None:
    settings = image_settings(world, targets="all-linear,projection", out=str(tmp_path / "two"))
    assert what_is_left(simulate(settings, workers=2)) == what_is_left(whole)


def test_killed_and_resumed_equals_never_killed(world: Path, whole: Path, tmp_path: Path) -> None:
    settings = image_settings(world, targets="all-linear,projection", out=str(tmp_path / "killed"))
    assert len(read_rounds(crash_in_round(settings, 2))) == 2  # the second is recorded and not in the checkpoint
    assert what_is_left(simulate(settings)) == what_is_left(whole)


def test_sites_with_a_domain_each_end_with_the_bits_of_a_split_by_domain(world: Path, tmp_path: Path) -> None:
    for style in ("bright", "dark"):
        make_domains(tmp_path / "sites" / style, (style,))
    more = {"num_rounds": 2, "labels": ",".join(CLASSES)}
    split = simulate(image_settings(world, split="domain", num_clients=2, out=str(tmp_path / "split"), **more))
    values = image_values(world, sites="bright,dark", out=str(tmp_path / "apart"), **more)
    del values["num-clients"], values["split"]
    apart = simulate(from_run_config(values), data=tmp_path / "sites")
    assert [row["digest"] for row in read_rounds(apart)] == [row["digest"] for row in read_rounds(split)]
    assert read_rounds(apart)[-1]["metrics"] == read_rounds(split)[-1]["metrics"]


def test_a_clients_broken_image_is_named_in_the_record(world: Path, tmp_path: Path) -> None:
    root = make_domains(tmp_path / "images")
    file = root / "dark" / "ring" / "n01.png"
    file.write_bytes(file.read_bytes()[:-30])  # its beginning is whole
    settings = image_settings(
        world, data=str(root), split="domain", num_clients=2, num_rounds=1, out=str(tmp_path / "run")
    )
    (row,) = read_rounds(simulate(settings))
    assert row["clients_valid"] == 1
    assert "n01.png: cannot be decoded" in row["rejections"]["1"]


def test_pixels_as_they_are_go_through_the_processor_too() -> None:
    processor = transformers.ViTImageProcessorPil(size={"height": 8, "width": 8})
    pixels = drawing("bar", "bright", 2)
    assert np.array_equal(pixel_values(processor, pixels), pixel_values(processor, Picture("x", png(pixels))))


def test_a_session_keeps_pixels_up_to_a_budget_of_all_its_clients_and_makes_the_others_anew(world, monkeypatch) -> None:
    session = session_of(image_settings(world).resolved())
    holding = holding_of(session, NodeContext())
    one, two = (session.encoded(holding, client) for client in (0, 1))
    size = one.items[0].nbytes * len(one.items)
    holding.encoded.clear()
    monkeypatch.setattr("clients.session._KEPT", size)
    assert session.encoded(holding, 0) is session.encoded(holding, 0)
    again = session.encoded(holding, 1)
    assert again is not session.encoded(holding, 1) and [*holding.encoded] == [0]
    assert all(np.array_equal(a, b) for a, b in zip(again.items, two.items, strict=True))
