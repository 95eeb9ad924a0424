"The model that ships: its size, its licence, and what it is worth, recomputed."
import bz2
import json
import re
import zlib

import pytest
import torch

from tinyq.evaluate import TINY_LM, calibration_text, evaluate_lm, get_generation, heldout_text, tiny_lm
from tinyq.quantizer import Quantizer


@pytest.fixture(scope="module")
def float_lm():
    return tiny_lm()


@pytest.fixture(scope="module")
def scores(float_lm, quantized):
    model, tokenizer = float_lm
    return evaluate_lm(model, tokenizer, heldout_text()), evaluate_lm(quantized[0], tokenizer, heldout_text(), model)


def test_size_and_licence():
    assert sum(f.stat().st_size for f in TINY_LM.iterdir()) <= 6_000_000
    assert "PYTHON SOFTWARE FOUNDATION LICENSE" in (TINY_LM / "LICENSE-PYTHON-DOCS.txt").read_text(encoding="utf-8").upper()
    assert (TINY_LM / "loss_curve.png").read_bytes().startswith(b"\x89PNG")
    assert not list(TINY_LM.glob("*.bin")) and not list(TINY_LM.glob("*.pt")), "no pickles"


def test_it_is_a_small_llama_in_bf16(float_lm):
    model, _ = float_lm
    assert type(model).__name__ == "LlamaForCausalLM"
    assert all(p.dtype == torch.bfloat16 for p in model.parameters())
    assert all(s % 128 == 0 for m in model.modules() if isinstance(m, torch.nn.Linear) for s in m.weight.shape)


def test_bits_per_byte_on_text_it_never_saw(scores):
    text = heldout_text().encode()
    zlib_bits = 8 * len(zlib.compress(text, 9)) / len(text)
    bz2_bits = 8 * len(bz2.compress(text, 9)) / len(text)
    assert scores[0].nbytes == len(text)
    assert scores[0].bits_per_byte <= 1.70 < bz2_bits < zlib_bits


def test_the_model_card_says_what_is_measured(scores):
    card = (TINY_LM / "README.md").read_text(encoding="utf-8")
    stated = [float(x) for x in re.findall(r"\b\d\.\d{2,4}\b", card)]
    assert any(abs(x - scores[0].bits_per_byte) < 0.005 for x in stated)


def test_held_out_text_is_not_in_the_calibration_text():
    # The calibration text is a piece of the training text, the part of it that ships.
    ngrams = lambda text, n=13: {tuple(words[i:i + n]) for words in [re.findall(r"\w+", text.lower())] for i in range(len(words) - n + 1)}
    assert not ngrams(heldout_text()) & ngrams(calibration_text())


def test_w8a16_costs_less_than_a_thousandth(scores):
    before, after = scores
    assert abs(after.bits_per_byte / before.bits_per_byte - 1) < 1e-3
    assert 0 < after.kl < 1e-3


def test_evaluation_is_deterministic(float_lm):
    text = heldout_text()[:5000]
    assert evaluate_lm(*float_lm, text) == evaluate_lm(*float_lm, text)


def test_kl_of_a_model_with_itself_is_zero(float_lm):
    assert abs(evaluate_lm(*float_lm, heldout_text()[:5000], reference=float_lm[0]).kl) < 1e-6


def test_windows_do_not_change_the_score_of_a_text_that_fits_one(float_lm):
    model, tokenizer = float_lm
    text = heldout_text()[:600]
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False).input_ids]])
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(model(ids).logits[0, :-1].double(), ids[0, 1:], reduction="sum")
    assert evaluate_lm(model, tokenizer, text).nll == pytest.approx(loss.item(), rel=1e-4)


def test_it_writes_words_of_the_documentation(float_lm):
    text = get_generation(*float_lm, "If the file does not exist,", 100, repetition_penalty=1.3)
    words = re.findall(r"[a-z]{3,}", text.lower())
    known = set(re.findall(r"[a-z]{3,}", (calibration_text() + heldout_text()).lower()))
    assert len(set(words)) > 20 and sum(w in known for w in words) / len(words) > 0.8


def test_training_log_matches_the_curve():
    log = json.loads((TINY_LM / "training_log.json").read_text(encoding="utf-8"))
    assert log, "the loss curve is drawn from it"


@pytest.mark.parametrize("text", ["", " "[:0]])
def test_empty_text(float_lm, text):
    with pytest.raises(ValueError, match="empty"):
        evaluate_lm(*float_lm, text)


def test_quantizing_leaves_the_head_tied(quantized):
    model, _ = quantized
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert isinstance(Quantizer(model), Quantizer)
