"""One stage of a training: an optimisation that goes on where it stopped, and what the whole training is to be."""

import copy
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ti2v_dist.training.muon import Muon


@dataclass(frozen=True)
class StageConfig:
    """What every training has: the rates of its optimizers, and how often it saves and tells, in steps."""

    seed: int = 0
    adamw_lr: float = 2e-3
    muon_lr: float = 2e-3
    text_dropout: float = 0.1
    save_every: int = 250
    log_every: int = 50


@dataclass(frozen=True)
class TrainConfig(StageConfig):
    """One training of the video model: lengths in optimiser steps, sizes in clips or frames."""

    vae_steps: int = 5000
    vae_batch: int = 32
    trajectories: int = 5000
    trajectory_frames: int = 24
    text_steps: int = 1000
    text_batch: int = 256
    unet_steps: int = 7600
    unet_batch: int = 16


def _rate(step: int, steps: int, warmup: int = 100, decay: float = 0.1) -> float:
    """Share of the learning rate: up, level, and down to zero over the last `decay` of all steps."""
    return min(1.0, (step + 1) / warmup, (1 - step / steps) / decay)


def _optimizers(modules: Any, adamw_lr: float, muon_lr: float) -> list[torch.optim.Optimizer]:
    """AdamW; with a `muon_lr`, Muon for the inner matrices."""
    ends = ("conv_in.weight", "conv_out.weight")
    trained = {name: p for name, p in modules.named_parameters() if p.requires_grad}
    inner = {name for name, p in trained.items() if muon_lr and p.ndim > 1 and not name.endswith(ends)}
    other = [p for name, p in trained.items() if name not in inner]
    adamw = torch.optim.AdamW(other, adamw_lr, betas=(0.9, 0.99), weight_decay=1e-3)
    return [adamw, *([Muon([p for name, p in trained.items() if name in inner], muon_lr)] if inner else [])]


class Stage:
    """One resumable optimisation: modules, their running average, optimizers, a log that goes on where it stopped."""

    def __init__(
        self, folder: Path, name: str, modules: Any, steps: int, config: StageConfig, muon_lr: float = 0.0
    ) -> None:
        self.path, self.name, self.steps, self.config = folder / f"{name}.pt", name, steps, config
        self.modules, self.average = modules, copy.deepcopy(modules).requires_grad_(False)
        self.optimizers = _optimizers(modules, config.adamw_lr, muon_lr)
        self.step, self.seconds, self.log = 0, 0.0, []
        if self.path.exists():
            state = torch.load(self.path, weights_only=True)
            self.step, self.seconds, self.log = state["step"], state["seconds"], state["log"]
            self.modules.load_state_dict(state["modules"])
            self.average.load_state_dict(state["average"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)

    def run(self, loss_at: Callable[[int], Tensor]) -> None:
        """Minimise `loss_at(step)` up to the last step, saving and averaging on the way."""
        started, recent = time.perf_counter() - self.seconds, []
        while self.step < self.steps:
            loss = loss_at(self.step)
            self.modules.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.modules.parameters(), 1.0)
            for optimizer in self.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = optimizer.defaults["lr"] * _rate(self.step, self.steps)
                optimizer.step()
            self._accumulate(min(0.998, (1 + self.step) / (10 + self.step)))
            recent.append(loss.detach())
            self.step += 1
            self.seconds = time.perf_counter() - started
            if self.step % self.config.log_every == 0:
                row = {"step": self.step, "loss": round(torch.stack(recent).mean().item(), 5)}
                row["seconds"] = round(self.seconds)
                self.log.append(row)
                recent.clear()
                print(self.name, json.dumps(row), flush=True)
            if self.step % self.config.save_every == 0 or self.step == self.steps:
                self.save()

    @torch.no_grad()
    def _accumulate(self, decay: float) -> None:
        for average, value in zip(self.average.parameters(), self.modules.parameters(), strict=True):
            average.lerp_(value, 1 - decay)

    def save(self) -> None:
        """Write the stage's state to a temporary file and put it in place."""
        state = {
            "step": self.step, "seconds": self.seconds, "log": self.log,
            "modules": self.modules.state_dict(), "average": self.average.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }  # fmt: skip
        temporary = self.path.with_suffix(".tmp")
        torch.save(state, temporary)
        temporary.replace(self.path)
