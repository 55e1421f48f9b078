"""The small model's weights as other people's programs store them."""

import torch
from torch import Tensor, nn

State = dict[str, Tensor]


class Tree(nn.Module):
    """A module tree with exactly these parameter names, as OpenAI's archives hold CLIP's."""

    def __init__(self, state: State) -> None:
        super().__init__()
        for name, tensor in state.items():
            *path, last = name.split(".")
            node: nn.Module = self
            for step in path:
                if step not in dict(node.named_children()):
                    node.add_module(step, nn.Module())
                node = node.get_submodule(step)
            node.register_parameter(last, nn.Parameter(tensor, requires_grad=tensor.is_floating_point()))

    def forward(self, x: Tensor) -> Tensor:
        return x * 2


def to_openai(authors: State) -> State:
    """The towers as OpenAI names them, with OpenAI's three sizes."""
    state = {}
    for name, tensor in authors.items():
        name = name.removeprefix("clip.").replace("transformer.layers0.", "transformer.resblocks.")
        for block in range(2):
            name = name.replace(f"transformer.layers2.{block}.", f"transformer.resblocks.{10 + block}.")
        if not any(new in name for new in ("semantic_layer2", "mae", "reconstruct")):
            state[name] = tensor
    sizes = {"input_resolution": 96, "context_length": 77, "vocab_size": 512}
    return state | {name: torch.tensor(size) for name, size in sizes.items()}


def from_transformers(state: State) -> State:
    """A CLIPModel's towers under OpenAI's names, which are OpenCLIP's too."""
    names = {
        "vision_model.embeddings.class_embedding": "visual.class_embedding",
        "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
        "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
        "text_model.embeddings.position_embedding.weight": "positional_embedding",
        "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
        "logit_scale": "logit_scale",
    }
    pieces = {
        "vision_model.pre_layrnorm": "visual.ln_pre",
        "vision_model.post_layernorm": "visual.ln_post",
        "text_model.final_layer_norm": "ln_final",
        "vision_model.encoder.layers": "visual.transformer.resblocks",
        "text_model.encoder.layers": "transformer.resblocks",
        ".self_attn.out_proj": ".attn.out_proj",
        ".layer_norm": ".ln_",
        "fc1": "c_fc",
        "fc2": "c_proj",
    }
    openai = {
        "visual.proj": state["visual_projection.weight"].T.contiguous(),
        "text_projection": state["text_projection.weight"].T.contiguous(),
    }
    for name, tensor in state.items():
        if name in names:
            openai[names[name]] = tensor.clone()
            continue
        parts = [state[name.replace("q_proj", f"{part}_proj")] for part in "qkv"] if ".q_proj." in name else []
        for theirs, ours in pieces.items():
            name = name.replace(theirs, ours)
        if parts:
            openai[name.replace(".self_attn.q_proj.", ".attn.in_proj_")] = torch.cat(parts)
        elif ".self_attn." not in name and not name.startswith(("visual_projection", "text_projection")):
            openai[name] = tensor.clone()
    return openai


def to_transformers(openai: State) -> State:
    """The same towers in transformers' names and layout."""
    names = {
        "visual.class_embedding": "vision_model.embeddings.class_embedding",
        "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
        "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
        "positional_embedding": "text_model.embeddings.position_embedding.weight",
        "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
        "logit_scale": "logit_scale",
    }
    pieces = {
        "visual.ln_pre": "vision_model.pre_layrnorm",
        "visual.ln_post": "vision_model.post_layernorm",
        "ln_final": "text_model.final_layer_norm",
        "visual.transformer.resblocks": "vision_model.encoder.layers",
        "transformer.resblocks": "text_model.encoder.layers",
        ".attn.out_proj": ".self_attn.out_proj",
        ".ln_": ".layer_norm",
        "c_fc": "fc1",
        "c_proj": "fc2",
    }
    state = {"text_model.embeddings.position_ids": torch.arange(77)[None]}
    state["visual_projection.weight"] = openai["visual.proj"].T.contiguous()
    state["text_projection.weight"] = openai["text_projection"].T.contiguous()
    for name, tensor in openai.items():
        if name in names:
            state[names[name]] = tensor.clone()
            continue
        for theirs, ours in pieces.items():
            name = name.replace(theirs, ours)
        if ".attn.in_proj_" in name:
            for part, piece in zip("qkv", tensor.chunk(3), strict=True):
                state[name.replace(".attn.in_proj_", f".self_attn.{part}_proj.")] = piece.clone()
        elif "_model." in name:
            state[name] = tensor.clone()
    return state
