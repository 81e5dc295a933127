"""What a video shows: one text, or a prompt schedule, whose texts each hold from a frame on."""

import json
import re
from typing import Any, TypedDict

from ti2v_dist.errors import InputError


class PromptFrom(TypedDict):
    """An entry of a prompt schedule; `from_frame` is the first generated frame under its text."""

    from_frame: int
    prompt: str


Prompt = str | list[PromptFrom]


def check_prompt(prompt: Any, may_be_empty: bool = False) -> Prompt:
    """The prompt as it is stored: a schedule of one text is that text. Raises `ValueError` naming what is wrong.

    A text may begin after the video's last frame: it waits there for the video to be extended.
    """
    if not isinstance(prompt, list):
        return _check_text("prompt", prompt, may_be_empty)
    if not prompt:
        raise InputError("prompt is []; give a text, or a list of {from_frame, prompt}")
    last = -1
    for number, entry in enumerate(prompt, start=1):
        name = f"prompt {number} of the schedule"
        if not isinstance(entry, dict) or set(entry) != {"from_frame", "prompt"}:
            raise InputError(f"{name} is {entry!r}; each must have from_frame and prompt, and nothing else")
        frame = entry["from_frame"]
        if type(frame) is not int or frame <= last or (number == 1 and frame != 0):
            rule = "0 in the first" if number == 1 else f"a whole number above {last}"
            raise InputError(f"{name} has from_frame {frame!r}; it must be {rule}")
        _check_text(name, entry["prompt"], may_be_empty)
        last = frame
    return prompt[0]["prompt"] if len(prompt) == 1 else prompt


def read_prompt(prompt: Any) -> Any:
    """A schedule that stands as JSON text in a cell of a table, parsed; anything else as it is."""
    if not isinstance(prompt, str) or not prompt.lstrip().startswith("["):
        return prompt
    try:
        parsed = json.loads(prompt)
    except (ValueError, RecursionError):
        return prompt  # "[a] cat" is a text
    return parsed if isinstance(parsed, list) else prompt


def entries(prompt: Prompt) -> list[PromptFrom]:
    """The prompt as a schedule, of one entry where it is one text."""
    return [{"from_frame": 0, "prompt": prompt}] if isinstance(prompt, str) else prompt


def number_at(prompt: Prompt, frame: int) -> int:
    """Which of the texts holds for a frame, counted from 0."""
    return sum(entry["from_frame"] <= frame for entry in entries(prompt)) - 1


def changed(prompt: Prompt, from_frame: int, text: str) -> Prompt:
    """The same up to `from_frame`, and `text` from there on."""
    kept = [entry for entry in entries(prompt) if entry["from_frame"] < from_frame]
    return check_prompt([*kept, {"from_frame": from_frame, "prompt": text}], may_be_empty=True)


def caption(prompt: Prompt) -> str:
    """One line for people: "a cat; from frame 41: a dog"."""
    first, *later = entries(prompt)
    return "; ".join([first["prompt"], *(f"from frame {entry['from_frame']}: {entry['prompt']}" for entry in later)])


_NO_MOTION = "morning|evening|building|ceiling|painting|clothing|lightning|anything|nothing|something|everything|during"
_NO_MOTION += "|thing|spring|string|wedding|earring|pudding|sibling|duckling|viking|darling|being"
_NO_MOTION += "|amazing|stunning|charming|interesting|surprising|striking|outstanding|living|sterling"
_VERB = (
    "moves|goes|runs|walks|flies|jumps|dances|swims|falls|rises|slides|turns|spins|rotates|rolls|swings|climbs|sails"
)
_VERB += (
    "|floats|drifts|flows|blows|shakes|stays|stands|at rest|rests|drives|rides|waves|smiles|laughs|nods|opens|closes"
)
_VERB += (
    "|flickers|burns|melts|grows|shrinks|bounces|crawls|marches|glides|roll|move|go|walk|run|fly|jump|swim|turn|spin"
)
_WHERE = "left|right|up|down|(?:up|down|for|back)wards?|away|around|round|across|along|over|off|out|still|fast"
_MOTION = re.compile(
    rf"\b(?:not )?(?:(?!(?:{_NO_MOTION})\b)[a-z]{{2,}}ing|{_VERB})\b"
    rf"(?:\s+(?:and )?(?:to the )?(?:{_WHERE}|[a-z]+ly)\b)*"
)


def motion_words(text: str) -> str:
    """The words of a text that say what moves and how, in their order; "" where none is known.

    Those are words in -ing and a few verbs, a "not" before one, and the directions and words in -ly that follow it:
    "moving to the left" of "a red circle moving to the left on a table".
    """
    return " ".join(_MOTION.findall(text.lower()))


def _check_text(name: str, text: Any, may_be_empty: bool) -> str:
    if not isinstance(text, str) or not (text.strip() or may_be_empty):
        shown = "empty" if isinstance(text, str) else repr(text)
        raise InputError(f"{name} is {shown}; describe what the video shows")
    return text
