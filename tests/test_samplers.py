"""The algorithms against closed forms, hand-made loops and diffusers' own scheduler."""

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import sqrt
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from ti2v_dist.errors import InputError
from ti2v_dist.params import SamplingParams
from ti2v_dist.samplers import load_sampler
from ti2v_dist.samplers.base import Batch
from ti2v_dist.samplers.noise import KeyedNoise, Purpose, gaussian
from ti2v_dist.schedules import PREDICTIONS, VP, Flow, Schedule, timestep_pairs, timesteps
from ti2v_dist.specs import SAMPLERS

LATENT = (4, 3, 5)
WINDOW, K = 4, 3
ALPHAS = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2).cumprod(0)
SCHEDULE = VP(ALPHAS.tolist())
Predict = Callable[[Tensor, int, Tensor], Tensor]


def diffusers_schedule(S: int) -> Any:
    scheduler = DDIMScheduler(
        1000, 0.00085, 0.012, "scaled_linear", None, False, set_alpha_to_one=False, steps_offset=1
    )
    scheduler.set_timesteps(S)
    return scheduler


def mixing(x: Tensor, t: int, text_BLD: Tensor) -> Tensor:
    """A made-up network in which every frame and the text decide every output."""
    return torch.tanh(0.7 * x + 0.4 * x.mean(2, keepdim=True) + text_BLD.mean((1, 2)).view(-1, 1, 1, 1, 1) + t / 1000)


class Info(NamedTuple):
    window: int


class FakeModel:
    """Keeps (t, x_BCFHW) of every call; its "VAE" is a scale of 2 and 8-bit pixels."""

    def __init__(self, network: Predict = mixing, window: int = WINDOW, schedule: Schedule = SCHEDULE) -> None:
        self.network, self.info, self.schedule = network, Info(window), schedule
        self.calls: list[tuple[int, Tensor]] = []

    def predict(self, x_BCFHW: Tensor, t: int, text_BLD: Tensor) -> Tensor:
        assert len(x_BCFHW) == len(text_BLD)
        self.calls.append((t, x_BCFHW.clone()))
        return self.network(x_BCFHW, t, text_BLD)

    def encode_image(self, image_BCHW: Tensor) -> Tensor:
        return torch.cat([image_BCHW, image_BCHW[:, :1]], 1) / 2

    def decode(self, latent_BCHW: Tensor) -> Tensor:
        image = (latent_BCHW[:, :3] * 2 * 127.5 + 127.5).round().clamp(0, 255)
        return image.to(torch.uint8).permute(0, 2, 3, 1)


def keyed(frames: tuple[int, ...] = (1, 7), seeds: tuple[int | None, ...] = (11, 12)) -> KeyedNoise:
    return KeyedNoise(seeds, frames, LATENT)


def run(
    model: FakeModel,
    params: SamplingParams,
    noise: KeyedNoise | None = None,
    g: float = 3.0,
    ahead: Sequence[dict[int, np.ndarray] | None] = ({}, {}),
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Sample with a fixed random queue and texts; returns queue, latents and context latents."""
    random = torch.Generator().manual_seed(0)
    queue = torch.randn(2, LATENT[0], params.context_frames, *LATENT[1:], generator=random)
    text, negative = torch.randn(2, 6, 8, generator=random), torch.randn(2, 6, 8, generator=random)
    batch = Batch(queue, text, negative, torch.tensor([g, g + 1]), noise or keyed(), ahead)
    sample = load_sampler(params.sampler)(model, batch, params)
    return queue, sample.latents_BCFHW, sample.context_BCFHW


def guided_by_hand(x: Tensor, t: int, g: float = 3.0) -> Tensor:
    """What a call of both branches comes to, of the texts that `run` has."""
    random = torch.Generator().manual_seed(0)
    torch.randn(2, LATENT[0], K, *LATENT[1:], generator=random)
    text, negative = torch.randn(2, 6, 8, generator=random), torch.randn(2, 6, 8, generator=random)
    uncond, cond = mixing(x[:2], t, negative), mixing(x[2:], t, text)
    return uncond + torch.tensor([g, g + 1]).view(2, 1, 1, 1, 1) * (cond - uncond)


def params(sampler: str = "ti2v_zero", S: int = 4, U: int = 3, **more: Any) -> SamplingParams:
    return SamplingParams(sampler, S, U, context_frames=K, **more)


@pytest.mark.parametrize("S", [10, 50])
def test_timesteps_are_those_of_diffusers(S: int) -> None:
    assert timesteps(params(S=S)) == diffusers_schedule(S).timesteps.tolist()


def test_t_start_moves_the_first_timestep_only() -> None:
    assert timesteps(params(S=4, t_start=700)) == [700, 467, 234, 1]
    assert timesteps(params(S=1, t_start=500)) == [500]
    for t_start, S in [(999, 999), (999, 600), (7, 7), (10, 7)]:
        ts = timesteps(params(S=S, t_start=t_start))
        assert len(set(ts)) == S
        assert ts == sorted(ts, reverse=True)
        assert (ts[0], ts[-1]) == (t_start, 1)
    assert timestep_pairs(params(S=2, t_start=9)) == [(9, 1), (1, 0)]


@pytest.mark.parametrize("schedule", [SCHEDULE, Flow(), Flow(5.0)], ids=["VP", "Flow", "shifted"])
@pytest.mark.parametrize(("t", "t_prev"), [(901, 801), (501, 1), (1, 0)])
def test_renoise_is_the_forward_process_across_an_interval(schedule: Schedule, t: int, t_prev: int) -> None:
    z, first, second = torch.randn(3, 400_000, generator=torch.Generator().manual_seed(1)).unbind()
    x = schedule.renoise(schedule.q_sample(z, t_prev, first), t, t_prev, second)
    zero, one = torch.zeros(1), torch.ones(1)
    signal, sigma = schedule.q_sample(one, t, zero).item(), schedule.q_sample(zero, t, one).item()
    # ᾱ at t' = 0 is not 1: the last interval of a VP schedule keeps a little noise of its own.
    noise = (x - signal * z) / sigma
    assert noise.std().item() == pytest.approx(1, abs=0.01)
    assert (noise * z).mean().item() == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize(
    "schedule",
    [SCHEDULE, VP(ALPHAS.tolist(), "v_prediction"), Flow(), Flow(3.0)],
    ids=["VP", "v", "Flow", "shifted"],
)
def test_a_step_along_the_very_noise_stays_on_the_forward_process(schedule: Schedule) -> None:
    z, noise = torch.randn(2, 1000, generator=torch.Generator().manual_seed(2)).double().unbind()
    alpha = ALPHAS[700].item()
    v = noise - z if isinstance(schedule, Flow) else sqrt(alpha) * noise - sqrt(1 - alpha) * z
    predicted = noise if schedule is SCHEDULE else v
    stepped = schedule.step(schedule.q_sample(z, 700, noise), predicted, 700, 300)
    torch.testing.assert_close(stepped, schedule.q_sample(z, 300, noise))


def test_a_prediction_that_is_not_known_is_named() -> None:
    with pytest.raises(InputError, match="prediction is 'sample'; choose one of epsilon, v_prediction"):
        VP(ALPHAS.tolist(), "sample")


def test_the_levels_of_flow_are_those_of_diffusers() -> None:
    """A shift of 1 is none; with one they are the scheduler's own at the same share of its way."""
    x, v, noise = torch.randn(3, 50, generator=torch.Generator().manual_seed(3)).unbind()
    plain = Flow()
    for t, t_prev in [(999, 1), (901, 801), (1, 0)]:
        assert plain.sigma(t) == t / 1000
        assert torch.equal(plain.step(x, v, t, t_prev), x + (t_prev - t) / 1000 * v)
        assert torch.equal(plain.q_sample(x, t, noise), (1 - t / 1000) * x + t / 1000 * noise)
    for shift in (0.5, 3.0, 7.0):
        scheduler: Any = FlowMatchEulerDiscreteScheduler(shift=shift)
        assert [Flow(shift).sigma(t) for t in range(1000, 0, -1)] == pytest.approx(scheduler.sigmas.tolist(), abs=1e-6)
        assert 0.99 < Flow(shift).sigma(999) < 1
    with pytest.raises(InputError, match="shift is 0; it must be a finite number above 0"):
        Flow(0)


@pytest.mark.parametrize("schedule", [Flow(), Flow(3.0)], ids=["plain", "shifted"])
def test_ti2v_zero_runs_on_rectified_flow(schedule: Flow) -> None:
    """A model that knows where its latents lie takes the new one there, whatever the noise."""
    queue = run(FakeModel(), params())[0]

    def velocity(x: Tensor, t: int, text: Tensor) -> Tensor:
        known = torch.cat([queue, queue[:, :, -1:]], 2).repeat(2, 1, 1, 1, 1)
        return (x - known) / schedule.sigma(t)

    _, latents, _ = run(FakeModel(velocity, schedule=schedule), params())
    torch.testing.assert_close(latents, queue[:, :, -1:], rtol=1e-4, atol=1e-4)


def test_noise_is_pinned() -> None:
    """Another numpy, key layout or purpose number must not change the videos of a seed unnoticed."""
    expected = [-0.99120766, -0.92406476, 0.17938925, -0.45241556]
    assert gaussian((1, 2, 3, Purpose.INIT), 7, (4,)).tolist() == pytest.approx(expected)
    assert [purpose.value for purpose in Purpose] == [0, 1, 2, 3, 4, 5, 6, 7, 8]


def test_noise_of_a_row_does_not_depend_on_its_batch() -> None:
    alone = KeyedNoise([12], [7], LATENT).draw(Purpose.RENOISE, 2, 1, K)
    beside = KeyedNoise([3, None, 12], [7, 0, 7], LATENT).draw(Purpose.RENOISE, 2, 1, K)
    assert torch.equal(alone[0], beside[2])
    assert not beside[1].any()
    assert not torch.equal(beside[0], beside[2])


def test_every_part_of_the_key_counts_and_nothing_else() -> None:
    first = gaussian((1, 2, 3, 0), 7, (64,))
    assert np.array_equal(first, gaussian((1, 2, 3, 0), 7, (64,)))
    others = [gaussian(key, 7, (64,)) for key in [(2, 2, 3, 0), (1, 3, 3, 0), (1, 2, 4, 0), (1, 2, 3, 1), (2, 1, 3, 0)]]
    others += [gaussian((1, 2, 3, 0), seed, (64,)) for seed in (8, 7 + 2**32, 7 + 2**62)]
    assert not any(np.array_equal(first, other) for other in others)
    many = gaussian((0, 0, 0, 0), 1, (200_000,))
    assert many.dtype == np.float32
    assert abs(many.mean()) < 0.01
    assert many.std() == pytest.approx(1, abs=0.01)


def test_drawing_ahead_changes_no_value() -> None:
    with ThreadPoolExecutor(1) as executor:
        ahead = KeyedNoise((11, 12), (1, 7), LATENT, executor=executor)
        plain, drawn_ahead = run(FakeModel(), params()), run(FakeModel(), params(), ahead)
    assert torch.equal(plain[1], drawn_ahead[1])


@pytest.mark.parametrize(
    ("sampler", "S", "U", "evaluations"),
    [
        ("ti2v_zero", 10, 4, 37),
        ("ti2v_zero", 10, 1, 10),
        ("ti2v_zero", 50, 2, 99),
        ("ti2v_zero_reference", 10, 5, 50),
        ("replace", 10, 4, 10),
        ("infill", 10, 4, 37),
    ],
)
def test_evaluations_per_chunk(sampler: str, S: int, U: int, evaluations: int) -> None:
    model = FakeModel()
    run(model, params(sampler, S, U), g=1.0)
    assert len(model.calls) == evaluations
    assert {len(x) for _, x in model.calls} == {4}  # both branches of two videos in one call, at g = 1 too


def test_a_zero_prediction_in_one_step_is_known_by_hand() -> None:
    model = FakeModel(lambda x, t, text: torch.zeros_like(x))
    queue, latents, context = run(model, params(S=1, t_start=600))
    noise = keyed().draw(Purpose.INIT, 0, 0, 1)
    a0, a600 = ALPHAS[0].item(), ALPHAS[600].item()
    x = sqrt(a600) * queue[:, :, -1:] + sqrt(1 - a600) * noise
    assert torch.allclose(latents, sqrt(a0 / a600) * x, rtol=1e-5, atol=1e-6)
    assert context is None


@pytest.mark.parametrize("sampler", ["ti2v_zero", "ti2v_zero_reference"])
def test_predicting_the_very_noise_ends_at_q_sample_of_the_last_latent(sampler: str) -> None:
    """Known x0: whatever is re-noised in between, the result is q_sample(q[K-1], 0) with the last noise predicted."""
    seen: list[Tensor] = []
    queue = run(FakeModel(), params())[0]

    def very_noise(x: Tensor, t: int, text: Tensor) -> Tensor:
        alpha = ALPHAS[t].item()
        known = torch.cat([queue, queue[:, :, -1:]], 2).repeat(2, 1, 1, 1, 1)
        seen.append((x - sqrt(alpha) * known) / sqrt(1 - alpha))
        return seen[-1]

    _, latents, _ = run(FakeModel(very_noise), params(sampler))
    last_noise = seen[-1][:2, :, -1:]
    assert torch.allclose(latents, SCHEDULE.q_sample(queue[:, :, -1:], 0, last_noise), atol=1e-4)


@pytest.mark.parametrize("init", ["inversion", "gaussian"])
def test_one_iteration_is_plain_ddim(init: str) -> None:
    """Against diffusers' own step, with a context noised by its own `add_noise`."""
    model = FakeModel()
    queue, latents, _ = run(model, params(S=5, U=1, init=init), g=2.0)
    random = torch.Generator().manual_seed(0)
    torch.randn(queue.shape, generator=random)
    text, negative = torch.randn(2, 6, 8, generator=random), torch.randn(2, 6, 8, generator=random)
    scheduler, noise = diffusers_schedule(5), keyed()
    x = noise.draw(Purpose.INIT, 0, 0, 1)
    if init == "inversion":
        x = scheduler.add_noise(queue[:, :, -1:], x, scheduler.timesteps[:1].repeat(2))
    for step, t in enumerate(scheduler.timesteps):
        s_t = scheduler.add_noise(queue, noise.draw(Purpose.CONTEXT, step, 0, K), t.repeat(2))
        window = torch.cat([s_t, x], 2)
        uncond, cond = mixing(window, int(t), negative), mixing(window, int(t), text)
        eps = uncond + torch.tensor([2.0, 3.0]).view(2, 1, 1, 1, 1) * (cond - uncond)
        x = scheduler.step(eps[:, :, -1:], int(t), x, eta=0.0).prev_sample
    assert torch.allclose(latents, x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("S", [2, 5, 20])
def test_one_iteration_of_the_multistep_solver_is_diffusers_own(S: int) -> None:
    """DPM-Solver++(2M) on our timesteps, over the new latent of a window whose context is noised to each t."""
    model = FakeModel()
    queue, latents, _ = run(model, params(S=S, U=1, solver="dpmpp_2m"))
    scheduler: Any = DPMSolverMultistepScheduler(
        1000, 0.00085, 0.012, "scaled_linear", euler_at_final=True, final_sigmas_type="sigma_min"
    )
    scheduler.set_timesteps(timesteps=timesteps(params(S=S)))
    noise = keyed()
    x = SCHEDULE.q_sample(queue[:, :, -1:], timesteps(params(S=S))[0], noise.draw(Purpose.INIT, 0, 0, 1))
    for step, t in enumerate(timesteps(params(S=S))):
        s_t = SCHEDULE.q_sample(queue, t, noise.draw(Purpose.CONTEXT, step, 0, K))
        predicted = guided_by_hand(torch.cat([s_t, x], 2).repeat(2, 1, 1, 1, 1), t)[:, :, K:]
        x = scheduler.step(predicted, torch.tensor(t), x).prev_sample
    torch.testing.assert_close(latents, x, rtol=1e-4, atol=1e-4)
    assert torch.allclose(latents, run(FakeModel(), params(S=S, U=1))[1], atol=1e-3) == (S == 2), "DDIM's is another"


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_multistep_step_with_nothing_before_it_is_ddims(prediction: str) -> None:
    schedule, (x, predicted) = VP(ALPHAS.tolist(), prediction), torch.randn(2, 50).double().unbind()
    for t, t_prev in ((901, 801), (101, 1), (1, 0)):
        stepped, clean = schedule.multistep(x, predicted, t, t_prev, None)
        torch.testing.assert_close(stepped, schedule.step(x, predicted, t, t_prev))
        noise = schedule.noise_between(clean, x, t)
        torch.testing.assert_close(stepped, schedule.q_sample(clean, t_prev, noise))


def test_noising_anew_begins_another_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of U iterations the first goes by the last one of the level before; the others go by nothing."""
    befores, multistep = list[tuple[int, int | None]](), VP.multistep

    def noted(self: VP, x: Tensor, predicted: Tensor, t: int, t_prev: int, before: Any) -> Any:
        befores.append((t, before and before[0]))
        return multistep(self, x, predicted, t, t_prev, before)

    monkeypatch.setattr(VP, "multistep", noted)
    run(FakeModel(), params(S=4, U=2, solver="dpmpp_2m"))
    assert befores == [(751, None), (751, None), (501, 751), (501, None), (251, 501), (251, None), (1, None)]


def test_rectified_flow_has_no_multistep_solver() -> None:
    with pytest.raises(InputError, match="solver is of several steps, and the model one of rectified flow: choose dd"):
        run(FakeModel(schedule=Flow()), params(solver="dpmpp_2m"))
    with pytest.raises(InputError, match="solver is 'dpmpp_2m'; sampler 'ti2v_zero_causal' does not read it"):
        params("ti2v_zero_causal", solver="dpmpp_2m")
    with pytest.raises(InputError, match="solver is 'euler'; choose one of ddim, dpmpp_2m"):
        params(solver="euler")


def test_context_noise_is_drawn_once_per_timestep_and_only_the_new_frame_moves() -> None:
    model = FakeModel()
    queue, _, _ = run(model, params(S=4, U=3))
    assert Counter(t for t, _ in model.calls) == {751: 3, 501: 3, 251: 3, 1: 1}
    noise = keyed()
    for step, t in enumerate([751, 501, 251, 1]):
        windows = [x[:2] for called_at, x in model.calls if called_at == t]
        s_t = SCHEDULE.q_sample(queue, t, noise.draw(Purpose.CONTEXT, step, 0, K))
        assert all(torch.equal(window[:, :, :K], s_t) for window in windows)
        assert len({window[:, :, K:].sum().item() for window in windows}) == len(windows)


def test_x_is_renoised_from_t_prime_back_to_t() -> None:
    model = FakeModel(lambda x, t, text: 0.1 * x)
    run(model, params(S=2, U=2))
    (_, first), (_, second), (t_last, last) = model.calls
    x_prev = SCHEDULE.step(first[:2, :, K:], 0.1 * first[:2, :, K:], 501, 1)
    expected = SCHEDULE.renoise(x_prev, 501, 1, keyed().draw(Purpose.RENOISE, 0, 1, 1))
    assert torch.allclose(second[:2, :, K:], expected, atol=1e-5)
    # The last iteration's x' is what the next timestep starts from.
    assert t_last == 1
    x = SCHEDULE.step(second[:2, :, K:], 0.1 * second[:2, :, K:], 501, 1)
    assert torch.allclose(last[:2, :, K:], x, atol=1e-5)


def test_the_new_latents_of_a_stride_begin_from_the_last_one_and_go_through_beside_each_other() -> None:
    model = FakeModel(window=5)
    queue, latents, _ = run(model, params(S=2, U=2, stride=2))
    assert latents.shape[2] == 2
    (first_t, first), (_, second), _ = model.calls
    fresh = keyed().draw(Purpose.INIT, 0, 0, 2)
    assert torch.equal(first[:2, :, K:], SCHEDULE.q_sample(queue[:, :, -1:], first_t, fresh))
    stepped = SCHEDULE.step(first[:2, :, K:], guided_by_hand(first, first_t)[:, :, K:], 501, 1)
    again = SCHEDULE.renoise(stepped, 501, 1, keyed().draw(Purpose.RENOISE, 0, 1, 2))
    torch.testing.assert_close(second[:2, :, K:], again)


def test_unconditional_rows_come_first() -> None:
    rows = torch.tensor([1.0, 2.0, 10.0, 20.0]).view(4, 1, 1)
    model = FakeModel(lambda x, t, text: text[:, :1, :1, None, None].expand_as(x))
    start, g = keyed().draw(Purpose.INIT, 0, 0, 1), torch.tensor([3.0, 5.0])
    settings = params(S=1, t_start=400, init="gaussian")
    batch = Batch(torch.zeros(2, 4, K, 3, 5), rows[2:], rows[:2], g, keyed(), [{}, {}])
    sample = load_sampler("ti2v_zero")(model, batch, settings)
    eps = torch.tensor([1 + 3 * 9.0, 2 + 5 * 18.0]).view(2, 1, 1, 1, 1)
    expected = SCHEDULE.step(start, eps, 400, 0)
    assert torch.allclose(sample.latents_BCFHW, expected, atol=1e-4)


def test_reference_steps_and_renoises_the_whole_window() -> None:
    model = FakeModel()
    queue, _, _ = run(model, params("ti2v_zero_reference", S=3, U=2), g=1.0)
    noise, pairs = keyed(), timestep_pairs(params(S=3))
    assert [t for t, _ in model.calls] == [667, 667, 334, 334, 1, 1]  # re-noised at the last timestep too
    for step, (t, t_prev) in enumerate(pairs):
        first, second = (x[:2] for called_at, x in model.calls if called_at == t)
        assert torch.equal(first[:, :, :K], SCHEDULE.q_sample(queue, t, noise.draw(Purpose.CONTEXT, step, 0, K)))
        s_prev = SCHEDULE.q_sample(queue, t_prev, noise.draw(Purpose.NEXT_CONTEXT, step, 0, K))
        again = noise.draw(Purpose.RENOISE, step, 1, K + 1)
        assert torch.allclose(second[:, :, :K], SCHEDULE.renoise(s_prev, t, t_prev, again[:, :, :K]), atol=1e-6)


def test_reference_slides_encoded_pixels() -> None:
    model = FakeModel()
    _, latents, context = run(model, params("ti2v_zero_reference"))
    pixels = model.decode(latents[:, :, 0]).permute(0, 3, 1, 2).float() / 127.5 - 1
    assert context is not None
    assert torch.equal(context[:, :, 0], model.encode_image(pixels))
    assert not torch.equal(context, latents)


def test_reference_starts_from_pure_noise_or_the_inverted_latent() -> None:
    for init, t_start in [("gaussian", 800), ("inversion", 650)]:
        model = FakeModel()
        queue, _, _ = run(model, params("ti2v_zero_reference", init=init, t_start=t_start))
        t, x = model.calls[0]
        fresh = keyed().draw(Purpose.INIT, 0, 0, 1)
        inverted = SCHEDULE.q_sample(queue[:, :, -1:], t_start, fresh)
        assert t == t_start
        assert torch.equal(x[:2, :, K:], fresh if init == "gaussian" else inverted)


def test_replace_makes_one_window_whose_first_frame_is_replaced_at_every_step() -> None:
    model = FakeModel(window=6)
    queue, latents, context = run(model, params("replace", S=5, U=4))
    assert (latents.shape[2], context) == (5, None)
    noise = keyed()
    for step, (t, x) in enumerate(model.calls):
        z_t = SCHEDULE.q_sample(queue[:, :, -1:], t, noise.draw(Purpose.CONTEXT, step, 0, 1))
        assert x.shape[2] == 6
        assert torch.equal(x[:2, :, :1], z_t)
    assert torch.equal(model.calls[0][1][:2, :, 1:], noise.draw(Purpose.INIT, 0, 0, 5))


def given(*places: int) -> dict[int, np.ndarray]:
    """Latents that are given ahead, each another one."""
    return {place: np.random.default_rng(place).standard_normal(LATENT, np.float32) for place in places}


def test_infilling_one_latent_with_none_given_is_ti2v_zero() -> None:
    ours, plain = (run(FakeModel(), params(sampler)) for sampler in ("infill", "ti2v_zero"))
    assert torch.equal(ours[1], plain[1])


def test_infilling_makes_one_latent_after_the_other_with_what_is_known_around_it() -> None:
    """Six places of which two are given: each call sees the queue, what is made, and the nearest known elsewhere."""
    ahead, W = [given(1, 3), None], 7
    model = FakeModel(window=W)
    queue, latents, context = run(model, params("infill", S=2, U=2), ahead=ahead)
    assert (latents.shape[2], context) == (4, None)
    assert not latents[1].any(), "an empty slot"
    for place, latent_CHW in ahead[0].items():
        assert np.array_equal(latents[0, :, place], latent_CHW)
    made, known = latents[0], torch.cat([queue[0], latents[0]], 1)
    fills = {0: [0, 1, 2, 3, 4, 4, 6], 2: [0, 1, 2, 3, 4, 5, 6]}  # of place 2, the earlier of its two neighbours
    for number, (place, sources) in enumerate(fills.items()):
        calls, noise, at = model.calls[3 * number : 3 * number + 3], keyed().later(place), K + place
        assert [t for t, _ in calls] == [501, 501, 1]
        before = known[:, [*sources[:at]]]
        behind = known[:, [*sources[at + 1 :]]]
        for step, (t, x) in ((0, calls[0]), (0, calls[1]), (1, calls[2])):
            before_t = SCHEDULE.q_sample(before, t, noise.draw(Purpose.CONTEXT, step, 0, at)[0])
            behind_t = SCHEDULE.q_sample(behind, t, noise.draw(Purpose.AHEAD, step, 0, W - at - 1)[0])
            assert torch.equal(x[0, :, :at], before_t)
            assert torch.equal(x[0, :, at + 1 :], behind_t)
        fresh = noise.draw(Purpose.INIT, 0, 0, 1)[0]
        assert torch.equal(calls[0][1][0, :, at : at + 1], SCHEDULE.q_sample(before[:, -1:], 501, fresh))
    assert made.isfinite().all()
    assert len(model.calls) == 6


def test_infilling_without_inversion_starts_from_noise() -> None:
    model = FakeModel(window=5)
    run(model, params("infill", init="gaussian"), ahead=[given(1), given(1)])
    assert torch.equal(model.calls[0][1][:2, :, K : K + 1], keyed().draw(Purpose.INIT, 0, 0, 1))


def test_the_noise_of_a_later_frame_is_that_frames() -> None:
    later, its_own = keyed((1, 7)).later(2), keyed((3, 9))
    assert torch.equal(later.draw(Purpose.INIT, 0, 0, 2), its_own.draw(Purpose.INIT, 0, 0, 2))


def test_what_is_given_to_one_video_is_nothing_to_its_neighbour() -> None:
    alone = run(FakeModel(window=6), params("infill"), ahead=[given(2), None])[1]
    beside = run(FakeModel(window=6), params("infill"), ahead=[given(2), given(0, 1)])[1]
    assert torch.equal(alone[0], beside[0])
    assert not torch.equal(alone[1], beside[1])


def test_every_sampler_has_its_function() -> None:
    functions = {name: load_sampler(name) for name in SAMPLERS}
    assert functions.pop("i2v_zero") is functions["text2video_zero"], "the same, of an image"
    assert functions.pop("ti2v_zero_causal") is functions["ti2v_zero"], "the same, of another queue"
    assert len(set(functions.values())) == len(functions)
    assert {function.__module__.rpartition(".")[0] for function in functions.values()} == {"ti2v_dist.samplers"}
