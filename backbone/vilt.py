"""ViLT: words and patches in one transformer, on any subset of them, with prompts and with attention maps.

Kim, Son & Kim, "ViLT: Vision-and-Language Transformer Without Convolution or Region Supervision", ICML 2021, arXiv
2102.03334. The weights are transformers' `ViltModel`; the sequence is assembled here:

    [CLS] words [SEP]   word + position of the word in its text + type 0, as BERT embeds them      -> `word_states`
    class, patches      linear map of a patch + position of its cell + type 1                      -> `patch_states`
    feature             pooler of the first [CLS] after all blocks                                 -> `pool`

`ViltModel.forward` cannot be used where patches are dropped: it draws a random order of the patches, reads the
image's size off the first row and column of the pixel mask, and renumbers the words. Positions of a grid that the
weights do not have are interpolated as in that function: bilinear, corners aligned.

Choices: images are square. The pooled feature of an image, or text, alone is the mean state of its patches, or words,
after a pass without the other modality. Prompts have neither position nor type.
"""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backbone.adapters import add_ssf, layers_of
from backbone.attention import Parts, run, separate
from backbone.fusion import question_mask
from backbone.hub import HubBackbone, WordPieces, in_front
from backbone.multimodal import Attention, MultimodalNet, reduce
from utils.errors import UserError
from utils.memory.records import Tokens
from utils.ranks import dealt

MEAN_STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
ADAPTED = ("patch", "layers", "norm")  # parts with adapters: not the words' embedding, not the pooler


def blocks(layers: nn.ModuleList) -> list[Parts]:
    """The pre-norm blocks of transformers' layers."""

    def parts(layer: nn.Module) -> Parts:
        own, out = layer.attention.attention, layer.attention.output
        return Parts(
            layer.layernorm_before,
            separate(own),
            own.num_attention_heads,
            lambda mixed, x: x + out.dense(mixed),
            lambda x: layer.output(layer.intermediate(layer.layernorm_after(x)), x),
        )

    return [parts(layer) for layer in layers]


class ViltBackbone(HubBackbone):
    """The parts of a transformers ViltModel."""

    kind = "vilt"

    def __init__(self, vilt: nn.Module, words: WordPieces, name: str, resolution: int | None = None):
        config, parts = vilt.config, vilt.embeddings
        size = config.image_size if isinstance(config.image_size, int) else config.image_size[0]
        super().__init__(
            words,
            name,
            resolution or size,
            parts.patch_embeddings.projection.kernel_size[0],
            MEAN_STD,
            config.max_position_embeddings,
        )
        self.words, self.patch, self.types = (
            parts.text_embeddings,
            parts.patch_embeddings.projection,
            parts.token_type_embeddings,
        )
        self.first, self.cells = parts.cls_token, parts.position_embeddings
        self.layers, self.norm, self.pooler = vilt.encoder.layer, vilt.layernorm, vilt.pooler
        self.vision_width = self.text_width = self.embed_dim = config.hidden_size
        self.seal()

    def positions(self) -> Tensor:
        """(1 + P, W): of the class token and of the cells, row after row."""
        table = self.cells[0]
        side = round((len(table) - 1) ** 0.5)
        if side == self.grid:
            return table
        grid = table[1:].T.reshape(1, -1, side, side)
        grid = F.interpolate(grid, size=(self.grid, self.grid), mode="bilinear", align_corners=True)
        return torch.cat([table[:1], grid.flatten(2)[0].T])

    def word_states(self, ids: Tensor, places: Tensor) -> Tensor:
        """Words (B, m) at places (B, m) -> (B, m, W) in front of the first block."""
        return self.words(input_ids=self.word_ids(ids), position_ids=places) + self.types.weight[0]

    def patch_states(self, patches: Tensor, places: Tensor) -> Tensor:
        """Linear maps of patches (B, n, W) at cells (B, n) -> (B, 1 + n, W), the class token first."""
        position = self.positions()
        first = (self.first[0] + position[:1]).expand(len(patches), 1, -1)
        return torch.cat([first, patches + position[1 + places]], dim=1) + self.types.weight[1]

    def pool(self, states: Tensor) -> Tensor:
        """States (B, S, W) after the last block -> features (B, W)."""
        return self.pooler(self.norm(states))

    @dealt("x")
    def image_tokens(self, x: Tensor) -> Tensor:
        """Images (B, 3, R, R) -> (B, 1 + P, W): the pooled feature, then the patches in front of the first block."""
        patches = self.patch(x).flatten(2).transpose(1, 2)
        places = torch.arange(patches.shape[1], device=x.device).expand(len(x), -1)
        states = self.patch_states(patches, places)
        after, _ = run(blocks(self.layers), states, states.new_ones(states.shape[:2], dtype=torch.bool))
        return torch.cat([self.norm(after)[:, 1:].mean(1, keepdim=True), states[:, 1:]], dim=1)

    @dealt("ids")
    def text_tokens(self, ids: Tensor) -> Tensor:
        """Ids (N, L) -> (N, L, W): the pooled feature, then the words in front of the first block."""
        ids = ids.to(self.device)
        if ids.shape[1] > self.context_length:
            raise UserError(
                f"a text of {ids.shape[1]} word pieces; {self.name} reads {self.context_length}: shorten it"
            )
        states = self.word_states(ids, torch.arange(ids.shape[1], device=ids.device).expand(len(ids), -1))
        seen = question_mask(ids)
        after, _ = run(blocks(self.layers), states, seen)
        pooled = (self.norm(after) * seen[..., None]).sum(1) / seen.sum(1, keepdim=True)
        return torch.cat([pooled[:, None], states[:, 1:]], dim=1)

    def make_fusion(self, trained: bool) -> "ViltFusion":
        return ViltFusion(self, trained)


class ViltFusion(nn.Module):
    """[CLS ; prompts ; words ; class ; patches] -> pooled state (B, W): replaces a FusionTransformer."""

    fresh = False

    def __init__(self, vilt: ViltBackbone, trained: bool):
        super().__init__()
        own = (vilt.layers, vilt.norm, vilt.pooler)
        self.layers, self.norm, self.pooler = copy.deepcopy(own) if trained else own
        self.width, self.n_layers = vilt.text_width, len(self.layers)
        with torch.no_grad():
            start = torch.full((1, 1), vilt.start, device=vilt.device)
            word = vilt.word_states(start, torch.zeros_like(start))
            cell = vilt.patch_states(word[:, :0], start[:, :0])
        for name, value in (("first_word", word), ("first_cell", cell)):  # (1, 1, W), the same for all inputs
            self.register_buffer(name, value, persistent=False)

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
        """Pooled state of `image_tokens` (B, 1 + P, W) with `text_tokens` (B, L, W); also those (B, n, W) of
        prompts."""
        x, seen, front = in_front(self.first_word, prompts, text, text_seen)
        x = torch.cat([x, self.first_cell.expand(len(image), 1, -1), image[:, 1:]], dim=1)
        seen = torch.cat([seen, seen.new_ones(image.shape[:2])], dim=1)
        x = self.norm(run(blocks(self.layers), x, seen, front if prompt_states else 1, prefixes)[0])
        return (self.pooler(x), x[:, 1:]) if prompt_states else self.pooler(x)


class ViltNet(MultimodalNet):
    """Tokens -> features (B, W) by ViLT and a linear classifier: the ViLT version of MultimodalNet."""

    def __init__(self, vilt: ViltBackbone, num_classes: int, tune: str = "ssf"):
        nn.Module.__init__(self)
        self.vilt, self.fusion = vilt, nn.ModuleList()  # there is no additional transformer
        self.side, self.cells, self.patch_width = vilt.side, vilt.n_image_tokens - 1, 3 * vilt.side**2
        self.feature_dim = self.embed_dim = vilt.text_width
        self.classifier = nn.Linear(self.feature_dim, num_classes)
        for name, value in (("mean", vilt.mean), ("std", vilt.std)):
            self.register_buffer(name, torch.tensor(value).repeat_interleave(self.side**2), persistent=False)
        vilt.requires_grad_(tune == "full")
        if tune == "ssf":
            add_ssf(vilt, ssf_layers(vilt))

    @property
    def clip(self) -> ViltBackbone:
        """What preprocesses images and words."""
        return self.vilt

    def embed_patches(self, patches: Tensor) -> Tensor:
        """Patches (B, n, 3 P P) -> (B, n, W): the convolution's output at their cells."""
        conv = self.vilt.patch
        return F.linear(self.normalized(patches), conv.weight.flatten(1), conv.bias)

    def sequence(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """(B, m + 1 + n, W) words, class token and patches in front of the first block, and the mask of real rows."""
        words = self.vilt.word_states(tokens.ids, tokens.word_places)
        patches = self.vilt.patch_states(self.embed_patches(tokens.patches), tokens.places)
        return torch.cat([words, patches], dim=1), torch.cat(
            [tokens.word_seen, F.pad(tokens.seen, (1, 0), value=True)], dim=1
        )

    def features(self, tokens: Tokens) -> Tensor:
        """(B, W) of which the classifier is a linear function."""
        return self.vilt.pool(run(blocks(self.vilt.layers), *self.sequence(tokens), rows=1)[0])

    @dealt("tokens")
    @torch.no_grad()
    def attend(self, tokens: Tokens, source: str = "mean", layer: str = "last", heads: str = "mean"):
        """Features (B, W) and the Attention from which masks are made: that of [CLS], for any `source`."""
        states, maps = run(blocks(self.vilt.layers), *self.sequence(tokens), rows=1, attention=True)
        joint, m = reduce(maps, layer, heads), tokens.ids.shape[1]
        n = m + 1  # the image's own class token is in between
        found = Attention(joint[:, 0, n:], joint[:, 0, :m], joint[:, n:, :m], joint[:, :m, n:])
        return self.vilt.pool(states), found


def ssf_layers(vilt: ViltBackbone) -> list[str]:
    """Weights that get scale-and-shift adapters: the patches' map, all of the blocks, the last norm."""
    return [name for name in layers_of(vilt) if name.partition(".")[0] in ADAPTED]
