"""Hostile sources through `prepare`: good items come out, each other one is named, and no file elsewhere is read."""

import io
import json
import os
import random
import shutil
import tarfile
from pathlib import Path
from typing import Any

import datasets
from PIL import Image

from attacks.mutate import VALUES, mutate, mutate_value, nested
from attacks.photos import encode, make_photo, serially
from attacks.process import Fault, Refused, check_message, refusal
from segclip.data.prepare import Settings, prepare
from segclip.data.shards import SampleError, Shards
from segclip.data.sources.open import open_source

GOOD = 4  # items of a source that nothing is wrong with
SETTINGS = Settings(superpixels="opencv")
# In place of a photo's path: SECRET is a photo beside the source's folder, which nobody gave away.
PATHS = (
    *("../secret.png", "SECRET", "x/../../secret.png", "..\\secret.png", "C:\\secret.png", "file:///etc/passwd"),
    *("https://example.org/x.png", "a\0b.png", "\ud800.png", ".", "..", "", "/", "/dev/zero", "/dev/stdin", "pipe"),
    *("x" * 5000, "pipe:touch x", "-rf", "~/x.png", "%s%n", "loop", "folder", "0.png/../../secret.png"),
)
CAPTIONS = (*VALUES, [None], [["x"]], [{"raw": 5}], [{"raw": "a cat"}], nested(), "x" * 2_000_000, ["a"] * 5000)


class Sources:
    """Sources of every format, and shards from elsewhere."""

    megabytes, seconds = 2500, 120.0

    def __init__(self, folder: Path) -> None:
        self.folder, self.root, self.out = folder, folder / "source", folder / "out"
        datasets.disable_progress_bars()
        self.secret = encode(Image.fromarray(make_photo(99)), "PNG")
        self.photos = [encode(Image.fromarray(make_photo(i)), "PNG") for i in range(GOOD + 1)]
        self.ways = (self._jsonl, self._table, self._coco, self._karpathy, self._tar, self._saved, self._parquet)
        self.names: list[str] = []
        for number in range(20):  # libraries start processes when they are first used
            self.attempt(random.Random(f"first {number}"), number)

    def attempt(self, generator: random.Random, number: int) -> bool:
        """A source of one of the formats, or shards."""
        for old in (self.root, self.out):
            shutil.rmtree(old, ignore_errors=True)
        self.root.mkdir()
        (self.folder / "secret.png").write_bytes(self.secret)
        if number % 6 == 0:
            return self._shards(generator)
        way = generator.choice(self.ways)
        path, whole = way(generator)
        return self._prepare(path, whole)

    def _prepare(self, path: Path, whole: bool) -> bool:
        """Prepare a source; where it is `whole`, only one of its items is hostile, and the good ones must come out."""

        def work() -> int:
            source = open_source(path, photos=None)
            return prepare(source, self.out, SETTINGS, max_bad=1.0, map_chunks=serially).samples

        found = refusal(work, path, self.root, self.out)
        if isinstance(found, Refused):
            if whole and "photos cannot be used" not in found.message:
                raise Fault(f"a source with one hostile item is refused: {found.message[:250]}")
            return False
        shards = Shards(self.out)
        captions = {caption for i in range(len(shards)) for caption in shards[i].captions}
        if whole and not {f"good {i}" for i in range(GOOD)} <= captions:
            raise Fault(f"good items did not come out: {sorted(captions)[:10]}")
        report = [json.loads(line) for line in (self.out / "report.jsonl").read_text("utf-8").splitlines()]
        for line in report:
            check_message(line["why"] or "-", path, self.root)
        left_out = sum(line["kind"] != "duplicate" for line in report)
        if shards.index.seen != shards.index.samples + left_out or left_out != sum(shards.index.left_out.values()):
            raise Fault(f"{shards.index.seen} seen, {shards.index.samples} packed, {left_out} named")
        if any(self.secret in file.read_bytes() for file in self.out.glob("*.tar")):
            raise Fault("a photo that lies elsewhere is in the shards")
        return True

    def _write_photos(self) -> None:
        for i, data in enumerate(self.photos):
            (self.root / f"{i}.png").write_bytes(data)
        os.mkfifo(self.root / "pipe")
        (self.root / "loop").symlink_to("loop")
        (self.root / "folder").mkdir()

    def _records(self, generator: random.Random) -> list[dict[str, Any]]:
        """Items with photo and caption, one of which, somewhere, is hostile."""
        self._write_photos()
        records = [{"image": f"{i}.png", "caption": f"good {i}", "source": "made"} for i in range(GOOD)]
        hostile: dict[str, Any] = {"image": f"{GOOD}.png", "caption": "hostile"}
        match generator.randrange(3):
            case 0:
                hostile["image"] = self._path(generator)
            case 1:
                hostile["caption"] = generator.choice(CAPTIONS)
            case _:
                hostile["source"] = generator.choice(CAPTIONS)
        records.insert(generator.randrange(1, len(records) + 1), hostile)
        return records

    def _path(self, generator: random.Random) -> Any:
        value = generator.choice((*PATHS, *PATHS, *VALUES))
        return str(self.folder / "secret.png") if value == "SECRET" else value

    def _damaged(self, path: Path, generator: random.Random) -> bool:
        """Damage a file, now and then; whether it is whole."""
        if generator.random() < 0.7:
            return True
        data = path.read_bytes()
        path.write_bytes(mutate(data, data[::-1], generator))
        return False

    def _jsonl(self, generator: random.Random) -> tuple[Path, bool]:
        path = self.root / "pairs.jsonl"
        lines = [json.dumps(record) for record in self._records(generator)]
        if generator.random() < 0.2:
            lines.insert(
                2, generator.choice(("{", "[]", "null", "1e999", '{"image": "0.png", "x": 1e999}', "[" * 9999))
            )
        path.write_text("\n".join(lines))
        return self.root, self._damaged(path, generator)

    def _table(self, generator: random.Random) -> tuple[Path, bool]:
        suffix, sign = generator.choice((("csv", ","), ("tsv", "\t")))
        path = self.root / f"pairs.{suffix}"
        texts = [[record["image"], record["caption"]] for record in self._records(generator)]
        quoted = [['"' + str(text).replace('"', '""') + '"' for text in row] for row in texts]
        data = "\n".join(map(sign.join, [["image", "caption"], *quoted]))
        path.write_bytes(data.encode("utf-8", "surrogatepass"))
        return path, self._damaged(path, generator)

    def _coco(self, generator: random.Random) -> tuple[Path, bool]:
        folder = self.root
        self.root = folder / "val2017"
        self.root.mkdir()
        self._write_photos()
        self.root = folder
        images = [{"id": i, "file_name": f"{i}.png"} for i in range(GOOD + 1)]
        annotations = [{"image_id": i, "caption": f"good {i}"} for i in range(GOOD)]
        annotations.append({"image_id": GOOD, "caption": "hostile"})
        match generator.randrange(4):
            case 0:
                images[GOOD]["file_name"] = self._path(generator)
            case 1:
                annotations[GOOD]["caption"] = generator.choice(CAPTIONS)
            case 2:
                images[GOOD]["id"] = generator.choice(("x", None, 99, [], 1e300))
            case _:
                annotations[GOOD]["image_id"] = generator.choice(("x", None, 99, [], 1e300))
        path = self.root / "annotations/captions_val2017.json"
        path.parent.mkdir()
        path.write_text(json.dumps({"images": images, "annotations": annotations}))
        return path, self._damaged(path, generator)

    def _karpathy(self, generator: random.Random) -> tuple[Path, bool]:
        images: list[dict[str, Any]] = []
        for number, record in enumerate(self._records(generator)):
            raw = record["caption"]
            images.append(
                {"filename": record["image"], "split": "train", "sentences": [{"raw": raw}], "cocoid": number}
            )
        path = self.root / "dataset_coco.json"
        path.write_text(json.dumps({"images": images}))
        return path, self._damaged(path, generator)

    def _tar(self, generator: random.Random) -> tuple[Path, bool]:
        """A tar with a hostile member, or header; one that leaves its folder is not read at all."""
        path = self.root / "00000.tar"
        whole = True
        with tarfile.open(path, "w") as tar:

            def add(name: str, data: bytes, **fields: Any) -> None:
                member = tarfile.TarInfo(name)
                member.size = len(data)
                for field, value in fields.items():
                    setattr(member, field, value)
                tar.addfile(member, io.BytesIO(data))

            for i in range(GOOD):
                add(f"{i:05d}.png", self.photos[i])
                add(f"{i:05d}.txt", f"good {i}".encode())
            match generator.randrange(5):
                case 0:
                    whole = False
                    name = generator.choice(("../x.png", "/tmp/x.png", "C:\\x.png", "x/../../x.png", "..\\x.png"))
                    add(name, self.photos[GOOD])
                case 1:
                    whole = False
                    kinds = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE)
                    add("h.png", b"", type=generator.choice(kinds), linkname="/etc/hostname")
                case 2:
                    add("h.png", self.photos[GOOD])
                    try:
                        record = json.dumps({"caption": generator.choice(CAPTIONS), "url": generator.choice(CAPTIONS)})
                    except ValueError:
                        record = "{"
                    add("h.json", record.encode())
                case 3:
                    add(generator.choice(("h.jpg.png", "h", ".png", "h.PNG", "h.depth.png", "ä" * 120)), self.photos[0])
                case _:
                    add("h.png", mutate(self.photos[GOOD], self.photos[0], generator))
                    add("h.txt", generator.choice((b"", b"\xff\xfe", b"x" * (1 << 21), b"hostile")))
        return self.root, self._damaged(path, generator) and whole

    def _rows(self, generator: random.Random) -> "datasets.Dataset":
        """A dataset, of whose rows the last may name a file in place of its bytes."""
        images = [{"bytes": data, "path": None} for data in self.photos]
        path = self._path(generator)
        if generator.random() < 0.7 and isinstance(path, str) and "\ud800" not in path:
            images[GOOD] = {"bytes": None, "path": path}
        elif generator.random() < 0.5:
            images[GOOD] = {"bytes": mutate(self.photos[GOOD], self.photos[0], generator), "path": None}
        captions = [f"good {i}" for i in range(GOOD)] + [generator.choice(("hostile", "", None, "x" * 100_000))]
        features = datasets.Features(
            {"image": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")},
             "caption": datasets.Value("string")}
        )  # fmt: skip
        return datasets.Dataset.from_dict({"image": images, "caption": captions}, features)

    def _saved(self, generator: random.Random) -> tuple[Path, bool]:
        self._rows(generator).save_to_disk(str(self.root / "rows"))
        path = self.root / "rows" / generator.choice(("state.json", "dataset_info.json", "data-00000-of-00001.arrow"))
        if generator.random() < 0.5:
            return self.root / "rows", True
        if path.suffix == ".json":
            path.write_text(json.dumps(mutate_value(json.loads(path.read_bytes()), generator)))
        else:
            path.write_bytes(mutate(path.read_bytes(), b"x" * 99, generator))
        return self.root / "rows", False

    def _parquet(self, generator: random.Random) -> tuple[Path, bool]:
        path = self.root / "rows/data/train-00000-of-00001.parquet"
        path.parent.mkdir(parents=True)
        self._rows(generator).to_parquet(str(path))
        readme = "---\nconfigs:\n- config_name: default\n  data_files: '../secret.png'\n---\n"
        (self.root / "rows/README.md").write_text(readme)
        return self.root / "rows", self._damaged(path, generator)

    def _shards(self, generator: random.Random) -> bool:
        """Shards whose index, table or tar is not what prepare wrote."""
        self._write_photos()
        lines = [json.dumps({"image": f"{i}.png", "caption": f"good {i}"}) for i in range(GOOD)]
        (self.root / "pairs.jsonl").write_text("\n".join(lines))
        prepare(open_source(self.root), self.out, SETTINGS, map_chunks=serially)
        path = generator.choice(sorted(file for file in self.out.iterdir() if file.suffix in (".json", ".tar", ".npy")))
        if path.suffix == ".json" and generator.random() < 0.8:
            index = json.loads(path.read_text())
            if generator.random() < 0.3:
                names = ("../secret", "/etc/hostname", "a/b", ".hidden", "x\n", "pipe:touch x", "")
                index["shards"][0]["file"] = generator.choice(names)
            path.write_text(json.dumps(mutate_value(index, generator)))
        else:
            path.write_bytes(mutate(path.read_bytes(), self.secret, generator))
        address = self.out.as_uri() if generator.random() < 0.5 else str(self.out)
        found = refusal(lambda: Shards(address, cache=self.folder / "kept"), self.out)
        if isinstance(found, Refused):
            return False
        taken = False
        for number in range(len(found)):
            sample = refusal(lambda number=number: found[number], self.out)
            if not isinstance(sample, Refused):
                try:
                    sample.image()
                    sample.superpixels()
                    taken = True
                except SampleError as error:
                    check_message(str(error), self.out)
        return taken
