"""What `segclip prepare` reads: every format to pairs, every bad input to an error that names it."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.source_files import captions, jpeg, peak, read, sample, write, write_json, write_lines, write_tar

from segclip.data.sources.open import Format, open_source

# JSON lines and tables


def test_jsonl_takes_a_folder_and_keeps_other_fields(tmp_path: Path) -> None:
    write(tmp_path / "images/1.jpg", jpeg())
    path = write_lines(
        tmp_path / "pairs.jsonl",
        {"image": "images/1.jpg", "captions": [" a cat ", "", "a pet"], "source": "me", "score": 0.5},
        {"image": "images/2.jpg", "captions": "ein Hündchen"},
        {"image": "images/3.jpg", "captions": []},
        {"image": "images/4.jpg"},
    )
    source = open_source(tmp_path)
    assert (source.format, source.path, source.photos) == ("jsonl", path, tmp_path)
    first, *others = source.pairs()
    assert first.name == "images/1.jpg" and first.photo == tmp_path / "images/1.jpg"
    assert first.captions == ("a cat", "a pet") and first.meta == {"source": "me", "score": 0.5} and not first.why_bad
    assert first.photo and first.photo.read_bytes() == jpeg()
    assert captions(others) == [("ein Hündchen",), (), ()]
    assert 0 < first.read < others[0].read < others[-1].read == 1.0


@pytest.mark.parametrize("photo", ["image", "photo", "path", "file_name", "filename", "filepath", "image_path", "file"])
@pytest.mark.parametrize("caption", ["captions", "caption", "title", "text", "sentences", "sentence"])
def test_jsonl_knows_the_usual_names(tmp_path: Path, photo: str, caption: str) -> None:
    path = write_lines(tmp_path / "a.ndjson", {photo: "1.jpg", caption: "a cat"})
    (pair,) = read(path)
    assert pair.name == "1.jpg" and pair.captions == ("a cat",) and pair.meta == {}


def test_jsonl_joins_consecutive_lines_of_a_photo_only(tmp_path: Path) -> None:
    lines = [{"image": name, "caption": text} for name, text in [("1", "a"), ("1", "b"), ("2", "c"), ("1", "d")]]
    pairs = read(write_lines(tmp_path / "a.jsonl", *lines))
    assert [pair.name for pair in pairs] == ["1", "2", "1"]
    assert captions(pairs) == [("a", "b"), ("c",), ("d",)]
    assert pairs[0].read == pytest.approx(0.5, abs=0.02)


def test_jsonl_takes_raw_sentences_a_byte_order_mark_blank_lines_and_nan(tmp_path: Path) -> None:
    text = '\ufeff{"image": "1.jpg", "sentences": [{"raw": "a cat", "tokens": []}], "score": NaN}\r\n\n  \n'
    (pair,) = read(write(tmp_path / "a.jsonl", text + "\n"))
    assert pair.captions == ("a cat",) and pair.meta == {"score": None}


def test_photos_names_where_paths_start(tmp_path: Path) -> None:
    photos = tmp_path / "elsewhere"
    photos.mkdir()
    path = write_lines(tmp_path / "a.jsonl", {"image": "1.jpg", "caption": "a cat"})
    assert read(path, photos=photos)[0].photo == photos / "1.jpg"


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{not json", "broken JSON"),
        ("[1]", "a list; expected an object a line"),
        ('{"caption": "a cat"}', "no photo among 'caption'; expected one of image, photo, path"),
        ('{"image": 7, "caption": "a cat"}', "photo 7; expected its path, as text"),
        ('{"image": " ", "caption": "a cat"}', "photo ' '; expected its path"),
        ('{"image": "/etc/1.jpg", "caption": "a"}', "photo '/etc/1.jpg' leaves .* --photos names it"),
        ('{"image": "C:\\\\a\\\\1.jpg", "caption": "a"}', "photo .* relative to the photos' folder"),
        ('{"image": "a/../../1.jpg", "caption": "a"}', "photo .* leaves"),
        ('{"image": "a\\\\..\\\\1.jpg", "caption": "a"}', "photo .* leaves"),
        ('{"image": "a\\u0000.jpg", "caption": "a"}', "photo .* leaves"),
        ('{"image": "https://example.org/1.jpg", "caption": "a"}', "lists URLs, .* img2dataset"),
        ('{"image": "1.jpg", "caption": 7}', "captions 7; expected a text or a list of texts"),
        ('{"image": "1.jpg", "caption": ["a", null]}', "captions .*; expected a text or a list of texts"),
        ('{"image": "1.jpg", "caption": "\\ud800"}', "captions .* half a character"),
        ('{"image": "1.jpg", "caption": "a", "by": "\\ud800"}', "half a character"),
        ('{"image": "1.jpg", "caption": "a", "by": [{"\\ud800": 1}]}', "half a character"),
        (
            '{"image": "1.jpg", "caption": "a", "x": ' + "[" * 600 + "]" * 600 + "}",
            "values in values, more than 64 deep",
        ),
        (
            '{"image": "1.jpg", "caption": "a", "x": ' + '{"x":' * 600 + "1" + "}" * 601,
            "values in values, more than 64",
        ),
        ("[" * 100_000, "broken JSON"),
        ('{"image": "1.jpg", "caption": "a", "x": 1e999}', "the number 1e999 is too large"),
        ('{"image": "1.jpg", "caption": "a", "x": [-1e999]}', "the number -1e999 is too large"),
        ('{"image": "1.jpg", "caption": "a", "x": ' + "1" * 5000 + "}", "broken JSON"),
        (b'{"image": "1.jpg", "caption": "caf\xe9"}', r"not UTF-8 text \(byte 0xe9\); save it as UTF-8"),
    ],
)
def test_a_bad_line_is_named_and_stops_no_other(tmp_path: Path, line: str | bytes, why: str) -> None:
    good = b'{"image": "0.jpg", "caption": "a cat"}\n'
    path = write(tmp_path / "a.jsonl", good + (line.encode() if isinstance(line, str) else line) + b"\n" + good)
    first, bad, last = read(path)
    assert (bad.name, bad.photo, bad.captions, bad.meta) == ("a.jsonl, line 2", None, (), {})
    assert re.search(why, bad.why_bad) and len(bad.why_bad) < 500 and first.read < bad.read < last.read == 1.0
    assert first.captions == last.captions == ("a cat",)


def test_a_file_of_other_names_shows_them(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", {"image": "1.jpg", "alt": "a cat"})
    with pytest.raises(ValueError, match="line 1: no captions among 'image', 'alt'; expected one of captions, caption"):
        read(path)
    path = write_lines(tmp_path / "a.jsonl", {"url": "http://example.org", "caption": "a cat"})
    with pytest.raises(ValueError, match=r"no photo among 'url', 'caption'; it lists URLs, .* with img2dataset first"):
        read(path)


@pytest.mark.parametrize(("suffix", "delimiter"), [("csv", ","), ("tsv", "\t"), ("CSV", ",")])
def test_table_joins_rows_of_a_photo(tmp_path: Path, suffix: str, delimiter: str) -> None:
    rows = [
        ["image", "caption", "number"],
        ["1.jpg", '"a ""red"", old\ncat"', "0"],
        ["1.jpg", "a pet", "1"],
        [],
        ["", "", ""],
        ["2.jpg", " ", "0"],
    ]
    path = write(tmp_path / f"a.{suffix}", "\ufeff" + "\r\n".join(map(delimiter.join, rows)))
    source = open_source(path)
    first, second = source.pairs()
    assert source.format == "table" and first.photo == tmp_path / "1.jpg"
    assert first.captions == ('a "red", old\ncat', "a pet") and first.meta == {"number": "0"}
    assert second.captions == () and second.read == 1.0


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("name,words\n1.jpg,a cat", "line 1: the first row must be a header: no photo among 'name', 'words'; expected"),
        ("image,words\n1.jpg,a cat", "line 1: .* no captions among 'image', 'words'"),
        ("a bus station,http://example.org/1.jpg\n", "line 1: .* lists URLs, .* with img2dataset first"),
        ("image,caption,caption\n1.jpg,a,b", "line 1: columns named twice: caption"),
        (b"image,caption,caf\xe9\n1.jpg,a,b", "line 1: not UTF-8"),
        ('image,caption\n1.jpg,"a cat\n2.jpg,a dog\n', "line 3: broken table"),
        ("image,caption\n", "no samples"),
    ],
)
def test_a_bad_table_names_the_line(tmp_path: Path, text: str | bytes, why: str) -> None:
    with pytest.raises(ValueError, match=rf"a\.csv.* {why}"):
        read(write(tmp_path / "a.csv", text))


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ("2.jpg,a cat, a dog", r"3 cells for 2 columns \(image, caption\)"),
        ("2.jpg", "1 cells for 2 columns"),
        ("../1.jpg,a cat", "photo '../1.jpg' leaves"),
        (b"1.jpg,caf\xe9", "not UTF-8 text .byte 0xe9"),
    ],
)
def test_a_bad_row_is_named_and_stops_no_other(tmp_path: Path, row: str | bytes, why: str) -> None:
    row = row.encode() if isinstance(row, str) else row
    _, bad, last = read(write(tmp_path / "a.csv", b"image,caption\n1.jpg,a cat\n" + row + b"\n3.jpg,a cat\n"))
    assert bad.name == "a.csv, line 3" and re.search(why, bad.why_bad) and last.captions == ("a cat",)


# COCO and Karpathy


def coco(*images: str) -> dict[str, Any]:
    return {
        "info": {"year": 2017},
        "images": [{"id": 10 - i, "file_name": name, "height": 40} for i, name in enumerate(images)],
        "annotations": [
            {"id": 1, "image_id": 9, "caption": "a dog"},
            {"id": 2, "image_id": 10, "caption": "a cat\n"},
            {"id": 3, "image_id": 9, "caption": "a puppy"},
        ],
    }


@pytest.mark.parametrize("photos", ["val2017", "images/val2017", "images"])
def test_coco_finds_its_photos_and_keeps_its_order(tmp_path: Path, photos: str) -> None:
    write(tmp_path / photos / "b.jpg", jpeg())
    path = write_json(tmp_path / "annotations/captions_val2017.json", coco("b.jpg", "a.jpg", "c.jpg"))
    source = open_source(tmp_path)
    assert (source.format, source.path, source.photos) == ("coco", path, tmp_path / photos)
    pairs = list(source.pairs())
    assert pairs == read(path) and [pair.name for pair in pairs] == ["b.jpg", "a.jpg", "c.jpg"]
    assert captions(pairs) == [("a cat",), ("a dog", "a puppy"), ()]
    assert [pair.meta for pair in pairs] == [{"id": 10}, {"id": 9}, {"id": 8}] and pairs[-1].read == 1.0
    assert pairs[0].photo is not None and pairs[0].photo.read_bytes() == jpeg()


def test_captions_of_an_image_that_coco_does_not_list_are_a_bad_pair(tmp_path: Path) -> None:
    path = write_json(tmp_path / "captions.json", coco("b.jpg"))
    listed, other = read(path, photos=tmp_path)
    assert listed.captions == ("a cat",) and not listed.why_bad
    assert (other.name, other.why_bad) == (
        "captions.json, captions of image 9",
        "the image is not among its images",
    )


def test_coco_without_photos_names_where_it_looked(tmp_path: Path) -> None:
    write_json(tmp_path / "annotations/captions_val2017.json", coco("a.jpg"))
    with pytest.raises(ValueError, match=r"looked for .*val2017, .*images/val2017, .*images\); name it by --photos"):
        open_source(tmp_path)


def test_coco_with_several_files_lists_them(tmp_path: Path) -> None:
    for name in ("train2017", "val2017"):
        write_json(tmp_path / f"annotations/captions_{name}.json", coco("a.jpg"))
    with pytest.raises(ValueError, match=r"2 caption files \(annotations/captions_train2017.json, .*\); name one"):
        open_source(tmp_path)


def change_coco(where: str, **fields: Any) -> dict[str, Any]:
    document = coco("a.jpg", "b.jpg")
    document[where][1] |= fields
    return document


@pytest.mark.parametrize(
    ("document", "name", "why"),
    [
        (change_coco("images", file_name="../a.jpg"), "image 1", "photo '../a.jpg' leaves"),
        (change_coco("images", file_name=None), "image 1", "photo None; expected its path"),
        (change_coco("images", id=[1]), "image 1", r"id \[1\]; expected a whole number or a text"),
        (change_coco("images", id="\ud800"), "image 1", "half a character"),
        (change_coco("annotations", caption=5), "annotation 1", "captions 5; expected a text"),
        (change_coco("annotations", image_id=None), "annotation 1", "image_id None"),
        (change_coco("annotations", image_id=float("inf")), "annotation 1", "image_id None"),
    ],
)
def test_a_bad_coco_entry_is_named_and_stops_no_other(
    tmp_path: Path, document: dict[str, Any], name: str, why: str
) -> None:
    pairs = read(write_json(tmp_path / "captions.json", document), "coco", photos=tmp_path)
    bad, *others = [pair for pair in pairs if pair.why_bad]
    assert len(others) == why.startswith(("id", "half"))  # captions of an image whose id nobody can tell
    assert bad.name == f"captions.json, {name}" and re.search(why, bad.why_bad)
    assert pairs[-1 if name != "image 1" else 0].captions


@pytest.mark.parametrize(
    ("document", "why"),
    [
        (change_coco("images", id=10), "an id stands for several images"),
        ({"images": [], "annotations": [{"bbox": [0, 0, 1, 1]}]}, "give captions_.*, not instances_"),
        ({"images": [], "annotations": []}, "no samples in it"),
    ],
)
def test_another_coco_file_is_told(tmp_path: Path, document: dict[str, Any], why: str) -> None:
    path = write_json(tmp_path / "captions.json", document)
    with pytest.raises(ValueError, match=rf"captions\.json.*{why}"):
        read(path, "coco", photos=tmp_path)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b'{"images": [],\n "a": "caf\xe9"}', "line 2: not UTF-8"),
        (b'{"images": [],\n oops}', "line 2: broken JSON"),
        (b"[" * 100_000, "nested too deep"),
        (b'{"images": ' + b"1" * 5000 + b"}", "broken JSON"),
    ],
)
def test_a_broken_document_names_the_line(tmp_path: Path, text: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=rf"a\.json.*{why}"):
        open_source(write(tmp_path / "a.json", text))


def karpathy(**fields: Any) -> dict[str, Any]:
    first = {"filename": "1.jpg", "filepath": "val2014", "split": "train", "cocoid": 391895}
    first |= {"sentences": [{"raw": "A cat. ", "tokens": ["a", "cat"]}, {"raw": "A pet."}]} | fields
    second = {"filename": "2.jpg", "split": "test", "imgid": 1, "sentences": []}
    return {"dataset": "coco", "images": [first, second]}


def test_karpathy_reads_one_split(tmp_path: Path) -> None:
    path = write_json(tmp_path / "dataset_coco.json", karpathy())
    source = open_source(path)
    (train,), (test,) = source.pairs(), read(path, split="test")
    assert source.format == "karpathy" and train.name == "val2014/1.jpg" and train.photo == tmp_path / "val2014/1.jpg"
    assert train.captions == ("A cat.", "A pet.") and train.meta == {"id": 391895}
    assert test.name == "2.jpg" and test.captions == () and test.meta == {"id": 1}
    with pytest.raises(ValueError, match="no split 'val'; it has test, train: name one by --split"):
        read(path, split="val")


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"filepath": "../x"}, "photo '../x/1.jpg' leaves"),
        ({"filename": "/1.jpg", "filepath": None}, "photo '/1.jpg' leaves"),
        ({"sentences": [{"tokens": []}]}, "captions .*; expected a text"),
        ({"cocoid": [7]}, r"cocoid \[7\]; expected a whole number"),
    ],
)
def test_a_bad_karpathy_entry_is_named(tmp_path: Path, fields: dict[str, Any], why: str) -> None:
    (bad,) = read(write_json(tmp_path / "a.json", karpathy(**fields)))
    assert bad.name == "a.json, image 0" and re.search(why, bad.why_bad)


# All formats


def test_unknown_content_lists_the_formats(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file or folder"):
        open_source(tmp_path / "no")
    with pytest.raises(ValueError, match=r"an empty folder; not known(.|\n)*jsonl(.|\n)*Name one by --format"):
        open_source(tmp_path)
    with pytest.raises(ValueError, match=r"a \.txt file of 3 bytes; not known"):
        open_source(write(tmp_path / "a.txt", "abc"))
    with pytest.raises(ValueError, match="a JSON dict with pictures, info; not known"):
        open_source(write_json(tmp_path / "a.json", {"pictures": [], "info": 1}))
    with pytest.raises(ValueError, match=r"a folder with a\.json, a\.txt; not known"):
        open_source(tmp_path)
    write_lines(tmp_path / "a.jsonl", {"image": "1.jpg", "caption": "a cat"})
    write_tar(tmp_path / "0.tar", sample("0", "a cat"))
    with pytest.raises(ValueError, match="may be img2dataset or jsonl; the formats"):
        open_source(tmp_path)
    assert len(read(tmp_path, "jsonl")) == len(read(tmp_path, "img2dataset")) == 1
    write_lines(tmp_path / "b.jsonl", {})
    with pytest.raises(ValueError, match=r"2 JSON-lines files \(a\.jsonl, b\.jsonl\); name one"):
        open_source(tmp_path, "jsonl")


@pytest.mark.parametrize("format", ["jsonl", "table", "coco", "karpathy", "img2dataset", "huggingface"])
def test_a_format_that_does_not_fit_says_so(tmp_path: Path, format: Format) -> None:
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", write(tmp_path / "a.txt", "image,caption\n1.jpg,a cat\n")):
        with pytest.raises(ValueError, match=rf"{path.name}: ") as error:
            open_source(path, format)
        assert any(word in str(error.value) for word in ("name", "give", "expected"))


def test_an_empty_source_and_a_useless_photos_folder_are_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no samples in it"):
        read(write(tmp_path / "a.jsonl", "\n\n"))
    tar = write_tar(tmp_path / "0.tar", [])
    with pytest.raises(ValueError, match="no samples in it"):
        read(tar)
    with pytest.raises(ValueError, match="img2dataset has its photos inside; leave out --photos"):
        open_source(tar, photos=tmp_path)
    with pytest.raises(ValueError, match="no such folder; --photos names"):
        open_source(tmp_path / "a.jsonl", photos=tmp_path / "no")


def test_items_are_the_same_each_time_and_the_fingerprint_follows_the_files(tmp_path: Path) -> None:
    lines = [{"image": f"{i}.jpg", "caption": "a cat", "z": 1, "a": 2} for i in range(5)]
    jsonl = write_lines(tmp_path / "a.jsonl", *lines)
    tars = tmp_path / "tars"
    tar = write_tar(tars / "0.tar", sample("0", "a cat"))
    for path, file in ((jsonl, jsonl), (tars, tar)):
        source = open_source(path)
        assert list(source.pairs()) == list(source.pairs())
        before = source.fingerprint()
        assert before == open_source(path).fingerprint() and len(bytes.fromhex(before)) == 32
        os.utime(file, ns=(1, file.stat().st_mtime_ns + 1))
        assert (source.fingerprint() == before) == (file == jsonl)  # which is read, and large files are not
        write(file, file.read_bytes() + b"\n")
        assert source.fingerprint() != before
    one = open_source(tars).fingerprint()
    write_tar(tars / "1.tar", [])
    assert open_source(tars).fingerprint() != one


def test_memory_does_not_grow_with_the_samples(tmp_path: Path) -> None:
    count = 20_000
    text = "a cat " * 10
    records = ({"image": f"{i}.jpg", "captions": [text]} for i in range(count))
    members = [(f"{i:06}.{kind}", b"a cat") for i in range(count // 2) for kind in ("jpg", "txt")]
    paths = [
        write_lines(tmp_path / "a.jsonl", *records),
        write(tmp_path / "a.csv", "image,caption\n" + "".join(f"{i}.jpg,{text}\n" for i in range(count))),
        write_tar(tmp_path / "0.tar", members),
    ]
    for path, expected in zip(paths, (count, count, count // 2), strict=True):
        found, memory = peak(path)
        assert found == expected and memory < 4_000_000, path.name  # all pairs of any of them: over 7 MB


def test_workers_wait_for_no_torch() -> None:
    code = "import sys, segclip.data.sources.open; assert not {'torch', 'datasets', 'cv2'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_caption_may_be_longer_than_a_field_of_the_library(tmp_path: Path) -> None:
    text = "a cat " * 30_000
    path = write(tmp_path / "pairs.csv", f"image,caption\na.jpg,a dog\nb.jpg,{text}\nc.jpg,a bird\n")
    assert captions(read(path)) == [("a dog",), (text.strip(),), ("a bird",)]
