"""COCO's caption files and Karpathy's split files: one JSON document, reduced to what is needed. No torch."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from segclip.data.sources.pairs import Pair, bad_pair, decode_text, to_captions, to_meta, to_path
from segclip.utils.messages import brief

# What is kept of a document while it is parsed; the rest (tokens, segmentations, URLs) takes most of its memory.
KEPT = frozenset(
    [
        "images",
        "annotations",
        "id",
        "file_name",
        "image_id",
        "caption",
        "filename",
        "filepath",
        "split",
        "sentences",
        "raw",
        "cocoid",
        "imgid",
    ]
)


def load_document(path: Path) -> Any:
    """A JSON document, the fields that are not `KEPT` emptied.

    Raises:
        ValueError: not UTF-8 or not JSON; it names file and line.
    """
    try:
        text = decode_text(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}, {error}") from None
    try:
        return json.loads(text, object_pairs_hook=_keep, parse_constant=lambda _: None)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}: broken JSON ({error.msg}); get the file again") from None
    except RecursionError:
        raise ValueError(f"{path}: broken JSON (nested too deep); get the file again") from None
    except ValueError as error:  # a number of thousands of digits
        raise ValueError(f"{path}: broken JSON ({error}); get the file again") from None


def is_coco(document: Any) -> bool:
    """Whether a document has COCO's images, and annotations with captions."""
    return _lists(document, "images", "annotations") and all(
        "caption" in entry for entry in document["annotations"][:1]
    )


def is_karpathy(document: Any) -> bool:
    """Whether a document has images with sentences and a split, as Karpathy's dataset_coco.json."""
    return _lists(document, "images") and all(
        {"sentences", "split"} <= entry.keys() for entry in document["images"][:1]
    )


def find_coco_file(path: Path) -> Path:
    """The caption file that `path` is, or the only one in its folder `annotations`.

    Raises:
        ValueError: there is none, or there are several.
    """
    if not path.is_dir():
        return path
    found = sorted(path.glob("annotations/captions_*.json"))
    if not found:
        raise ValueError(f"{path}: no annotations/captions_*.json in this folder; name COCO's caption file itself")
    if len(found) > 1:
        names = ", ".join(str(file.relative_to(path)) for file in found)
        raise ValueError(f"{path}: {len(found)} caption files ({names}); name one of them, not the folder")
    return found[0]


def find_coco_photos(path: Path) -> Path:
    """The folder of a caption file's photos, where COCO has it.

    Raises:
        ValueError: there is none.
    """
    root = path.parent.parent if path.parent.name == "annotations" else path.parent
    name = path.stem.removeprefix("captions_")
    candidates = [root / name, root / "images" / name, root / "images"]
    for folder in candidates:
        if folder.is_dir():
            return folder
    looked = ", ".join(map(str, candidates))
    raise ValueError(f"{path}: its folder of photos is not there (looked for {looked}); name it by --photos")


def read_coco(path: Path, photos: Path) -> Iterator[Pair]:
    """Pairs of COCO's captions, in the order of its images; `meta` has the image's `id`.

    An image or annotation whose fields are of other kinds, a photo's path that leaves `photos`, or captions of an image
    that is not listed, is a bad pair.

    Raises:
        ValueError: another JSON document; it names the file.
    """
    document = load_document(path)
    if not is_coco(document):
        raise ValueError(
            f"{path}: not COCO's captions, which have images, and annotations with caption and image_id; "
            "give captions_*.json, not instances_*.json"
        )
    captions: dict[int | str, list[str]] = {}
    for index, entry in enumerate(document.pop("annotations")):
        try:
            captions.setdefault(_key(entry, "image_id"), []).extend(to_captions(entry.get("caption")))
        except ValueError as error:
            yield bad_pair(f"{path.name}, annotation {index}", error)
    images = document["images"]
    _check_ids(path, images)
    for index, entry in enumerate(images):
        read = (index + 1) / len(images)
        try:
            key = _key(entry, "id")
            own = tuple(captions.pop(key, ()))
            name = to_path(entry.get("file_name"))
        except ValueError as error:
            yield bad_pair(f"{path.name}, image {index}", error, read)
            continue
        yield Pair(name, photos / name, own, {"id": key}, read=read)
    for key in captions:
        yield bad_pair(
            f"{path.name}, captions of image {brief(key)}", ValueError("the image is not among its images"), 1.0
        )


def read_karpathy(path: Path, photos: Path, split: str) -> Iterator[Pair]:
    """Pairs of one split of Karpathy's file; `meta` has COCO's image id where the file has it.

    An image whose fields are of other kinds, or a photo's path that leaves `photos`, is a bad pair.

    Raises:
        ValueError: another JSON document, or no such split.
    """
    document = load_document(path)
    if not is_karpathy(document):
        raise ValueError(
            f"{path}: not Karpathy's split file (dataset_coco.json), which has images with filename, split, sentences"
        )
    images = document["images"]
    if images and not any(entry.get("split") == split for entry in images):
        splits = sorted({str(entry.get("split"))[:40] for entry in images})
        raise ValueError(f"{path}: no split {split!r}; it has {', '.join(splits)}: name one by --split")
    for index, entry in enumerate(images):
        if entry.get("split") != split:
            continue
        read = (index + 1) / len(images)
        try:
            yield _to_karpathy_pair(entry, photos, read)
        except ValueError as error:
            yield bad_pair(f"{path.name}, image {index}", error, read)


def _to_karpathy_pair(entry: dict[str, Any], photos: Path, read: float) -> Pair:
    name = to_path(entry.get("filename"))
    if entry.get("filepath"):
        name = to_path(f"{entry['filepath']}/{name}")
    field = next((field for field in ("cocoid", "imgid") if field in entry), None)
    meta = {} if field is None else {"id": _key(entry, field)}
    return Pair(name, photos / name, to_captions(entry.get("sentences")), meta, read=read)


def _check_ids(path: Path, images: list[dict[str, Any]]) -> None:
    ids = [entry["id"] for entry in images if isinstance(entry.get("id"), int | str)]
    if len(set(ids)) < len(ids):
        raise ValueError(f"{path}: an id stands for several images, so captions cannot be told apart; repair the file")


def _key(entry: dict[str, Any], field: str) -> int | str:
    key = entry.get(field)
    if not isinstance(key, int | str) or isinstance(key, bool):
        raise ValueError(f"{field} {brief(key)}; expected a whole number or a text")
    return to_meta(key)


def _lists(document: Any, *fields: str) -> bool:
    """Whether a document has these fields, each a list of objects."""
    if not isinstance(document, dict):
        return False
    lists = [document.get(field) for field in fields]
    return all(isinstance(entries, list) and all(isinstance(e, dict) for e in entries) for entries in lists)


def _keep(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return {key: value if key in KEPT else None for key, value in pairs}
