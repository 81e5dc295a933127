"""What a setting of a video is. A setting is declared once, at its field in `video.py`, and all else follows from that.

The sections of the settings file, the columns of a manifest, what a row gets that does not say, what the videos of a
batch must agree in, and what is refused: all are derived, so that a new setting is one field.
"""

from collections.abc import Callable, Collection
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import cache
from typing import Any, get_args

from ti2v_dist.errors import InputError

_KEY = "setting"


def check_choice(name: str, value: object, choices: Collection[str]) -> None:
    """Raise `ValueError` naming the value and the choices unless `value` is one of them."""
    if value not in tuple(choices):  # a list cannot be looked up in a mapping
        raise InputError(f"{name} is {value!r}; choose one of {', '.join(choices)}")


def check_range(name: str, value: float, low: float, high: float | None = None) -> None:
    """Raise `ValueError` naming the value and its range unless low <= value <= high."""
    if not (value >= low and (high is None or value <= high)):
        limit = f"at least {low}" if high is None else f"{low} to {high}"
        raise InputError(f"{name} is {value!r}; it must be {limit}")


@dataclass(frozen=True)
class Setting:
    """One setting. From `name` on, all is its field's."""

    about: str
    low: float | None = None
    high: float | None = None
    above: float | None = None  # any finite number beyond this one
    choices: Collection[str] = ()  # looked at when a value is checked: a registry may have grown
    kept: Callable[[Any], Any] | None = None  # 9 and 9.0 are one value, and must be the same bytes in every hash
    of_model: Callable[[Any], Any] | None = None  # its default, from the model's `ModelInfo`
    # Its default, from the `SamplerSpec`, the model's window and the new latents of a window.
    of_sampler: Callable[[Any, int, int], Any] | None = None
    is_column: bool = True  # a row of a manifest may give it
    is_shared: bool = True  # the videos of one batch must agree in it
    usual: Any = None  # its value where the sampler reads it and nobody chose, if only some samplers have it
    is_some: bool = False  # then it is None elsewhere, and no hash knows of it
    off: Any = None  # the value that says what None says, and is kept as None
    name: str = ""
    kind: type = str
    default: Any = None
    is_optional: bool = False  # None is a value

    def checked(self, value: Any) -> Any:
        """The value as it is kept; `ValueError` names one that cannot be used."""
        if value is None and self.is_optional:
            return None
        value = self.kept(value) if self.kept else value
        if self.off is not None and value == self.off:
            return None
        if self.choices:
            check_choice(self.name, value, self.choices)
        if self.low is not None:
            check_range(self.name, value, self.low, self.high)
        if self.above is not None and not self.above < value < float("inf"):
            raise InputError(f"{self.name} is {value!r}; it must be a finite number above {self.above:g}")
        return value


def declared(about: str, **more: Any) -> dict[str, Setting]:
    """The `metadata` of a dataclass's field that is a setting."""
    return {_KEY: Setting(about, **more)}


def setting(default: Any, about: str, **more: Any) -> Any:
    """A dataclass's field that is a setting."""
    return field(default=default, metadata=declared(about, **more))


def way_out(off: Any, about: str, **more: Any) -> Any:
    """A field that is a setting of some samplers only, and not of a video made in the usual way: that is `off`."""
    return setting(None, f"{about}; by default {off}", is_some=True, off=off, **more)


def some_setting(usual: Any, about: str, **more: Any) -> Any:
    """A field that is a setting of some samplers only, `usual` where nobody chose."""
    return setting(None, about, is_some=True, usual=usual, **more)


@cache
def settings_of(cls: type) -> dict[str, Setting]:
    """The settings among a dataclass's fields, by name and in their order."""
    found = {}
    for own in fields(cls):
        if _KEY in own.metadata:
            kind = next((kind for kind in get_args(own.type) if kind is not type(None)), own.type)
            derived: dict[str, Any] = {"name": own.name, "kind": kind, "is_optional": own.default is None}
            default = None if own.default is MISSING else own.default
            found[own.name] = replace(own.metadata[_KEY], **derived, default=default)
    return found


def check_settings(owner: Any) -> None:
    """Check all settings of a frozen dataclass, and put each into the form in which it is kept."""
    for name, one in settings_of(type(owner)).items():
        object.__setattr__(owner, name, one.checked(getattr(owner, name)))


def plain_settings(owner: Any) -> dict[str, Any]:
    """All settings of a dataclass, without those of other samplers."""
    return {
        name: value
        for name, one in settings_of(type(owner)).items()
        if (value := getattr(owner, name)) is not None or not one.is_some
    }


def shared(owner: Any) -> dict[str, Any]:
    """Those settings in which the videos of one batch must agree."""
    return {name: getattr(owner, name) for name, one in settings_of(type(owner)).items() if one.is_shared}
