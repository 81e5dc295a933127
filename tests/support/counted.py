"""What a window model is asked, whichever way it is called."""

from typing import Any

import pytest
from torch import Tensor


def rows_of(model: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Fills with the rows that are predicted and the frames of the window, of each call of the model from now on."""
    seen = list[tuple[int, int]]()
    if hasattr(model, "under"):
        under = model.under

        def counted(text: Tensor, recalls: bool = False) -> Any:
            predict = under(text, recalls)
            return lambda x, t, last: (seen.append((len(text), x.shape[2])), predict(x, t, last))[1]

        monkeypatch.setattr(model, "under", counted)
    else:
        predict = model.predict
        seen_by = lambda x, t, text: (seen.append((len(x), x.shape[2])), predict(x, t, text))[1]  # noqa: E731
        monkeypatch.setattr(model, "predict", seen_by)
    return seen
