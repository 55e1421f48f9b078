"""CLIPs come from the hub file by file, whole or not at all; without a network, it is said what is at hand."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.formats import State, to_transformers
from helpers.hub_server import run_with_hub, serve
from safetensors.torch import save_file

CLIP = {
    "model_type": "clip",
    "vision_config": {"hidden_size": 128, "num_attention_heads": 4, "hidden_act": "gelu"},
    "text_config": {"hidden_size": 64, "num_attention_heads": 4, "hidden_act": "gelu"},
}
OPEN_CLIP = {
    "model_cfg": {
        "embed_dim": 64,
        "vision_cfg": {"width": 128, "head_width": 32, "layers": 12, "patch_size": 16, "image_size": 96},
        "text_cfg": {"width": 64, "heads": 4, "layers": 2, "context_length": 77, "vocab_size": 512},
    }
}

PROGRAM = """
from segclip.checkpoints import load
def attempt(name):
    try:
        image = load(f"org/{name}", "cpu").config.image
        print(image.heads, image.activation)
    except ValueError as error:
        print(error)
for name in NAMES:
    attempt(name)
"""


def write(repo: Path, **files: Any) -> Path:
    """A repository of JSON files, and of weights."""
    repo.mkdir(parents=True)
    for name, content in files.items():
        (repo / f"{name}.json").write_text(json.dumps(content))
    return repo


@pytest.fixture
def hub(openai: State, tmp_path: Path) -> Path:
    org = tmp_path / "hub" / "org"
    open_clip = {name: tensor for name, tensor in openai.items() if tensor.ndim or name == "logit_scale"}
    theirs = to_transformers(openai)
    save_file(theirs, write(org / "clip", config=CLIP, preprocessor_config={}) / "model.safetensors")
    torch.save(theirs, org / "clip" / "pytorch_model.bin")
    (org / "clip" / "flax_model.msgpack").write_bytes(b"x")
    torch.save(open_clip, write(org / "openclip", open_clip_config=OPEN_CLIP) / "open_clip_pytorch_model.bin")
    sharded = write(org / "sharded", config=CLIP)
    places = {name: f"model-0000{1 + ('vision' in name)}-of-00002.safetensors" for name in theirs}
    for part in set(places.values()):
        save_file({name: tensor for name, tensor in theirs.items() if places[name] == part}, sharded / part)
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    torch.save(theirs, sharded / "pytorch_model.bin")
    save_file(
        {name: tensor.double() for name, tensor in theirs.items() if tensor.is_floating_point()},
        write(org / "both", config=CLIP, open_clip_config=OPEN_CLIP) / "model.safetensors",
    )
    save_file({name: tensor.half() for name, tensor in open_clip.items()}, org / "both" / "open_clip_model.safetensors")
    for name in ("cut", "lost"):
        shutil.copytree(org / "clip", org / name)
    shutil.copytree(sharded, org / "half")
    (org / "half" / "model-00002-of-00002.safetensors").unlink()
    save_file(theirs, write(org / "siglip", config={"model_type": "siglip"}) / "model.safetensors")
    timm = {"model_cfg": {"embed_dim": 64, "vision_cfg": {"timm_model_name": "fastvit_mci2"}, "text_cfg": {}}}
    save_file(theirs, write(org / "mobileclip", open_clip_config=timm) / "open_clip_model.safetensors")
    return tmp_path / "hub"


def test_downloads(hub: Path, tmp_path: Path) -> None:
    names = ["clip", "openclip", "sharded", "both", "cut", "cut", "lost", "half", "siglip", "mobileclip"]
    size = (hub / "org/cut/model.safetensors").stat().st_size
    with serve(hub) as server:
        server.cuts = {"org/cut/model.safetensors": [1000, 500_000, 0, 0], "org/lost/model.safetensors": [0] * 100}
        program = PROGRAM.replace("NAMES", repr(names))
        lines = run_with_hub(program, f"http://127.0.0.1:{server.server_port}", tmp_path / "home")
        ranges = [
            asked for method, name, asked in server.seen if (method, name) == ("GET", "org/cut/model.safetensors")
        ]
        got = {name: server.downloads(f"org/{name}") for name in names}
    clip, openclip, sharded, both, cut, cut_again, lost, half, siglip, mobileclip = lines
    assert {clip, openclip, sharded, both, cut_again} == {"4 gelu"}
    assert got["clip"] == ["config.json", "preprocessor_config.json", "model.safetensors"]
    assert got["openclip"] == ["open_clip_config.json", "open_clip_pytorch_model.bin"]
    assert got["sharded"][:2] == ["config.json", "model.safetensors.index.json"]
    assert sorted(got["sharded"][2:]) == [f"model-0000{part}-of-00002.safetensors" for part in (1, 2)]
    assert got["both"] == ["config.json", "open_clip_config.json", "open_clip_model.safetensors"]
    # Less came than was announced; what came was kept, and the rest asked for, by a later call too.
    assert f"(model.safetensors: the connection broke at 501,000 bytes: {size:,} were announced; run again to" in cut
    assert ranges == ["", "bytes=1000-", *["bytes=501000-"] * 3]
    assert "org/lost: cannot be fetched" in lost and "org/lost (cached)" not in lost
    assert "it has no model-00002-of-00002.safetensors, which its index lists" in half
    assert "the configuration of a siglip, not of a CLIP" in siglip and got["siglip"] == ["config.json"]
    assert "timm_model_name is 'fastvit_mci2'" in mobileclip and got["mobileclip"] == ["open_clip_config.json"]
    without_network(tmp_path / "home")


def without_network(home: Path) -> None:
    """What is in the cache opens, of the rest it is said what is at hand, by `segclip models` too."""
    offline = {"HF_HUB_OFFLINE": "1"}  # without it, the hub's library tries each file again and again
    for names, more in ((["clip", "sharded", "lost", "never"], offline), (["clip"], {})):
        program = PROGRAM.replace("NAMES", repr(names)) + "from segclip.cli import main\nmain(['models', '--json'])"
        *found, models = split_json(run_with_hub(program, "http://127.0.0.1:9", home, **more))
        cached, others = found[:2] if more else found, found[2:] if more else []
        assert set(cached) == {"4 gelu"}
        at_hand = "org/both (cached), org/clip (cached), org/cut (cached), org/openclip (cached), org/sharded (cached)"
        assert len(found) == len(names)
        for line in others:
            assert line.endswith(f"at hand without a network: mini (embedded), {at_hand}")
        places = {model["name"]: model["place"] for model in json.loads(models)["models"]}
        assert places["mini"] == "embedded" and places["org/clip"] == places["org/sharded"] == "cached"
        assert places["vit-b16"] == places["openai/clip-vit-base-patch16"] == "download"
        assert not places.keys() & {"org/lost", "org/half", "org/siglip", "org/never"}


def split_json(lines: list[str]) -> list[str]:
    start = lines.index("{")
    return [*lines[:start], "\n".join(lines[start:])]
