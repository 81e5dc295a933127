"""PiLife's motion-aware inversion (Liu et al., Sec. 3.2): embeddings with which guidance leads back to an image.

Names and suffixes as in `samplers/base.py`; psi is the embedding in the place of the negative text, Z the image's way
up by DDIM, s a timestep of it. This is the one place where a frozen model is differentiated.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ti2v_dist.params import SamplingParams
from ti2v_dist.samplers.base import Batch, Begun
from ti2v_dist.samplers.frames import ImageBackbone, inverted
from ti2v_dist.schedules import inversion_pairs

ENOUGH = 1e-5
"""The mean squared error of a step at which its embedding is no longer improved."""
LOOK_T, LOOK_SIDE = 301, 16
"""Where the image is looked at for what moves, nearly clean; and the sides of the grids of the layers that look."""


def begin_pilife(model: ImageBackbone, batch: Batch, params: SamplingParams) -> Begun:
    """The anchor_BC3HW of a video: where it moves (A, the same in all channels), Z at s*, and the image, clean.

    The image is as the embeddings lead back to it (z0*); without them it is the one that was given, and chunks are
    guided away from the negative text.
    """
    (request,) = batch.requests
    assert request is not None
    steps, words = inversion_pairs(params), params.motion_of(request.texts[0])
    z_0 = batch.context_BCKHW[:, :, -1]
    Z, embeddings_BSLD = inverted(model, batch, steps, z_0), None
    # In a pair, as all texts: the shape of the batch decides bits.
    motion_1LD = model.encode_text([words, request.negative_prompt])[:1]
    if params.without != "inversion":
        embeddings_BSLD, z_0 = _optimised(model, batch, params, Z, motion_1LD)
    A = torch.ones_like(z_0) if params.without == "attention" else _attention(model, Z, motion_1LD, words, z_0)
    return Begun(torch.stack([A, Z[steps[0][0]], z_0], 2), embeddings_BSLD)


def _attention(model: ImageBackbone, Z: dict[int, Tensor], motion_1LD: Tensor, words: str, like: Tensor) -> Tensor:
    """How much each place looks at the words of the motion (eq. 11), in [0, 1], the most being 1."""
    t = min((t for t in Z if t), key=lambda t: abs(t - LOOK_T))
    map_BLHW = model.text_attention(Z[t], t, motion_1LD, LOOK_SIDE)
    seen_B1HW = map_BLHW[:, model.tokens_of(words, words)].mean(1, keepdim=True)
    return (seen_B1HW / seen_B1HW.amax((2, 3), keepdim=True)).expand_as(like)


def _optimised(
    model: ImageBackbone, batch: Batch, params: SamplingParams, Z: dict[int, Tensor], motion_BLD: Tensor
) -> tuple[Tensor, Tensor]:
    """The embedding of each step (eq. 6), embeddings_BSLD, and the image to which they lead.

    Each begins as the one before, and the first as that of the motion's words. What is compared is not the prediction
    with a latent, as eq. 6 is printed, but where the guided step leads with where the inversion came from.
    """
    assert params.inversion_iterations is not None, params
    assert params.inversion_rate is not None, params
    found = list[Tensor]()
    # Autograd takes no tensor that was made in inference mode.
    with torch.inference_mode(False), torch.enable_grad():
        steps = inversion_pairs(params)
        x, psi, text_BLD, g = (one.clone() for one in (Z[steps[0][0]], motion_BLD, batch.text_BLD, batch.guidance_B))
        for number, (s, s_next) in enumerate(steps):
            cond = model.predict_frames(x, s, text_BLD)[0].detach()

            def guided(psi: Tensor, x: Tensor = x, cond: Tensor = cond, s: int = s, s_next: int = s_next) -> Tensor:
                uncond, _ = model.predict_frames(x, s, psi)
                return model.schedule.step(x, uncond + g.view(-1, 1, 1, 1) * (cond - uncond), s, s_next)

            rate = params.inversion_rate * (1 - number / (2 * params.num_inference_steps))
            psi, x = _fitted(guided, psi, Z[s_next].clone(), rate, params.inversion_iterations)
            found.append(psi)
    return torch.stack(found, 1), x


def _fitted(
    leads: Callable[[Tensor], Tensor], psi: Tensor, wanted: Tensor, rate: float, iterations: int
) -> tuple[Tensor, Tensor]:
    """An embedding that leads nearer to what is wanted, by so many steps of Adam at most; and where it leads."""
    psi = psi.clone().requires_grad_()
    adam = torch.optim.Adam([psi], lr=rate)
    reached = leads(psi)
    for _ in range(iterations):
        error = (reached - wanted).square()
        if error.mean() < ENOUGH:
            break
        adam.zero_grad()
        error.sum().backward()  # of a mean, the gradients of a large latent would vanish in half precision
        adam.step()
        reached = leads(psi)
    return psi.detach(), reached.detach()
