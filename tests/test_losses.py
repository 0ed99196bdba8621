"""Losses and their gradients against the recorded ones of the originals."""

import numpy as np
import pytest
import torch
from fill import noise
from filled import filled
from torch.nn import functional as F

from model import OutputDiscriminator
from train_adaptsegnet import adversarial_loss
from utils.losses import cross_entropy


@pytest.mark.parametrize("case", ("ce2d", "ce04"))
def test_cross_entropy(case, golden):
    recorded = golden("adaptsegnet/losses.npz")
    logits = torch.from_numpy(recorded[f"{case}/logits"]).requires_grad_()
    label = torch.from_numpy(recorded[f"{case}/labels"])
    label[label < 0] = 255  # ours are uint8: whatever is ignored is 255
    loss = cross_entropy(logits, label.to(torch.uint8))
    loss.backward()
    np.testing.assert_allclose(loss.item(), recorded[f"{case}/loss"], rtol=1e-5)
    np.testing.assert_allclose(logits.grad.numpy(), recorded[f"{case}/grad"], rtol=1e-5, atol=1e-8)


def test_a_batch_without_labelled_pixels_teaches_nothing(golden):
    recorded = golden("adaptsegnet/losses.npz")
    logits = torch.from_numpy(recorded["ce04_all_ignored/logits"]).requires_grad_()
    loss = cross_entropy(logits, torch.from_numpy(recorded["ce04_all_ignored/labels"]))
    loss.backward()
    assert loss.item() == 0  # nan in the original; the gradient is what counts
    assert torch.equal(logits.grad, torch.from_numpy(recorded["ce04_all_ignored/grad"]))


@pytest.mark.parametrize("domain", (0, 1))
@pytest.mark.parametrize("gan", ("Vanilla", "LS"))
def test_adversarial_loss(gan, domain, golden):
    recorded = golden("adaptsegnet/losses.npz")
    d_out = torch.from_numpy(recorded["adv/d_out"]).requires_grad_()
    loss = adversarial_loss(d_out, domain, gan)
    loss.backward()
    np.testing.assert_allclose(loss.item(), recorded[f"adv_{gan.lower()}_label{domain}/loss"], rtol=1e-5)
    np.testing.assert_allclose(d_out.grad.numpy(), recorded[f"adv_{gan.lower()}_label{domain}/grad"], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("gan", ("Vanilla", "LS"))
def test_adversarial_gradient_reaches_the_prediction_through_the_discriminator(gan, golden):
    recorded = golden("adaptsegnet/losses.npz")
    pred = torch.from_numpy(noise("losses/chain/pred", recorded["chain/pred_shape"], 0, 2)).requires_grad_()
    discriminator = filled(OutputDiscriminator(), prefix="D1.")
    d_out = discriminator(F.softmax(pred, dim=1))
    np.testing.assert_allclose(d_out.detach().numpy(), recorded["chain/d_out"], rtol=1e-4, atol=1e-6)
    loss = adversarial_loss(d_out, 0, gan)
    loss.backward()
    np.testing.assert_allclose(loss.item(), recorded[f"chain_{gan.lower()}/loss"], rtol=1e-5)
    expected = recorded[f"chain_{gan.lower()}/grad_sub"]
    np.testing.assert_allclose(pred.grad[:, :, ::4, ::4].numpy(), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
