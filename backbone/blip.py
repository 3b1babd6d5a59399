"""BLIP: the states of an image tower, and a question encoder that cross-attends to them in every block.

Li, Li, Xiong & Hoi, "BLIP: Bootstrapping Language-Image Pre-training for Unified Vision-Language Understanding and
Generation", ICML 2022, arXiv 2201.12086. The weights are transformers' `BlipForQuestionAnswering` without its answer
decoder: `vision_model`, and `text_encoder`, whose sequence is assembled here so that prompts can be inserted.

    image       states of all patches after the tower's last norm                             -> `image_tokens`
    question    [ENC] prompts words [SEP]: word + position, norm; prompts are added after it   -> `BlipFusion`
    feature     state of [ENC] after the last block

The encoder with cross-attention was trained with [ENC] as its first word, also in the released code; transformers
leaves [CLS] there, and so does --blip_first cls. The released vocabulary is BERT's followed by [DEC] and [ENC].

Choices: the pooled feature of an image is the tower's class token, that of a question is [CLS] of the question encoder
without its cross-attention, as in BLIP's contrastive loss. Prompts do not have positions.
"""

import copy

import torch
from torch import Tensor, nn

from backbone.attention import Parts, attend, run, separate
from backbone.clip_files import OPENAI_MEAN, OPENAI_STD
from backbone.fusion import question_mask
from backbone.hub import HubBackbone, WordPieces, in_front
from utils.errors import UserError
from utils.ranks import dealt


def blocks(layers: nn.ModuleList, image: Tensor | None = None) -> list[Parts]:
    """The post-norm blocks of transformers' layers, with cross-attention to `image` (B, P, Wi) if given."""

    def looked(layer: nn.Module, x: Tensor) -> Tensor:
        own = layer.crossattention.self
        mixed = attend(own.query(x), own.key(image), own.value(image), own.num_attention_heads)
        return layer.crossattention.output(mixed, x)

    def parts(layer: nn.Module) -> Parts:
        def rest(x: Tensor) -> Tensor:
            x = x if image is None else looked(layer, x)
            return layer.output(layer.intermediate(x), x)

        own = layer.attention.self
        return Parts(nn.Identity(), separate(own), own.num_attention_heads, layer.attention.output, rest)

    return [parts(layer) for layer in layers]


def enc_id(words: WordPieces, rows: int) -> int:
    """Row of [ENC] in an embedding table of `rows` rows: the tokenizer's, or the second after BERT's own words."""
    tokenizer = words.tokenizer
    found = tokenizer.get_vocab().get("[ENC]", len(tokenizer) + 1)
    if found >= rows:
        raise UserError(
            f"{tokenizer.name_or_path}: its embedding table of {rows} words does not have [ENC]: add --blip_first cls"
        )
    return found


class BlipBackbone(HubBackbone):
    """The image tower and the question encoder of a transformers BlipForQuestionAnswering."""

    kind = "blip"

    def __init__(self, blip: nn.Module, words: WordPieces, name: str, first: str = "enc"):
        vision, text = blip.config.vision_config, blip.config.text_config
        super().__init__(
            words, name, vision.image_size, vision.patch_size, (OPENAI_MEAN, OPENAI_STD), text.max_position_embeddings
        )
        self.vision, self.words, self.layers = (
            blip.vision_model,
            blip.text_encoder.embeddings,
            blip.text_encoder.encoder.layer,
        )
        if not all(hasattr(layer, "crossattention") for layer in self.layers):
            raise UserError(
                f"{name}: its question encoder does not attend to images; use one with is_decoder in text_config"
            )
        self.vision_width, self.text_width, self.embed_dim = vision.hidden_size, text.hidden_size, vision.hidden_size
        self.first_id = words.start if first == "cls" else enc_id(words, text.vocab_size)
        self.seal()

    @dealt("x")
    def image_tokens(self, x: Tensor) -> Tensor:
        """Images (B, 3, R, R) -> (B, 1 + P, Wi); row 0, the class token, is also the pooled feature."""
        return self.vision(pixel_values=x).last_hidden_state

    @dealt("ids")
    def text_tokens(self, ids: Tensor) -> Tensor:
        """Ids (N, L) -> (N, L, W): the pooled feature, then the words in front of the first block."""
        ids = ids.to(self.device)
        states = self.words(input_ids=self.word_ids(ids))
        pooled, _ = run(blocks(self.layers), states, question_mask(ids), rows=1)
        return torch.cat([pooled, states[:, 1:]], dim=1)

    def make_fusion(self, trained: bool) -> "BlipFusion":
        return BlipFusion(self, trained)


class BlipFusion(nn.Module):
    """[ENC ; prompts ; words], cross-attending to the image -> state (B, W) of [ENC]; replaces a FusionTransformer."""

    fresh = False

    def __init__(self, blip: BlipBackbone, trained: bool):
        super().__init__()
        self.layers = copy.deepcopy(blip.layers) if trained else blip.layers
        self.width, self.n_layers = blip.text_width, len(self.layers)
        with torch.no_grad():
            first = blip.words(input_ids=torch.full((1, 1), blip.first_id, device=blip.device))
        self.register_buffer("first_word", first, persistent=False)  # (1, 1, W), the same for all questions

    @dealt("image", "text", "text_seen", "prompts", "prefixes")
    def forward(
        self,
        image: Tensor,
        text: Tensor,
        text_seen: Tensor,
        prompts: Tensor | None = None,
        prefixes: dict[int, Tensor] | None = None,
        prompt_states: bool = False,
    ):
        """The state of `image_tokens` (B, 1 + P, Wi) with `text_tokens` (B, L, W); also those (B, n, W) of prompts."""
        x, seen, front = in_front(self.first_word, prompts, text, text_seen)
        x, _ = run(blocks(self.layers, image), x, seen, front if prompt_states else 1, prefixes)
        return (x[:, 0], x[:, 1:]) if prompt_states else x[:, 0]
