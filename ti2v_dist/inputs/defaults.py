"""What a row of a manifest gets where it does not say."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from ti2v_dist.canonical import canonical_json
from ti2v_dist.config import RunConfig
from ti2v_dist.limits import ClipLimits
from ti2v_dist.params import SamplingParams
from ti2v_dist.specs import FRAME_BY_FRAME, SAMPLERS, SamplerSpec, check_needs
from ti2v_dist.video import SETTINGS, VideoRequest

if TYPE_CHECKING:
    from ti2v_dist.models.base import ModelInfo

SEED_BITS = 53
REMEMBERED = 1000
_OF_VIDEO = frozenset(one.name for one in fields(VideoRequest))
_OF_SAMPLING = frozenset(one.name for one in fields(SamplingParams))


@dataclass(frozen=True)
class RequestDefaults:
    """The model's `Limits`, and the run's settings by name; None where a row's sampler decides.

    `seed` is the run's, from which a row's own is derived.
    """

    window: int
    vae_factor: int
    settings: Mapping[str, Any]
    seed: int = 0
    allow_http: bool = False
    images_below: tuple[str, ...] = ()
    frames_per_latent: int = 1
    capabilities: frozenset[str] = FRAME_BY_FRAME
    size_multiple: int = 1
    clip: ClipLimits | None = None
    remembered: dict[str, tuple[SamplingParams, dict[str, Any]]] = field(default_factory=dict, compare=False)

    def spec(self, sampler: Any = None) -> SamplerSpec:
        """What is known of a row's sampler, by default the run's. Raises `ValueError` for a name that there is not."""
        one = SETTINGS["sampler"]
        name = one.checked(self.settings.get("sampler", one.default) if sampler is None else sampler)
        check_needs(name, self.capabilities)
        return SAMPLERS[name]

    def request(self, **given: Any) -> VideoRequest:
        """A request with the run's settings but for `given`, field names of `VideoRequest` and `SamplingParams`.

        Raises `ValueError` naming the bad value. `image` must be absolute; without a seed one is derived from the id.
        """
        params, settings = self._settings({name: value for name, value in given.items() if name in SETTINGS})
        values = {name: value for name, value in given.items() if name in _OF_VIDEO} | settings
        if "seed" not in given:
            values["seed"] = derive_seed(self.seed, given["id"])
        request = VideoRequest(**values, params=params)
        request.check_against_model(self)
        return request

    def _settings(self, given: dict[str, Any]) -> tuple[SamplingParams, dict[str, Any]]:
        """What is sampled, and the video's own settings. Rows mostly agree in both: the newest are remembered."""
        key = repr(given)
        if key not in self.remembered:
            values = {**self.settings, **given}
            spec = self.spec(values.get("sampler"))
            stride = values.get("stride") if "stride" in spec.reads else None
            for name, one in SETTINGS.items():
                if one.of_sampler and values.get(name) is None:
                    values[name] = one.of_sampler(spec, self.window, stride or 1)
                if one.is_some and name not in spec.reads:
                    values[name] = None  # the run's, or the row's, which is warned of
            params = SamplingParams(**{name: value for name, value in values.items() if name in _OF_SAMPLING})
            if len(self.remembered) >= REMEMBERED:
                self.remembered.clear()
            self.remembered[key] = params, {name: value for name, value in values.items() if name in _OF_VIDEO}
        return self.remembered[key]


def request_defaults(config: RunConfig, info: "ModelInfo") -> RequestDefaults:
    """What a row gets for a column that it does not have: what the run says, else the model or the sampler."""
    settings = {}
    for name, one in SETTINGS.items():
        chosen = getattr(config.sampling, name)
        settings[name] = one.of_model(info) if chosen is None and one.of_model else chosen
    return RequestDefaults(
        window=info.window,
        vae_factor=info.vae_factor,
        settings=settings,
        seed=config.seed,
        allow_http=config.allow_http,
        images_below=config.images_below,
        frames_per_latent=info.frames_per_latent,
        capabilities=info.capabilities,
        size_multiple=info.size_multiple,
        clip=info.clip,
    )


def derive_seed(run_seed: int, video_id: str) -> int:
    """A video's seed from its run's seed and its id: the first 53 bits of the sha256 of both.

    53 bits, since the seed is written into JSON, and many readers of JSON hold numbers as doubles.
    """
    digest = hashlib.sha256(canonical_json([run_seed, video_id])).digest()
    return int.from_bytes(digest[:8], "big") >> (64 - SEED_BITS)
