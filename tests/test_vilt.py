"""ViLT: its sequence against transformers' own, dropped patches, adapters, and the methods that run on it."""

import ast
import contextlib
import io
from unittest import mock

import pytest
import torch

import main
from backbone.adapters import add_ssf, count
from backbone.attention import run
from backbone.hub import read_words
from backbone.hub_flags import chosen, load_hub
from backbone.vilt import ViltBackbone, ViltNet, blocks, ssf_layers
from datasets.tiny_world import streams
from datasets.utils.tokens import tokenize
from tests import contract, test_architecture, test_contract_models, tiny_hub
from utils import cli
from utils.engine import training
from utils.errors import UserError
from utils.memory.records import full_tokens, patchify, select, special

pytest.importorskip("transformers")
TEXTS = ["a photo of a red cup in the sea.", "a fish.", "where is the big boat?"]


def draw(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def vilt(**changes) -> ViltBackbone:
    return load_hub(tiny_hub.flags("vilt", **changes))


def reference(folder, ids, images):
    """transformers' own pass over whole images; its words have [SEP] as BERT numbers it."""
    from transformers import ViltModel

    net = ViltModel.from_pretrained(folder).eval()
    words = read_words(str(folder))
    seen = torch.arange(ids.shape[1]) <= ids.argmax(1, keepdim=True)
    with torch.no_grad():
        return net(
            input_ids=torch.where(ids == words.end, words.sep, ids),
            attention_mask=seen.long(),
            pixel_values=images,
            pixel_mask=torch.ones(len(images), *images.shape[2:], dtype=torch.long),
            output_attentions=True,
        )


def batch(net: ViltBackbone, seed: int = 0):
    """Prepared images (3, 3, R, R), ids (3, L) cut to the longest, and their tokens."""
    images = torch.randn(3, 3, net.resolution, net.resolution, generator=draw(seed))
    ids = net.tokenize(TEXTS)
    ids = ids[:, : int(ids.argmax(1).max()) + 1]
    return images, ids, full_tokens(patchify(images, net.side), ids)


def some(tokens, seed: int = 1):
    patches = torch.rand(tokens.seen.shape, generator=draw(seed)) < 0.4
    patches[:, :1] = True
    words = (torch.rand(tokens.word_seen.shape, generator=draw(seed + 1)) < 0.5) | special(tokens)
    return patches, words & tokens.word_seen


# the network


@pytest.mark.parametrize("resolution", [48, 80])
def test_the_sequence_is_that_of_transformers(resolution):
    """Also on a grid that the weights do not have, where positions are interpolated."""
    net = vilt(vilt_resolution=resolution)
    images, ids, tokens = batch(net)
    wanted = reference(tiny_hub.vilt_folder(), ids, images)
    whole = ViltNet(net, 4, tune="none").eval()
    with torch.no_grad():
        torch.testing.assert_close(whole.features(tokens), wanted.pooler_output, atol=1e-4, rtol=1e-4)
        features, found = whole.attend(tokens, layer="last")
        torch.testing.assert_close(features, wanted.pooler_output, atol=1e-4, rtol=1e-4)
        fused = net.make_fusion(False)(net.image_tokens(images), net.text_tokens(ids), tokens.word_seen)
        torch.testing.assert_close(fused, wanted.pooler_output, atol=1e-4, rtol=1e-4)
    theirs, m = wanted.attentions[-1].mean(1), ids.shape[1]  # its patches come in an order of its own
    torch.testing.assert_close(found.text, theirs[:, 0, :m], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.image.sort(1).values, theirs[:, 0, m + 1 :].sort(1).values, atol=1e-4, rtol=1e-4)
    ours = found.t2i.sort(2).values
    torch.testing.assert_close(ours, theirs[:, :m, m + 1 :].sort(2).values, atol=1e-4, rtol=1e-4)
    assert found.i2t.shape == (3, net.grid**2, m)


def test_dropped_patches_and_words_are_as_if_never_seen():
    """Against the whole sequence with the dropped ones masked out of every attention."""
    net = vilt()
    whole = ViltNet(net, 4, tune="none").eval()
    _, _, tokens = batch(net)
    patches, words = some(tokens)
    with torch.no_grad():
        masked = torch.cat([words, torch.ones(3, 1, dtype=torch.bool), patches], dim=1)
        wanted = net.pool(run(blocks(net.layers), whole.sequence(tokens)[0], masked)[0])
        torch.testing.assert_close(whole.features(select(tokens, patches, words)), wanted, atol=1e-5, rtol=1e-5)
        other = tokens._replace(patches=torch.where(patches[..., None], tokens.patches, -tokens.patches))
        again = whole.features(select(other, patches, words))
        assert torch.equal(again, whole.features(select(tokens, patches, words)))
        found = whole.attend(select(tokens, patches, words))[1]
        short = select(tokens, patches, words)
    assert (found.image[~short.seen] == 0).all() and (found.text[~short.word_seen] == 0).all()
    assert not torch.allclose(wanted, whole.features(tokens), atol=1e-3)


def test_stored_bytes_are_embedded_as_the_picture():
    net = vilt()
    whole = ViltNet(net, 4, tune="none")
    pixels = torch.randint(0, 256, (2, 3, 48, 48), generator=draw(3), dtype=torch.uint8)
    conv = net.patch(net.normalize_images(pixels)).flatten(2).transpose(1, 2)
    torch.testing.assert_close(whole.embed_patches(patchify(pixels, 16)), conv, atol=1e-5, rtol=1e-5)


def test_attention_of_a_chosen_block_and_head():
    net = vilt()
    whole = ViltNet(net, 4, tune="none").eval()
    _, _, tokens = batch(net)
    kinds = [("last", "mean"), ("first", "mean"), ("mean", "mean"), ("last", "max")]
    found = [whole.attend(tokens, "mean", *kind)[1].image for kind in kinds]
    assert all(not torch.allclose(a, b) for i, a in enumerate(found) for b in found[:i])
    torch.testing.assert_close((found[0] + found[1]) / 2, found[2])  # two blocks


def test_ssf_counts_205824_on_vilt_b():
    from transformers import ViltConfig, ViltModel

    class Words:
        start, sep, end = 101, 102, 30522

    with torch.device("meta"):
        net = ViltModel(ViltConfig())
    with mock.patch("backbone.hub.sha256_state", return_value=""):  # there are no values
        net = ViltBackbone(net, Words(), "vilt-b")
    assert net.grid == 12 and net.context_length == 40
    add_ssf(net, ssf_layers(net))
    assert count(net) == 205824


def test_ssf_changes_answers_and_only_it_and_the_head_are_trained():
    net = ViltNet(vilt(), 4, tune="ssf").eval()
    plain = ViltNet(vilt(), 4, tune="none").eval()
    plain.classifier.load_state_dict(net.classifier.state_dict())
    _, _, tokens = batch(net.vilt)
    trained = {n.rpartition(".")[2] for n, p in net.named_parameters() if p.requires_grad}
    assert trained == {"gamma", "beta", "weight", "bias"}
    assert {n for n, p in net.named_parameters() if p.requires_grad and "parametrizations" not in n} == {
        "classifier.weight",
        "classifier.bias",
    }
    with torch.no_grad():
        assert (net(tokens) - plain(tokens)).abs().max() > 1e-3


def test_prompts_and_prefixes_reach_the_answer_and_prompts_have_states():
    net = vilt()
    images, ids, tokens = batch(net)
    fusion = net.make_fusion(True)
    image, text, seen = net.image_tokens(images), net.text_tokens(ids), tokens.word_seen
    with torch.no_grad():
        plain = fusion(image, text, seen)
        prompts = torch.randn(3, 2, 16, generator=draw(1))
        state, states = fusion(image, text, seen, prompts, prompt_states=True)
        assert states.shape == (3, 2, 16) and not torch.allclose(state, plain, atol=1e-3)
        torch.testing.assert_close(fusion(image, text, seen, prompts), state)
        turned = fusion(image, text, seen, prompts.flip(1), prompt_states=True)[1]
        torch.testing.assert_close(turned.flip(1), states, atol=1e-5, rtol=1e-5)  # a set without positions
        prefix = {1: torch.randn(3, 2, 2, 16, generator=draw(2))}
        assert not torch.allclose(fusion(image, text, seen, None, prefix), plain, atol=1e-3)
    assert fusion.layers is not net.layers and net.make_fusion(False).layers is net.layers


def test_pooled_features_are_of_one_half_alone():
    net = vilt()
    images, ids, _ = batch(net)
    assert torch.equal(net.image_tokens(images)[:2], net.image_tokens(images[:2]))
    longer = torch.nn.functional.pad(ids, (0, 5))
    torch.testing.assert_close(net.text_tokens(longer)[:, 0], net.text_tokens(ids)[:, 0], atol=1e-6, rtol=1e-5)
    pooled = net.image_tokens(images)[:, 0]
    assert (pooled[0] - pooled[1]).abs().max() > 1e-2


# words and weights


def test_words_end_in_the_largest_id_and_are_cut():
    args = tiny_hub.flags("vilt")
    words, ids = read_words(args.vilt_weights), tokenize(TEXTS, args)
    assert ids.shape[1] == 12 and (ids[:, 0] == words.start).all() and (ids.argmax(1) == torch.tensor([11, 4, 7])).all()
    assert words.decode(ids[1].tolist()) == "a fish." and int(ids.max()) == words.end == len(tiny_hub.VOCABULARY)
    cut = tokenize(TEXTS, args, cut=6)
    assert cut.shape[1] == 6 and cut[0, -1] == words.end and torch.equal(cut[:, :5], ids[:, :5])
    with pytest.raises(UserError, match="reads 160"):
        tokenize(["cup " * 170], args)
    assert tokenize(TEXTS, contract.Namespace(clip_backbone="tiny", fusion=["not", "ours"])).max() > words.end


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"vilt_weights": "/none/such"}, "no such folder"),
        ({"vilt_weights": "nobody/has-this"}, "--clip_download 1"),
        ({"vilt_resolution": 50}, "choose a multiple"),
        ({"fusion_width": 8}, "leave the flag out"),
        ({"fusion_weights": "none"}, "leave the flag out"),
        ({"clip_dtype": "fp16"}, "fp32"),
    ],
)
def test_what_is_absent_or_does_not_fit_is_told_in_a_line(changes, said):
    with pytest.raises(UserError, match=said) as error:
        vilt(**changes)
    assert "\n" not in str(error.value)


def test_weights_of_another_network_and_damaged_ones_are_refused(tmp_path):
    with pytest.raises(UserError, match="is not a ViltModel: .* of its weights are missing"):
        vilt(vilt_weights=str(tiny_hub.blip_folder()))
    for file in tiny_hub.vilt_folder().iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes()[:100] if "safetensors" in file.name else file.read_bytes())
    with pytest.raises(UserError, match="cannot read the weights or vocabulary"):
        vilt(vilt_weights=str(tmp_path))
    (tmp_path / "vocab.txt").unlink()
    with pytest.raises(UserError, match="vocab.txt"):
        vilt(vilt_weights=str(tmp_path))


def test_weights_under_a_head_are_found(tmp_path):
    """Published weights are those of ViLT with a head, under names with a prefix."""
    from transformers import ViltConfig, ViltForMaskedLM

    torch.manual_seed(0)
    whole = ViltForMaskedLM(ViltConfig(**tiny_hub.TEXT | {"image_size": 48, "patch_size": 16}))
    whole.save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_bytes((tiny_hub.vilt_folder() / "vocab.txt").read_bytes())
    net = vilt(vilt_weights=str(tmp_path))
    assert torch.equal(net.layers[1].output.dense.weight, whole.vilt.encoder.layer[1].output.dense.weight)
    assert torch.equal(net.pooler.dense.weight, whole.vilt.pooler.dense.weight)
    assert net.sha256 != vilt().sha256 == vilt().sha256


def test_nothing_of_transformers_is_imported_unasked():
    named = [
        path
        for path in test_architecture.FILES
        if "import transformers" in (text := path.read_text()) or "from transformers" in text
    ]
    assert [path.name for path in named] == ["hub.py"]
    top = [node for node in ast.parse(named[0].read_text()).body if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert "transformers" not in " ".join(map(ast.unparse, top))


def test_loading_draws_no_random_numbers():
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    vilt()
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("clumo", {"vilt_weights": "/some/folder"}, "only with --vqa_backbone vilt"),
        ("clumo", {"vilt_resolution": 96}, "--vqa_backbone vilt"),
        ("exemplar-masking", {"vilt_weights": "/some/folder"}, "only with --fusion vilt"),
    ],
)
def test_weights_of_a_network_that_is_not_chosen_are_told(name, changes, said):
    with contract.toys(), pytest.raises(UserError, match=said):
        contract.build(name, **changes)


def test_without_the_package_it_is_named():
    with (
        mock.patch.dict("sys.modules", {"transformers": None}),
        pytest.raises(UserError, match="pip install transformers"),
    ):
        read_words.__wrapped__("anything")


# methods


@contextlib.contextmanager
def toy_flags(name: str, **changes):
    """The method's toy runs on a tiny ViLT or BLIP inside this block."""
    cls = contract.model_class(name)
    own = {k: v for k, v in cls.TOY_ARGS.items() if not k.startswith("fusion_")} | changes
    test_contract_models.trained.cache_clear()
    with contract.toys(), mock.patch.object(cls, "TOY_ARGS", own):
        yield
    test_contract_models.trained.cache_clear()


def on_vilt(name: str) -> dict:
    return {"fusion" if name == "exemplar-masking" else "vqa_backbone": "vilt", "vilt_weights": tiny_hub.vilt_folder()}


CHECKED = [
    "state_round_trip",
    "stored_bytes_true",
    "batch_of_one_equals_batch_of_many",
    "takes_pairs",
    "one_seed_one_result",
]


@pytest.mark.parametrize("check", CHECKED)
@pytest.mark.parametrize("name", ["exemplar-masking", "clumo"])
def test_the_contract_holds_on_vilt(name, check, tmp_path):
    call = getattr(test_contract_models, check)
    with toy_flags(name, **on_vilt(name)):
        call(name, tmp_path) if call.__code__.co_argcount == 2 else call(name)


def finished(argv: list[str], folder):
    """The model after a run of a command."""
    made, real = [], training.train

    def train(model, *rest, **named):
        made.append(model)
        return real(model, *rest, **named)

    argv = [
        *argv,
        "--device",
        "cpu",
        "--non_verbose",
        "1",
        "--base_path",
        str(folder),
        "--results_path",
        str(folder),
        "--disable_log",
        "1",
        "--n_epochs",
        "1",
    ]
    small = mock.patch.object(streams, "CLOVE_SIZE", {True: 40, False: 20})
    with small, mock.patch.object(training, "train", train), contextlib.redirect_stdout(io.StringIO()):
        main.run(cli.parse(argv))
    return made[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the picture world is drawn once for all runs."""
    return tmp_path_factory.mktemp("runs")


def test_exemplar_masking_on_vilt_and_captioned_pictures(folder):
    """Masks, records within the budget, and replay of what is left, on mm-tiny."""
    model = finished(
        [
            "--model",
            "exemplar-masking",
            "--dataset",
            "mm-tiny",
            "--fusion",
            "vilt",
            "--vilt_weights",
            str(tiny_hub.vilt_folder()),
            "--debug_mode",
            "1",
            "--stop_after",
            "1",
            "--buffer_bytes_per_class",
            "2x",
            "--exemplar_aug",
            "swap",
            "--lr",
            "0.01",
        ],
        folder,
    )
    memory = model.memory
    assert chosen(model.args) == "vilt" and len(memory.records.labels.unique()) == 8
    texts = model.dataset.train_loader.dataset.samples.data.text
    full = 9 + 9 * 768 + 2 * texts.shape[1]
    for label in range(8):
        own = memory.records.labels == label
        assert int(own.sum()) > 2 and int(memory.records.sizes[own].sum()) <= 2 * full, (
            "more than full samples in the bytes"
        )
    kept = memory.records.decode(torch.arange(len(memory)))
    assert 4 <= int(kept.seen.sum(1).min()) and int(kept.seen.sum(1).max()) < 9
    assert {"nme", "kept_patches", "kept_words"} <= set(model.measured)
    torch.manual_seed(0)
    replayed, labels = model.replayed(torch.arange(6), kept.rows(torch.arange(2)))
    assert (
        torch.equal(replayed.seen.sum(1), kept.seen[:6].sum(1)) and replayed.patches.shape[1] < 9 and len(labels) == 6
    )
    assert model.net.features(replayed).isfinite().all()
    assert model.words_of(kept.ids[0, kept.word_seen[0]].tolist())


def test_flags_of_exemplar_masking_act_on_vilt():
    found = []
    changes = (
        {},
        {"tune": "full"},
        {"tune": "none"},
        {"look_at": "image"},
        {"look_at": "text"},
        {"vilt_resolution": 64},
    )
    with toy_flags("exemplar-masking", n_epochs=1, **on_vilt("exemplar-masking")):
        for change in changes:
            toy = contract.run("exemplar-masking", "toy-pairs", **change)
            assert contract.logits(toy)[:, :9].isfinite().all()
            found.append(str(toy.losses))
            if "tune" in change:
                dense, loaded = (net.layers[1].output.dense.weight for net in (toy.model.net.vilt, vilt()))
                assert torch.equal(dense, loaded) == (change["tune"] == "none")
    assert len(set(found)) == len(changes)


def test_exemplar_masking_refuses_towers_that_vilt_lacks():
    with (
        toy_flags("exemplar-masking", **on_vilt("exemplar-masking")),
        pytest.raises(UserError, match="attn_source tower"),
    ):
        contract.build("exemplar-masking", attn_source="tower")


@pytest.mark.parametrize("name", ["clumo", "l2p", "dualprompt", "s-prompts"])
def test_prompt_methods_answer_questions_on_vilt(name, folder):
    model = finished(
        [
            "--model",
            name,
            "--dataset",
            "clove-tiny-function",
            "--vqa_backbone",
            "vilt",
            "--vilt_weights",
            str(tiny_hub.vilt_folder()),
            "--debug_mode",
            "1",
            "--stop_after",
            "1",
        ],
        folder,
    )
    assert model.fusion_train == "never" or name != "clumo"
    assert not any(p.requires_grad for p in model.net.parameters())
    if name == "clumo":
        assert model.visual_keys.shape == (2, 3, 16) and model.text_keys.shape == (2, 3, 16)
        assert len(model.measured["route_acc"]) == 2


def test_a_trained_fusion_leaves_the_keys_features():
    """--fusion_train first tunes a copy: pooled features stay those of the weights."""
    with toy_flags("clumo", fusion_train="first", **on_vilt("clumo")):
        toy = contract.run("clumo", "toy-pairs")
    net, loaded = toy.model.net, vilt()
    assert torch.equal(net.layers[0].intermediate.dense.weight, loaded.layers[0].intermediate.dense.weight)
    assert not torch.equal(net.fusion.layers[0].intermediate.dense.weight, net.layers[0].intermediate.dense.weight)


def test_pictures_alone_are_not_for_prompt_baselines_on_vilt():
    with toy_flags("l2p", **on_vilt("l2p")), pytest.raises(UserError, match="images with questions"):
        contract.build("l2p")
