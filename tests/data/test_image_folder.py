"""Images in folders and tables become the same examples, and what does not fit is named."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pictures import CLASSES, HELD, NAMES, drawing, image_settings, image_values, make_domains, png
from PIL import Image

from fedasym.data.examples import load_examples, load_extra_examples
from fedasym.data.partition import partition
from fedasym.tasks.base import Examples
from fedasym.tasks.images import Images


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world")
    image_values(root)
    return root


@pytest.fixture
def of(world: Path, tmp_path: Path):
    """Return settings of a folder of one's own, with nothing held out."""
    return lambda **more: image_settings(
        world, **{"data": str(tmp_path), "hold_out_domain": "", "split": "iid", "num_clients": 2, **more}
    )


def names_of(examples: Examples) -> list[tuple[str, str, str]]:
    """Domain, class and name by each image's path, the class by its label too."""
    found = [Path(picture.name).parts[-3:] for picture in examples.inputs[0]]
    assert [examples.class_names[i] for i in examples.labels] == [kind for _, kind, _ in found]
    return [(domain, kind, name.removesuffix(".png")) for domain, kind, name in found]


def expected(domains: list[str], names: tuple[str, ...]) -> list[tuple[str, str, str]]:
    kinds = {name: CLASSES[i % 2] for i, name in enumerate(NAMES)}
    return [(domain, kind, name) for domain in domains for kind in CLASSES for name in names if kinds[name] == kind]


TRAIN = tuple(name for name in NAMES if name not in HELD)


def test_the_domain_that_is_held_out_judges_and_the_others_train_and_are_judged_by_themselves(world) -> None:
    settings = image_settings(world)
    train, held = load_examples(settings)
    assert names_of(train) == expected(["bright", "dark"], TRAIN)
    assert names_of(held) == expected(["grey"], HELD)
    extra = load_extra_examples(settings, train.class_names)
    assert {d: names_of(e) for d, e in extra.items()} == {d: expected([d], HELD) for d in ("bright", "dark")}


def test_with_no_domain_held_out_all_train_and_all_judge(world) -> None:
    settings = image_settings(world, hold_out_domain="", num_clients=6)
    train, held = load_examples(settings)
    assert names_of(train) == expected(["bright", "dark", "grey"], TRAIN)
    assert names_of(held) == expected(["bright", "dark", "grey"], HELD)
    assert list(load_extra_examples(settings, train.class_names)) == ["bright", "dark", "grey"]


@pytest.mark.parametrize("hold_out", ["", "grey"])
def test_without_a_division_names_are_cut_off_and_none_is_on_both_sides(tmp_path, of, hold_out) -> None:
    make_domains(tmp_path, division=False)
    settings = of(validation_cut=5, hold_out_domain=hold_out)
    train, held = load_examples(settings)
    extra = load_extra_examples(settings, train.class_names)
    inside = ["bright", "dark"] if hold_out else ["bright", "dark", "grey"]
    kept, cut = ({name for _, _, name in names_of(part)} for part in (train, held))
    assert (len(kept), len(cut)) == (11, 5) and not kept & cut
    assert {domain for domain, *_ in names_of(held)} == ({hold_out} if hold_out else {*inside})
    assert names_of(train) == expected(inside, tuple(sorted(kept)))
    assert {d: names_of(e) for d, e in extra.items()} == {d: expected([d], tuple(sorted(cut))) for d in inside}
    assert names_of(load_examples(settings)[1]) == names_of(held)
    assert names_of(load_examples(dataclasses.replace(settings, seed=1))[1]) != names_of(held)


def test_a_folder_for_each_split_and_a_division_of_names_give_the_same_images(tmp_path, of) -> None:
    make_domains(tmp_path / "apart", ("bright",))
    source = tmp_path / "apart" / "bright"
    for split, names in {"train": TRAIN, "validation": HELD}.items():
        for kind in CLASSES:
            folder = tmp_path / "folders" / split / kind
            folder.mkdir(parents=True)
            for name in names:
                if (source / kind / f"{name}.png").exists():
                    (folder / f"{name}.png").write_bytes((source / kind / f"{name}.png").read_bytes())
    (source / "split.json").write_bytes((tmp_path / "apart" / "split.json").read_bytes())
    found = [load_examples(of(image_layout="classes", data=str(folder))) for folder in (source, tmp_path / "folders")]
    for one, other in zip(*found, strict=True):
        assert [*map(bytes, one.inputs[0])] == [*map(bytes, other.inputs[0])] and len(one) in (12, 4)
        assert one.labels.tolist() == other.labels.tolist() and one.class_names == other.class_names == CLASSES
    (source / "split.json").unlink()
    train, held = load_examples(of(image_layout="classes", data=str(source), validation_cut=4))
    assert {len(train), len(held)} == {12, 4}


@pytest.mark.parametrize("kind", ["bytes", "dictionaries", "paths", "dictionaries of paths", "csv"])
def test_a_table_of_images_gives_what_the_folder_gives(tmp_path, of, world, kind) -> None:
    folder = image_settings(world, hold_out_domain="", split="iid", num_clients=2)
    make_domains(tmp_path / "files")
    for split, part in zip(("train", "validation"), load_examples(folder), strict=True):
        raw = [bytes(picture) for picture in part.inputs[0]]
        paths = [str(Path("files", *Path(picture.name).parts[-3:])) for picture in part.inputs[0]]
        cells = {
            "bytes": raw,
            "dictionaries": [{"bytes": one, "path": "elsewhere.png"} for one in raw],
            "dictionaries of paths": [{"bytes": None, "path": path} for path in paths],
        }.get(kind, paths)
        frame = pd.DataFrame({"picture": cells, "label": [CLASSES[i] for i in part.labels]})
        if kind == "csv":
            frame.to_csv(tmp_path / f"{split}.csv", index=False)
        else:
            frame.to_parquet(tmp_path / f"{split}.parquet")
    settings = of(image_layout="table", image_column="picture")
    for one, other in zip(load_examples(settings), load_examples(folder), strict=True):
        assert [*map(bytes, one.inputs[0])] == [*map(bytes, other.inputs[0])]
        assert one.labels.tolist() == other.labels.tolist() and one.class_names == other.class_names
    assert partition(load_examples(settings)[0], settings).digest == partition(load_examples(folder)[0], folder).digest


def _leave(root: Path) -> None:
    (root.parent / "elsewhere.png").write_bytes(png(drawing("bar", "grey", 0)))
    (root / "bright" / "bar" / "n00.png").unlink()
    (root / "bright" / "bar" / "n00.png").symlink_to(root.parent / "elsewhere.png")


def _say(text: str):
    return lambda root: (root / "split.json").write_text(text)


@pytest.mark.parametrize(
    ("spoil", "more", "message"),
    [
        (_leave, {}, r"bright/bar/n00\.png: leads out of .*; put the image there itself"),
        (
            lambda root: (root / "dark/ring/n01.png").write_bytes(b""),
            {},
            r"dark/ring/n01\.png: is empty, and should be an",
        ),
        (
            lambda root: (root / "dark/ring/n01.png").write_text("no"),
            {},
            r"n01\.png: cannot be decoded as one of PNG, JPEG",
        ),
        (
            lambda root: (root / "dark/notes.txt").touch(),
            {},
            r"dark/notes\.txt: a file stands where .* a class; move it",
        ),
        (lambda root: (root / "dark/bar/notes.txt").touch(), {}, r"notes\.txt: is no image by its name; .*; move it"),
        (lambda root: (root / "dark/bar/more").mkdir(), {}, r"dark/bar/more: is a folder; a class holds images"),
        (lambda root: (root / "empty").mkdir(), {}, r"/empty holds no images CLASS/NAME\.png"),
        (
            lambda root: (root / "split.json").unlink(),
            {},
            r"has no split 'validation' beside 'train'; give each split a",
        ),
        (_say("{"), {}, r"split\.json: is no JSON .*; mend it"),
        (_say('{"train": "n00"}'), {}, r'split\.json: should hold \{"train": \[names\]'),
        (
            _say('{"train": ["n00"], "validation": ["n00"]}'),
            {},
            r"split\.json: 'n00' is in 'train' and in 'validation'; lea",
        ),
        (
            _say('{"train": ["n00.png"], "validation": []}'),
            {},
            r"'n00' is in no split, .*/n00\.png is there; add the name",
        ),
        (lambda root: None, {"test_split": "test"}, r"split\.json has no split 'test', it has train, validation; set"),
        (
            lambda root: None,
            {"hold_out_domain": "sketch"},
            "hold-out-domain='sketch' is none of the domains .*: bright, dark",
        ),
        (
            lambda root: None,
            {"image_layout": "classes", "validation_cut": 2},
            r"bright/bar: is a folder; a class holds",
        ),
        (lambda root: None, {"data": "owner/name"}, "data='owner/name': there is no such folder"),
        (lambda root: None, {"data": "demo"}, "data='demo' holds no images; set data to"),
        (lambda root: None, {"validation_cut": 12}, "validation-cut=12 counts names .*, and leaves nothing of its 12"),
    ],
)
def test_what_does_not_fit_the_layout_is_refused_by_name(tmp_path, of, spoil, more, message) -> None:
    root = make_domains(tmp_path / "images")
    spoil(root)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_examples(of(**{"data": str(root), **more}))


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("../out.png", r"row 0, column 'image': '\.\./out\.png' leads out of .*; put the image there"),
        ("/etc/hostname", r"'/etc/hostname' leads out of"),
        ("absent.png", r"row 0, column 'image': there is no file .*absent\.png"),
        (b"", r"split 'train', row 0, column 'image': is empty"),
        (b"GIF89a", r"split 'train', row 0, column 'image': cannot be decoded"),
        (7, r"split 'train', row 0, column 'image': holds int, and should hold an image's bytes"),
    ],
)
def test_a_cell_that_is_no_image_of_the_folder_is_refused_by_its_row(tmp_path, of, cell, message) -> None:
    (tmp_path.parent / "out.png").write_bytes(png(drawing("bar", "grey", 0)))
    pd.DataFrame({"image": [cell, cell], "label": ["a", "b"]}).to_parquet(tmp_path / "train.parquet")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_examples(of(image_layout="table"))


def test_a_text_in_a_table_from_elsewhere_opens_no_file() -> None:
    with pytest.raises(ValueError, match="row 0, column 'image': holds str, and should hold an image's bytes"):
        Images("image").read(pd.DataFrame({"image": [__file__]}), "train")


def test_a_folder_of_an_example_each_gives_a_class_that_only_the_judging_domain_has_by_name(tmp_path, of) -> None:
    root = make_domains(tmp_path / "images")
    (root / "grey" / "star").mkdir()
    (root / "grey" / "ring" / f"{HELD[1]}.png").rename(root / "grey" / "star" / f"{HELD[1]}.png")
    with pytest.raises(ValueError, match="holds the classes star, which the training data do not have"):
        load_examples(of(data=str(root), hold_out_domain="grey"))


def test_the_splits_digest_moves_with_any_byte_of_an_image(tmp_path, of) -> None:
    make_domains(tmp_path)
    before = partition(load_examples(of())[0], of()).digest
    assert partition(load_examples(of())[0], of()).digest == before
    file = tmp_path / "bright" / "bar" / "n00.png"
    pixels = np.asarray(Image.open(file)).copy()
    pixels[0, 0, 0] ^= 1
    Image.fromarray(pixels).save(file)
    assert partition(load_examples(of())[0], of()).digest != before


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_a_split_by_domain_gives_each_domain_so_many_clients_of_its_own(world, parts) -> None:
    settings = image_settings(world, hold_out_domain="", split=f"domain:{parts}", num_clients=3 * parts, min_examples=1)
    train, _ = load_examples(settings)
    shares = partition(train, settings).indices
    domains = [{names_of(train)[i][0] for i in share} for share in shares]
    assert domains == [{d} for d in ("bright", "dark", "grey") for _ in range(parts)]
    assert sorted(np.concatenate(shares)) == [*range(len(train))]
    assert {len(share) for share in shares} == {12 // parts}
    other = partition(train, dataclasses.replace(settings, seed=1)).indices
    assert (parts == 1) == all(np.array_equal(*pair) for pair in zip(shares, other, strict=True))
    if parts == 1:
        for split in ("domain", "column:domain"):
            again = dataclasses.replace(settings, split=split)
            found = partition(load_examples(again)[0], again).indices
            assert all(np.array_equal(*pair) for pair in zip(found, shares, strict=True))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            {"split": "domain:3"},
            r"split='domain:3' makes 3 clients of each domain, .* have 2; set num-clients=6 \(it is 4\)",
        ),
        ({"split": "domain:0"}, r"split='domain:0' has a bad parameter \('0' is no count\); use iid"),
        (
            {"split": "domain:2", "image_layout": "classes", "hold_out_domain": ""},
            "has no column domain; it has image, label",
        ),
    ],
)
def test_a_split_by_domain_that_cannot_be_made_is_refused(world, more, message) -> None:
    data = str(world / "domains" / "bright") if "image_layout" in more else str(world / "domains")
    cut = {"validation_cut": 4} if "image_layout" in more else {}
    settings = image_settings(world, data=data, **cut, **more)
    with pytest.raises(ValueError, match=message):
        partition(load_examples(settings)[0], settings)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"task": "classification"}, "image-layout='domains' does nothing with task='classification'"),
        (
            {"image_layout": "classes"},
            "hold-out-domain='grey' does nothing with .* image-layout='classes'; leave it at ''",
        ),
        ({"image_column": "x"}, "image-column='x' does nothing with task='images' and image-layout='domains'"),
        ({"label_column": "x"}, "label-column='x' does nothing with task='images' and image-layout='domains'"),
        ({"text_columns": "x"}, "text-columns='x' does nothing with task='images'"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(world, more, message) -> None:
    with pytest.raises(ValueError, match=message):
        image_settings(world, **more)
