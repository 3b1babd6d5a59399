"""BLIP: its question encoder against transformers' own, prompts among the words, and CluMo on it."""

from argparse import Namespace

import pytest
import torch

from backbone.blip import BlipBackbone, enc_id
from backbone.hub import read_model, read_words
from backbone.hub_flags import load_hub, refuse_idle
from tests import contract, test_contract_models, tiny_hub
from tests.test_vilt import CHECKED, TEXTS, draw, finished, toy_flags
from utils.errors import UserError

pytest.importorskip("transformers")


ENC = len(tiny_hub.VOCABULARY) + 1  # after the words and [DEC]


def blip(**flags) -> BlipBackbone:
    return load_hub(tiny_hub.flags("blip", **flags))


def batch(net: BlipBackbone):
    """Prepared images (3, 3, R, R), ids (3, L) cut to the longest, and which are words."""
    images = torch.randn(3, 3, net.resolution, net.resolution, generator=draw(0))
    ids = net.tokenize(TEXTS)
    ids = ids[:, : int(ids.argmax(1).max()) + 1]
    return images, ids, torch.arange(ids.shape[1]) <= ids.argmax(1, keepdim=True)


@pytest.mark.parametrize("first", ["enc", "cls"])
def test_the_question_encoder_is_that_of_transformers(first):
    """With the image its first word is [ENC], or [CLS] where that is asked for; without it is [CLS]."""
    net = blip(blip_first=first)
    images, ids, seen = batch(net)
    theirs = read_model("BlipForQuestionAnswering", str(tiny_hub.blip_folder()), False)
    words = read_words(str(tiny_hub.blip_folder()))
    plain = torch.where(ids == words.end, words.sep, ids)
    with torch.no_grad():
        picture = theirs.vision_model(pixel_values=images).last_hidden_state
        seeing = plain.clone()
        seeing[:, 0] = ENC if first == "enc" else words.start
        wanted = theirs.text_encoder(
            input_ids=seeing, attention_mask=seen.long(), encoder_hidden_states=picture
        ).last_hidden_state
        alone = theirs.text_encoder(input_ids=plain, attention_mask=seen.long()).last_hidden_state
        fused = net.make_fusion(False)(net.image_tokens(images), net.text_tokens(ids), seen)
        torch.testing.assert_close(net.image_tokens(images), picture, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(fused, wanted[:, 0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(net.text_tokens(ids)[:, 0], alone[:, 0], atol=1e-4, rtol=1e-4)
    assert (wanted[:, 0] - alone[:, 0]).abs().max() > 1e-2, "the picture is looked at"


def test_prompts_among_the_words_are_as_embeddings_of_transformers():
    """transformers takes ready embeddings too: [CLS ; prompts ; words] goes through its own encoder."""
    net = blip()
    images, ids, seen = batch(net)
    theirs = read_model("BlipForQuestionAnswering", str(tiny_hub.blip_folder()), False).text_encoder
    prompts = torch.randn(3, 2, 16, generator=draw(1))
    with torch.no_grad():
        seeing = net.word_ids(ids)
        seeing[:, 0] = ENC
        embedded = net.words(input_ids=seeing)
        x = torch.cat([embedded[:, :1], prompts, embedded[:, 1:]], dim=1)
        mask = torch.cat([torch.ones(3, 3, dtype=torch.long), seen[:, 1:].long()], dim=1)
        image = net.image_tokens(images)
        wanted = theirs(encoder_embeds=x, attention_mask=mask, encoder_hidden_states=image).last_hidden_state
        state, states = net.make_fusion(True)(image, net.text_tokens(ids), seen, prompts, prompt_states=True)
        torch.testing.assert_close(state, wanted[:, 0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(states, wanted[:, 1:3], atol=1e-4, rtol=1e-4)
        prefix = {0: torch.randn(3, 2, 2, 16, generator=draw(2))}
        moved = net.make_fusion(True)(image, net.text_tokens(ids), seen, prompts, prefix)
    assert not torch.allclose(moved, state, atol=1e-3)


def test_a_longer_padding_changes_nothing():
    net = blip()
    images, ids, seen = batch(net)
    fusion = net.make_fusion(False)
    longer, more = torch.nn.functional.pad(ids, (0, 4)), torch.nn.functional.pad(seen, (0, 4))
    with torch.no_grad():
        expected = fusion(net.image_tokens(images), net.text_tokens(ids), seen)
        torch.testing.assert_close(
            fusion(net.image_tokens(images), net.text_tokens(longer), more), expected, atol=1e-5, rtol=1e-5
        )


def test_a_word_table_without_enc_is_refused_and_the_flag_without_blip():
    words = read_words(str(tiny_hub.blip_folder()))
    assert enc_id(words, ENC + 1) == ENC
    with pytest.raises(UserError, match="--blip_first cls"):
        enc_id(words, ENC)
    with pytest.raises(UserError, match="--blip_first is used only with --vqa_backbone blip"):
        refuse_idle(Namespace(vqa_backbone="clip", blip_first="cls"))


def test_weights_of_another_network_are_refused():
    with pytest.raises(UserError, match="is not a BlipForQuestionAnswering"):
        load_hub(tiny_hub.flags("blip", blip_weights=str(tiny_hub.vilt_folder())))


@pytest.mark.parametrize("check", CHECKED[:1] + CHECKED[2:4])
def test_the_contract_holds_on_blip(check, tmp_path):
    call = getattr(test_contract_models, check)
    with toy_flags("clumo", vqa_backbone="blip", blip_weights=tiny_hub.blip_folder()):
        call("clumo", tmp_path) if call.__code__.co_argcount == 2 else call("clumo")


@pytest.mark.parametrize("name", ["l2p", "dualprompt"])
def test_prompt_baselines_run_on_blip(name, monkeypatch):
    monkeypatch.setattr(contract.ToyPairs, "HAS_TEXT", True)
    with toy_flags(name, vqa_backbone="blip", blip_weights=tiny_hub.blip_folder(), query="both"):
        toy = contract.run(name, "toy-pairs")
    assert toy.model.query_dim == 24 + 16 and contract.logits(toy)[:, :9].isfinite().all()


def test_clumo_answers_questions_on_blip(tmp_path):
    model = finished(
        [
            "--model",
            "clumo",
            "--dataset",
            "clove-tiny-scene",
            "--vqa_backbone",
            "blip",
            "--blip_weights",
            str(tiny_hub.blip_folder()),
            "--debug_mode",
            "1",
            "--stop_after",
            "1",
        ],
        tmp_path,
    )
    assert model.visual_keys.shape == (2, 3, 24) and model.text_keys.shape == (2, 3, 16)
    assert model.prompts[0].requires_grad is False and model.prompts[1].requires_grad
    assert not any(p.requires_grad for p in model.net.parameters())
