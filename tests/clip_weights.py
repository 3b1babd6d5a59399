"""Random CLIP weights in the formats of OpenAI and of the embedded CLIP; shared by the tests of backbone/clip*.py."""

import json

import clip
import torch
from safetensors.torch import save_file
from torch import nn

from backbone.clip_files import sha256_file
from backbone.tiny_tokenizer import TinyTokenizer, build_pieces

SIZES = {
    "embed_dim": 48,
    "image_resolution": 32,
    "vision_layers": 2,
    "vision_width": 128,
    "vision_patch_size": 8,
    "context_length": 20,
    "vocab_size": 49408,
    "transformer_width": 64,
    "transformer_heads": 1,
    "transformer_layers": 3,
}
TEXTS = [
    "a photo of a cat.",
    "X X X a very long name of some striped fish",
    "dog",
]  # ends 7, 12, 2: sorting is not a swap


def random_clip(**changes):
    """A network of the library with random weights, none of them trivial, rounded to fp16 as OpenAI's are."""
    torch.manual_seed(0)
    net = clip.model.CLIP(**(SIZES | changes)).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
            parameter.copy_(parameter.half().float())
    return net


def openai_state(net):
    """The state dict as OpenAI stores it: half precision, and three scalars that are not weights."""
    state = {k: v.half() if v.is_floating_point() else v for k, v in net.state_dict().items()}
    extra = {"input_resolution": net.visual.input_resolution, "context_length": net.context_length}
    return state | {k: torch.tensor(v) for k, v in (extra | {"vocab_size": net.vocab_size}).items()}


class Archive(nn.Module):
    """Carries a nested state dict through torch.jit.save."""

    def __init__(self, state):
        super().__init__()
        for key, value in state.items():
            module, (*path, leaf) = self, key.split(".")
            for part in path:
                if not hasattr(module, part):
                    module.add_module(part, nn.Module())
                module = getattr(module, part)
            module.register_buffer(leaf, value)


def write_tiny(folder, vocab_size=None):
    """A folder in the embedded CLIP's layout: random weights and a vocabulary of byte pieces and a few words."""
    tokenizer = TinyTokenizer(build_pieces(["a photo of a striped fish ."]))
    net = random_clip(vocab_size=vocab_size or tokenizer.vocab_size)
    tokenizer.save(folder / "vocab.json")
    save_file(openai_state(net), folder / "model.safetensors")
    config = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "activation": "quickgelu"}
    config["sha256"] = sha256_file(folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return net, tokenizer
