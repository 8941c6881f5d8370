"""Import rules (WORKSPACE.md), checked on the syntax trees."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import jaxmodels
from tests.children import printed

ROOT = Path(__file__).parents[1]
ROOMS = ("jaxmodels", "bridge", "data_pipelines", "benchmarks")
FILES = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]

# What a token id means is said in one place, for all rooms.
TOKENIZERS = tuple(
    f"data_pipelines.{name}"
    for name in ("tokenizers", "tokenizer_settings", "transformers_files", "gpt2", "errors")
)

# Files are written and read in one way, by all rooms.
FILES_MODULES = ("jaxmodels.files", "jaxmodels.reading")

# What each room may import of our own; the first prefix that fits a file decides.
MAY_IMPORT = {
    "jaxmodels.commands": ("jaxmodels", "bridge", "data_pipelines"),
    "jaxmodels.layers": ("jaxmodels.layers",),
    "jaxmodels.runtime": (
        "jaxmodels.runtime",
        "jaxmodels.architecture",
        "jaxmodels.layers",
        "jaxmodels.errors",
        "jaxmodels.extras",
        *FILES_MODULES,
        "jaxmodels.cli",
        "jaxmodels.recipe",
        "jaxmodels.terminal",
    ),
    **{
        f"jaxmodels.{arch}": (
            f"jaxmodels.{arch}",
            "jaxmodels.layers",
            "jaxmodels.errors",
            "jaxmodels.lazy",
            "jaxmodels.recipe",
            *(("jaxmodels.dinov2",) if arch.startswith("bitgen") else ()),  # their tower
        )
        for arch in jaxmodels.ARCHS
    },
    **dict.fromkeys(FILES_MODULES, ("jaxmodels.errors", *FILES_MODULES)),
    "jaxmodels": ("jaxmodels",),
    "bridge": ("bridge", "jaxmodels", "data_pipelines.captions.tokens", *TOKENIZERS),
    "data_pipelines": ("data_pipelines", *FILES_MODULES),
    "benchmarks": ROOMS,
}
NEVER = ("tensorflow", "pickle", "dill", "cloudpickle")
TORCH = ("torch", "transformers")


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> list[tuple[str, bool]]:
    """(module, whether it is imported when the file is) for every import in a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) not in inside) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [
                (f"{node.module}.{alias.name}", id(node) not in inside) for alias in node.names
            ]
    return found


def within(module: str, prefixes: tuple[str, ...]) -> bool:
    return any(module == prefix or module.startswith(prefix + ".") for prefix in prefixes)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_import_rules(path):
    name = name_of(path)
    allowed = next(rooms for prefix, rooms in MAY_IMPORT.items() if within(name, (prefix,)))
    for module, _ in imports(path):
        if within(module, ROOMS) and module != "jaxmodels.__version__":
            assert within(module, allowed), f"{name} imports {module}"


def circle_in(graph: dict[str, set[str]]) -> list[str]:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_a_circle_is_found():
    assert circle_in({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert sorted(set(circle_in({"a": {"b"}, "b": {"c"}, "c": {"a"}}))) == ["a", "b", "c"]


def module_graph() -> dict[str, set[str]]:
    """Module → our modules that it imports, inside of functions included."""
    files = {name_of(path): path for path in FILES}
    graph = {}
    for name, path in files.items():
        found = {m if m in files else m.rpartition(".")[0] for m, _ in imports(path)}
        graph[name] = found & files.keys() - {name}
    return graph


def test_no_modules_import_each_other_in_a_circle():
    assert circle_in(module_graph()) == []


def test_no_rooms_import_each_other_in_a_circle():
    """A room is a package of `bridge` or of `jaxmodels/runtime`; what lies beside rooms is one."""

    def room(name: str) -> str:
        parts = name.split(".")
        depth = 3 if name.startswith("jaxmodels.runtime.") else 2
        inside = len(parts) > depth or name in packages
        return ".".join(parts[:depth]) if inside else ".".join(parts[: depth - 1]) + ".*"

    packages = {name_of(path) for path in FILES if path.name == "__init__.py"}
    rooms: dict[str, set[str]] = {}
    for name, imported in module_graph().items():
        if within(name, ("bridge", "jaxmodels.runtime")):
            known = {room(m) for m in imported if within(m, ("bridge", "jaxmodels.runtime"))}
            rooms.setdefault(room(name), set()).update(known - {room(name)})
    assert len(rooms) > 12
    assert circle_in(rooms) == []


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_torch_stays_in_the_bridge_and_tensorflow_outside(path):
    name = name_of(path)
    for module, at_top in imports(path):
        assert not within(module, NEVER), f"{name} imports {module}"
        if within(module, TORCH) and not within(name, ("benchmarks",)):
            assert within(name, ("bridge",)), f"{name} imports {module}"
            travels = path.name.startswith(("modeling_", "processing_"))
            assert travels or not at_top, f"{name} imports {module} outside a function"


@pytest.mark.slow
def test_torch_is_not_loaded_by_training_and_generation():
    code = (
        "import sys, jaxmodels.commands.train, jaxmodels.commands.generate;"
        "import jaxmodels.runtime.training.train,"
        "jaxmodels.runtime.generate, bridge, bridge.checkpoint.loading, data_pipelines.pipelines;"
        "print([m for m in ('torch', 'tensorflow', 'transformers') if m in sys.modules])"
    )
    assert printed(code) == "[]"


@pytest.mark.slow
def test_torch_is_not_loaded_for_tensorboard_either(tmp_path):
    """tensorboardX would import it, which takes longer than the rest of a tiny preset's start."""
    code = (
        "import sys, pathlib; from jaxmodels.runtime.metrics import MetricsLog;"
        "MetricsLog(pathlib.Path(sys.argv[1]), 0).close(); loaded = 'torch' in sys.modules;"
        "import torch; print(loaded, torch.ones(2).tolist())"
    )
    assert printed(code, str(tmp_path)) == "False [1.0, 1.0]"


def test_data_pipelines_need_no_jax():
    code = (
        "import sys, data_pipelines.prepare, data_pipelines.captions.prepare;"
        "print([m for m in ('jax', 'flax', 'torch') if m in sys.modules])"
    )
    assert printed(code) == "[]"


@pytest.mark.slow
def test_help_needs_no_jax():
    """`--help` answers in a fraction of a second because it imports neither JAX nor torch."""
    from jaxmodels.__main__ import VERBS

    for verb in VERBS:
        code = (
            "import sys\nfrom jaxmodels.__main__ import main\n"
            f"try: main([{verb!r}, '--help'])\nexcept SystemExit: pass\n"
            "print([m for m in ('jax', 'torch', 'grain', 'orbax') if m in sys.modules])"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        assert done.stdout.splitlines()[-1] == "[]", verb
        assert "usage: jaxmodels" in done.stdout
