"""How far seeds alone move the scores: today's recipe, its head-only stage, shortened and shorter still."""

from __future__ import annotations

from experiments import UP_TO_BEV, Experiment

HEADS = {"model.frozen": list(UP_TO_BEV)}
SHORT_WARM_UP = {"param_scheduler.0.end": 20, "param_scheduler.1.begin": 20}

EXPERIMENTS = [
    Experiment("heads", 600, HEADS, stored_features=True),
    Experiment("heads, short", 100, {**HEADS, **SHORT_WARM_UP}, control="heads, short"),
    Experiment("as shipped", 0),
]
