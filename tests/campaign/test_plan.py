"""The plan is pure: it is driven here by sets of names, no disk."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mofal.campaign import paths, plan
from mofal.campaign.config import CampaignConfig
from mofal.campaign.loading import parse_config


def make(**changes: Any) -> CampaignConfig:
    content: dict[str, Any] = {
        "name": "x",
        "seed": 1,
        "systems": {"a": {"build": "S_pr", "explore": False}, "b": {"build": "S_ld"}},
        "seed_data": {"perturbed": {"system": "a", "frames": 2}},
        "cycles": 3,
        "holdout": {"frames": 1},
        "control": True,
    }
    return parse_config({**content, **changes})


def drive(config: CampaignConfig, pick: Any) -> list[plan.Step]:
    """Do steps one at a time, `pick` choosing among the ready ones, until nothing is left."""
    steps = plan.steps(config)
    done: set[str] = set()
    order = []
    while plan.unfinished(steps, done.__contains__):
        ready = plan.ready(steps, done.__contains__)
        assert ready, "nothing is ready and something is left"
        step = ready[pick(len(ready))]
        done.add(step.makes)
        order.append(step)
    return order


@given(data=st.data())
def test_steps__any_order_of_ready_steps_reaches_the_end(data: st.DataObject) -> None:
    config = make(systems={k: {"build": "S_ld"} for k in "abc"})
    order = drive(config, lambda n: data.draw(st.integers(0, n - 1)))
    assert len(order) == len(plan.steps(config))
    made = [s.makes for s in order]
    for k, step in enumerate(order):
        assert set(step.needs) <= set(made[:k])


def test_steps__make_each_path_once() -> None:
    made = [s.makes for s in plan.steps(make())]
    assert len(made) == len(set(made))


def test_steps__systems_do_not_wait_for_each_other() -> None:
    config = make(systems={"a": {"build": "S_ld"}, "b": {"build": "S_ld"}})
    steps = plan.steps(config)
    done = {paths.place(0, "samples.zarr"), paths.place(0, "labels.zarr"), paths.model(0)}
    done |= {paths.place(1, "density.zarr"), paths.place(1, "a", "samples.zarr")}
    ready = {(s.stage, s.system) for s in plan.ready(steps, done.__contains__)}
    assert ("select", "a") in ready  # though b still walks
    assert ("walk", "b") in ready


def test_steps__training_learns_only_after_the_proposal_was_tested() -> None:
    for step in plan.steps(make()):
        if step.stage == "train" and step.cycle > 0:
            assert paths.place(step.cycle, "proposal.zarr") in step.needs


def test_control__starts_from_the_seed_model_and_follows_cycle_by_cycle() -> None:
    controls = [s for s in plan.steps(make()) if s.stage == "control"]
    assert controls[0].needs == (paths.model(0), paths.model(1))
    assert controls[2].needs == (controls[1].makes, paths.model(3))


@pytest.mark.parametrize(
    ("errors", "expected"),
    [({}, 3), ({1: 200.0, 2: 90.0}, 3), ({1: 200.0, 2: 70.0}, 2), ({1: 10.0}, 1), ({1: None}, 3)],
)
def test_last_cycle__first_accurate_proposal_ends_the_campaign(
    errors: dict[int, float | None], expected: int
) -> None:
    config = make(stop={"proposal_mae_p95_meV_per_A": 80})
    assert plan.last_cycle(config, errors.get) == expected


def test_is_final__only_the_last_cycle_trains_to_the_full_criterion() -> None:
    config = make()
    assert [plan.is_final(config, c, 3) for c in range(4)] == [False, False, False, True]
    assert not plan.is_final(config, 0, 0)


def test_steps__without_cycles_train_once_and_judge() -> None:
    stages = [s.stage for s in plan.steps(make(cycles=0, control=False))]
    assert stages.count("train") == 1
    assert "walk" not in stages
    assert stages.count("judge") == 2
