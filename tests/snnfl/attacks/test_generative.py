"""What a generative model draws is a prior; one that draws no such images is refused before the first attack."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from victims import PrincipalComponents, attacked, small_cnn

from experiments.audit.app import generative_model_of
from snnfl.attacks import Budget, get_attack
from snnfl.auditing.generative_model import check_generative_model
from snnfl.config import ConfigError, TrainingConfig
from snnfl.metrics.images import matched, psnr
from snnfl.threat import Knowledge


def test_a_generative_model_helps_where_few_iterations_are_left():
    training = TrainingConfig(epochs=1, batch_size=4, learning_rate=0.1, momentum=0.0, weight_decay=0.0)
    known = Knowledge(images=4, batch_size=4, epochs=1, learning_rate=0.1, labels=True)
    victim = attacked(small_cnn(), images=4, training=training, knowledge=known)
    told = replace(known, generative_model=True)
    views = {
        "inverting_gradients": victim.view,
        "generative": replace(victim.view, knowledge=told, generative_model=PrincipalComponents()),
    }
    found = {}
    for name, view in views.items():
        generator = torch.Generator().manual_seed(0)
        images = get_attack(name).run(view, budget=Budget(iterations=40), generator=generator).images
        truth = victim.truth.images
        found[name] = float(psnr(images[matched(images, truth)], truth).mean())
    assert found["generative"] > found["inverting_gradients"] + 1, found


class Drawing(nn.Module):
    def __init__(self, latent_shape, drawn):
        super().__init__()
        self.latent_shape, self.drawn = latent_shape, drawn

    def forward(self, latents):
        return self.drawn


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Drawing((0,), None), r"Drawing has no latent_shape, such as \(100,\)"),
        (Drawing("5", None), "has no latent_shape"),
        (Drawing((5,), None), r"draws NoneType from two latents; expected images \[2, 1, 8, 8\]"),
        (Drawing((5,), torch.zeros(2, 8, 8)), r"draws \[2, 8, 8\] from two latents"),
        (Drawing((5,), torch.full((2, 1, 8, 8), -1.0)), r"draws values from -1 to -1; expected pixels of 0\.\.1"),
        (Drawing((5,), torch.full((2, 1, 8, 8), torch.nan)), "draws values from nan to nan"),
        (nn.Linear(3, 3), "Linear has no latent_shape"),
    ],
)
def test_a_model_that_draws_no_such_images_is_refused(model, message):
    with pytest.raises(ConfigError, match=message):
        check_generative_model(model, (1, 8, 8))
    check_generative_model(PrincipalComponents(), (1, 8, 8))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nowhere:Model", "--generative-model nowhere:Model: ModuleNotFoundError"),
        ("victims", "expected MODULE:FUNCTION"),
        ("victims:recordings", "TypeError"),
        ("builtins:dict", "returns dict; expected a torch.nn.Module"),
    ],
)
def test_an_option_that_names_no_model_is_a_line(text, message):
    with pytest.raises(ConfigError, match=message):
        generative_model_of(text)
    assert not generative_model_of("victims:PrincipalComponents").training
