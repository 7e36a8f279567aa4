"""How far seeds alone move the scores: today's recipe, its head-only stage shortened."""

from __future__ import annotations

from experiments import UP_TO_BEV, Experiment

EXPERIMENTS = [
    Experiment("heads", 600, {"model.frozen": list(UP_TO_BEV)}),
    Experiment("as shipped", 0),
]
