import pytest
from pydantic import ValidationError

from mofal.potential import ARCHITECTURES, TRAININGS, Architecture, TrainingSettings, create

FIVE = ["H", "C", "O", "Zr", "Hf"]


@pytest.mark.parametrize(
    ("name", "r_max", "layers", "features", "f"),
    [("base", 4.5, 5, 16, 8), ("extended", 5.0, 4, 32, 16)],
)
def test_architectures__numbers_of_the_paper(name, r_max, layers, features, f):
    a = ARCHITECTURES[name]
    assert (a.r_max, a.n_layers, a.n_features, a.feature_dim) == (r_max, layers, features, f)
    assert (a.l_max, a.parity, a.radial_layers, a.radial_neurons) == (1, True, 2, 32)
    assert (a.n_bessel, a.dtype) == (8, "float32")


@pytest.mark.parametrize(("name", "weights"), [("base", 99_800), ("extended", 387_760)])
def test_create__weights_of_the_presets_in_this_nequip(name, weights):
    potential = create(name, FIVE, seed=0)
    assert potential.n_weights == weights
    assert potential.feature_dim == ARCHITECTURES[name].feature_dim
    assert potential.elements == tuple(FIVE)


def test_training_settings__defaults_are_the_papers():
    s = TrainingSettings()
    assert s.architecture == ARCHITECTURES["base"]
    assert (s.learning_rate, s.batch_size, s.validation_fraction) == (0.004, 5, 0.2)
    assert (s.force_weight, s.energy_weight, s.loss_weight) == (1, 100, 101)
    assert (s.plateau_factor, s.plateau_patience, s.warm_up_epochs) == (0.75, 25, 10)
    assert (s.stop_delta, s.stop_patience, s.min_learning_rate) == (1e-5, 250, 1e-5)
    assert s == TRAININGS["paper"]


def test_training_settings__cycle_is_faster_and_stops_earlier_than_paper():
    paper, cycle = TRAININGS["paper"], TRAININGS["cycle"]
    assert cycle.learning_rate > paper.learning_rate
    assert cycle.stop_patience < paper.stop_patience
    assert cycle.stop_delta > paper.stop_delta


def test_training_settings__architecture_by_name_or_numbers():
    assert TrainingSettings(architecture="tiny").architecture == ARCHITECTURES["tiny"]
    own = TrainingSettings(architecture={"r_max": 4, "n_layers": 1, "n_features": 2})
    assert own.architecture == Architecture(r_max=4, n_layers=1, n_features=2)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"architecture": "huge"}, "tiny, base, extended"),
        ({"learning_rat": 0.1}, "learning_rat"),
        ({"learning_rate": -0.1}, "greater than 0"),
        ({"learning_rate": 0.001, "min_learning_rate": 0.01}, "stop at once"),
        ({"regions": "mantle"}, "'all', 'core' or 'weighted'"),
        ({"max_steps": 0}, "greater than or equal to 1"),
        ({"threads": 0}, "greater than or equal to 1"),
        ({"architecture": {"r_max": 4, "n_layers": 0, "n_features": 2}}, "greater than or equal"),
    ],
)
def test_training_settings__refuses(bad, says):
    with pytest.raises(ValidationError, match=says):
        TrainingSettings(**bad)


def test_training_settings__cannot_be_changed_in_place():
    with pytest.raises(ValidationError, match="frozen"):
        TrainingSettings().learning_rate = 1.0
