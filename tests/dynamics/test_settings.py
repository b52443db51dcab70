"""Settings refuse what cannot be meant, and walks grow with the cycles."""

from __future__ import annotations

import pytest

from mofal.dynamics import WalkSettings, walk_length
from mofal.errors import ConfigError


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ensemble": "nve"}, "ensemble is 'nve'"),
        ({"temperature_K": -1.0}, "temperature_K is -1.0"),
        ({"temperature_K": float("nan")}, "temperature_K is nan"),
        ({"timestep_fs": 0.0}, "timestep_fs is 0.0"),
        ({"length_fs": "500"}, "length_fs is '500'"),
        ({"max_temperature": 1.0}, "factor larger than 1"),
        ({"max_stretch": 0.9}, "factor larger than 1"),
        ({"sample_every": 0}, "whole number"),
        ({"checkpoint_every": 2.5}, "whole number"),
        ({"ramp_cycles": True}, "whole number"),
        ({"pressure_GPa": (1.0, -1.0)}, r"write pressure_GPa=\(-1.0, 1.0\)"),
        ({"pressure_GPa": (1.0,)}, "a number or a pair"),
        ({"pressure_GPa": "low"}, "a number or a pair"),
        ({"barostat_fs": 500.0}, "write barostat_fs=100"),
        ({"length_fs": 0.1, "ensemble": "nvt"}, "shorter than one step"),
    ],
)
def test_walk_settings__refuses(change, message):
    with pytest.raises(ConfigError, match=message):
        WalkSettings(**change)


def test_walk_settings__pressure_range():
    assert WalkSettings().pressure_range == (-1.5, 1.5)
    assert WalkSettings(pressure_GPa=0.2).pressure_range == (0.2, 0.2)


def test_walk_length__grows_to_full():
    settings = WalkSettings(length_fs=500.0, timestep_fs=0.5, ramp_cycles=4)
    lengths = [walk_length(cycle, settings) for cycle in range(1, 7)]
    assert lengths == [125.0, 250.0, 375.0, 500.0, 500.0, 500.0]


def test_walk_length__whole_steps():
    settings = WalkSettings(length_fs=500.0, timestep_fs=0.5, ramp_cycles=3)
    assert walk_length(1, settings) == 166.5
    assert walk_length(1, settings) / 0.5 == settings.n_steps(walk_length(1, settings))


def test_walk_length__no_cycle_zero():
    with pytest.raises(ConfigError, match="walks start with cycle 1"):
        walk_length(0, WalkSettings())
