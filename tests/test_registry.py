"""Architectures from outside: registered by a program, or installed with an entry point."""

import ast
import sys

import pytest

import jaxmodels
from bridge.core import twins
from bridge.formats.raw import is_own
from jaxmodels import __main__, architecture, registry
from jaxmodels.architecture import ConfigView, ModelView, OptionalPackage
from jaxmodels.errors import USAGE, Problem
from tests.test_imports import FILES, name_of

# As charlm, by another name.
PACKAGE = """
from jaxmodels.charlm import PRESETS, RECIPES, SHARDING, WEIGHTS, Config, Model, loss, sizes
"""
METADATA = "Metadata-Version: 2.1\nName: outside\nVersion: 1\n"


@pytest.fixture
def fresh(monkeypatch):
    """A registry that knows ours only, and forgets what a test adds."""

    def forget():
        for cached in (registry._installed, registry._usable):
            cached.cache_clear()

    monkeypatch.setattr(jaxmodels.ARCHS, "registered", {})
    forget()
    yield monkeypatch
    monkeypatch.undo()
    forget()


@pytest.fixture
def package(fresh, tmp_path):
    """(name, source, entry point's name or "") → a package of that source that can be imported."""

    def made(name, source=PACKAGE, entry=""):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(source)
        if entry:
            info = tmp_path / f"{name}-1.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(METADATA.replace("outside", name))
            group = f"[{registry.GROUP}]\n{entry} = {name}\n"
            (info / "entry_points.txt").write_text(group)
        return name

    fresh.syspath_prepend(tmp_path)
    yield made
    for name in [name for name in sys.modules if name.startswith("outside")]:
        del sys.modules[name]


def test_a_registered_package_is_an_architecture(package):
    name = package("outside1")
    assert "mine" not in jaxmodels.ARCHS
    registry.register("mine", name)
    registry.register("mine", name)  # twice is once
    assert [*jaxmodels.ARCHS][-1] == "mine"
    assert jaxmodels.arch("mine").name == "mine"
    assert jaxmodels.preset("mine:tiny")[2] == jaxmodels.preset("charlm:tiny")[2]
    assert jaxmodels.arch("mine").TIED == ()


def test_an_installed_package_is_found_by_the_command(package, capsys):
    package("outside2", entry="installed")
    assert __main__.main(["list"]) == 0
    out = capsys.readouterr().out
    assert "installed:tiny" in out
    assert "charlm:tiny" in out


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("raise RuntimeError('broken on purpose')", "RuntimeError: broken on purpose"),
        ("import module_that_nobody_has", "module_that_nobody_has"),
        (PACKAGE.replace("SHARDING, ", ""), "SHARDING is missing"),
        (PACKAGE + "TEID = ()", "TEID is unknown: did you mean TIED?"),
        (
            PACKAGE + "PRESETS = {'tiny': Config()}",
            "RECIPES and PRESETS do not have the same names",
        ),
        (PACKAGE + "Config = int", "Config is not a frozen dataclass"),
    ],
)
def test_a_package_that_cannot_be_used_is_refused_and_stands_in_nobodys_way(
    package, capsys, source, why
):
    name = package(f"outside{abs(hash(source))}", source, entry="broken")
    with pytest.raises(Problem, match="of the architecture broken") as caught:
        jaxmodels.arch("broken")
    assert why in caught.value.why
    assert caught.value.where == name
    assert caught.value.exit_code == USAGE
    assert __main__.main(["list"]) == 0
    shown = capsys.readouterr()
    assert "charlm:tiny" in shown.out
    assert "broken" not in shown.out
    assert "left out: the package of the architecture broken" in shown.err
    with pytest.raises(Problem):
        registry.register("another", name)


def test_names_are_unique(package, capsys):
    name = package("outside4", entry="charlm")
    with pytest.raises(Problem, match=r"the architecture charlm is jaxmodels\.charlm"):
        registry.register("charlm", name)
    registry.register("mine", name)
    with pytest.raises(Problem, match="is registered already, as mine"):
        registry.register("another", name)
    with pytest.raises(Problem, match="cannot name an architecture"):
        registry.register("char:lm", name)
    assert jaxmodels.arch("charlm").module == "jaxmodels.charlm"
    assert [*jaxmodels.ARCHS] == [*registry.OURS, "mine"]
    assert "outside4 is left out: charlm is jaxmodels.charlm" in capsys.readouterr().err


def test_a_folder_that_one_works_in_is_no_installed_package(package, fresh, tmp_path):
    """It may be a checkpoint's: `python -m jaxmodels` would import what it names."""
    package("outside6", entry="planted")
    fresh.chdir(tmp_path)
    assert "planted" not in jaxmodels.ARCHS


def test_an_architecture_without_a_twin_stays_in_jax(package):
    registry.register("mine", package("outside7"))
    with pytest.raises(Problem, match="mine has no PyTorch side") as caught:
        twins.twin("mine")
    assert caught.value.exit_code == USAGE
    assert "mine" not in dict(twins.twins())
    assert not is_own({"model_type": "mine"})
    assert is_own({"arch": "mine"})


def test_a_model_of_no_registered_package_is_refused(fresh):
    with pytest.raises(Problem, match="not from a registered architecture"):
        jaxmodels.package_of(object())


def test_what_is_near_a_member_is_misspelt():
    module = sys.modules["jaxmodels.charlm"]
    assert architecture.complaints(module) == []
    exports = {*architecture.exported(module), "comit", "UPSTREEM", "Recipe", "ROPE_BASE"}
    known = architecture.members(
        architecture.Package, architecture.Trained, architecture.OptionalPackage
    )
    assert architecture.problems(
        exports - {"Model", "commit", "UPSTREAM"}, ["Model", "loss"], known
    ) == [
        "Model is missing",
        "UPSTREEM is unknown: did you mean UPSTREAM?",
        "comit is unknown: did you mean commit?",
    ]


def test_an_error_inside_of_a_lazy_export_is_no_missing_member(package, tmp_path):
    """Else a `commit` that cannot be imported would be one that does not exist."""
    lazy = "from jaxmodels.lazy import lazy\n__getattr__ = lazy(__name__, {'commit': 'parts'})"
    name = package("outside5", PACKAGE + lazy)
    (tmp_path / name / "parts.py").write_text("import math\nmath.nothing_like_this\n")
    registry.register("mine", name)
    with pytest.raises(ImportError, match="nothing_like_this"):
        _ = jaxmodels.arch("mine").commit


def test_optional_members_have_their_defaults():
    config, model = jaxmodels.preset("dinov2:tiny")[2], jaxmodels.arch("charlm").Model
    assert (ConfigView(config).vocab, ConfigView(config).context) == (0, None)
    assert ConfigView(config).image_size == config.image_size
    assert ModelView(model).relative
    assert ModelView(model).prefill is None
    with pytest.raises(AttributeError):
        _ = jaxmodels.arch("dinov2").loss  # which it must not have: there is no default


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_optional_members_are_read_through_views(path):
    """Not by `getattr` with a default of its own in each place."""
    known = {
        *architecture.members(OptionalPackage, ConfigView, ModelView),
        *("whole", "unlike", "beside", "FILES", "jax_forward", "torch_forward"),
    } - {"decode", "objective"}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            names = {arg.value for arg in node.args if isinstance(arg, ast.Constant)}
            assert node.func.id not in ("getattr", "hasattr") or not names & known
