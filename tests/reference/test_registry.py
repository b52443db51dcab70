"""References by name."""

import pickle

import pytest

from mofal.errors import DependencyError, ReferenceError
from mofal.reference import available_references, get_reference
from mofal.reference.base import Reference, hash_level
from mofal.reference.registry import format_spec, parse_spec


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("gfn1-xtb", ("gfn1-xtb", "", {})),
        ("gpaw:paper?ranks=2", ("gpaw", "paper", {"ranks": 2})),
        (
            "ase:a.b:C?rc=5.5&name=x&flag=true",
            ("ase", "a.b:C", {"rc": 5.5, "name": "x", "flag": True}),
        ),
        ('x?e={"H":-1.5}', ("x", "", {"e": {"H": -1.5}})),
        ("x?e=a%26b", ("x", "", {"e": "a&b"})),
    ],
)
def test_parse_spec__reads(spec, expected):
    assert parse_spec(spec) == expected


@pytest.mark.parametrize(
    "options", [{}, {"a": 1}, {"a": "1"}, {"a": "x y&z=%"}, {"a": {"H": -1.5}, "b": [1, 2]}]
)
def test_format_spec__reads_back(options):
    text = format_spec("name", "variant", options)
    assert parse_spec(text) == ("name", "variant", options)


@pytest.mark.parametrize("spec", ["", "?a=1", "x?a", "x?a=1&a=2", "x?1a=2"])
def test_parse_spec__refuses(spec):
    with pytest.raises(ReferenceError):
        parse_spec(spec)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("gfn3-xtb", "gfn1-xtb"),
        ("gfn1-xtb?accuracy=-1", "accuracy = -1; expected a number above zero"),
        ("gfn1-xtb?accuracy=abc", "accuracy = 'abc'; expected a number above zero"),
        ("gfn1-xtb?accuracy=true", "accuracy = True; expected a number"),
        ("gfn1-xtb?accuracy=NaN", "accuracy: NaN is no number"),
        ("gfn1-xtb?electronic_temperature_K=-3", "expected a number from zero up"),
        ("gfn1-xtb?max_iterations=1.5", "max_iterations = 1.5; expected a whole number"),
        ("gfn1-xtb?time_limit_s=abc", "time_limit_s = 'abc'; expected a number"),
        ("gfn1-xtb?isolated=no", "isolated = 'no'; expected true or false"),
        ("gfn1-xtb?isolated_atom_energies=abc", "expected eV by element"),
        ("gfn2-xtb?acuracy=1", "gfn2-xtb has no option 'acuracy'; did you mean 'accuracy'"),
        ("gfn1-xtb?smearing=1", "'smearing'; there are accuracy, electronic_temperature_K, max"),
        ("gfn1-xtb:tight", "no presets"),
        ("gfn1-xtb?threads=0", "threads"),
        ("gfn1-xtb?time_limit_s=0", "time_limit_s"),
        ("ase:nothing", "ase:module:Factory"),
        ("ase:ase.calculators.emt:EMTT", "has no EMTT"),
        ("ase:ase.calculators.emt:parameters", "cannot be called"),
        ("gpaw:gold", "no preset"),
    ],
)
def test_get_reference__refuses(spec, words):
    with pytest.raises(ReferenceError, match=words):
        get_reference(spec)


def test_get_reference__module_not_installed():
    with pytest.raises(DependencyError, match="no_such_package"):
        get_reference("ase:no_such_package.module:Thing")


def test_get_reference__travels_as_a_specification():
    reference = get_reference("gfn1-xtb?accuracy=0.5")
    content = pickle.dumps(reference)
    assert len(content) < 200
    again = pickle.loads(content)
    assert again.spec == reference.spec
    assert again.level_hash == reference.level_hash


def test_get_reference__mapping_and_options_are_the_same():
    one = get_reference({"name": "gfn1-xtb", "accuracy": 0.5})
    other = get_reference("gfn1-xtb", accuracy=0.5)
    assert one.spec == other.spec == "gfn1-xtb?accuracy=0.5"
    assert get_reference(one) is one
    assert isinstance(one, Reference)


def test_get_reference__level_depends_on_what_the_answer_depends_on():
    base = get_reference("gfn1-xtb").level_hash
    assert get_reference("gfn1-xtb?threads=2&time_limit_s=9&max_iterations=9").level_hash == base
    others = ["gfn2-xtb", "gfn1-xtb?accuracy=0.1", "gfn1-xtb?electronic_temperature_K=500"]
    assert len({base, *(get_reference(o).level_hash for o in others)}) == 4


def test_hash_level__ignores_order_and_not_values():
    assert hash_level({"a": 1, "b": 2}) == hash_level({"b": 2, "a": 1})
    assert hash_level({"a": 1}) != hash_level({"a": 1.5})


def test_available_references__names():
    assert {"gfn1-xtb", "gfn2-xtb", "ase", "gpaw"} <= set(available_references())
