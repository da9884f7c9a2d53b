"""The house rules that no linter knows: who imports whom, what users can read."""

import ast
import dataclasses
import importlib
import inspect
import os
import pathlib
import subprocess
import sys

import pytest

import dsmooth_jax as ds

ROOT = pathlib.Path(__file__).resolve().parent.parent

# Each may import only those before it: folders, and the modules in each. A folder
# itself comes after its modules: its __init__ may import them.
PROVEN = [
    "types",
    "wording",
    "checks",
    "ablation",
    "threat",
    "voting",
    "duels",
    "certificate",
    "masks",
    "double_masking",
    "winners",
    "leaving_out",
    "evidence",
    "reach",
    "ranks",
    "queries",
    "evaluation",
    "alarms",
]
HOUSE = [
    ("", PROVEN),
    (
        "storage",
        [
            "files",
            "workdir",
            "provenance",
            "shards",
            "score_store",
            "label_store",
            "timing",
            "attack_store",
            "pytrees",
            "checkpoint",
        ],
    ),
    (
        "report",
        [
            "request",
            "masked_analysis",
            "drawn_analysis",
            "ranking",
            "groups",
            "analysis",
            "thumbnails",
            "masked_explorer",
            "explorer_data",
            "summary",
            "attack_summary",
            "attacked_explorer",
            "more_tables",
            "plot_style",
            "figures",
            "heatmaps",
            "html",
            "write",
            "label_analysis",
            "overlays",
            "attacked_masks",
            "label_page",
            "label_report",
            "comparison",
        ],
    ),
    ("", ["compiling", "masking", "scoring", "ensembling", "labeling"]),
    ("", ["locality", "hiding"]),
    (
        "models",
        [
            "base",
            "resnet",
            "small_cnn",
            "cnn",
            "band_layers",
            "band_views",
            "bandnet",
            "vit",
            "efficientnet_lite",
            "ensemble",
            "weight_files",
            "weights",
        ],
    ),
    (
        "data",
        [
            "sampling",
            "decoding",
            "images",
            "dataset",
            "files",
            "npz",
            "sources",
            "batches",
        ],
    ),
    (
        "",
        [
            "smoothed",
            "masked",
        ],
    ),
    (
        "attacks",
        [
            "patching",
            "objectives",
            "undefended",
            "study",
            "victims",
            "candidates",
            "attack",
            "universal",
        ],
    ),
    ("", ["distributed", "distributed_scoring"]),
    (
        "training",
        [
            "augment",
            "optimizers",
            "losses",
            "teaching",
            "config",
            "step",
            "ownership",
            "choice",
            "masked",
            "metrics",
            "feeding",
            "loop",
            "run",
        ],
    ),
    (
        "commands",
        [
            "cli",
            "train",
            "filling",
            "certification",
            "label_certification",
            "certify",
            "attacking",
            "attack",
        ],
    ),
]


def names_in(folder, modules):
    """Full names, in order."""
    inside = [".".join(filter(None, ["dsmooth_jax", folder, m])) for m in modules]
    return [*inside, f"dsmooth_jax.{folder}"] if folder else inside


PACKAGE = [name for part in HOUSE for name in names_in(*part)]
SCRIPTS = ["train", "certify", "attack"]
ORDER = [*PACKAGE, "dsmooth_jax", *SCRIPTS]

# What is proven, and what is shown of it.
WITHOUT_JAX = [*names_in(*HOUSE[0]), *names_in(*HOUSE[1]), *names_in(*HOUSE[2])]
WITHOUT_JAX += ["dsmooth_jax.commands.cli"]
WITHOUT_JAX = [
    name for name in WITHOUT_JAX if not name.endswith((".pytrees", ".checkpoint"))
]

# Longer than 400 lines, and why.
LONG: dict[str, str] = {}

CERTIFIED_PATH = [
    ds.certify,
    ds.certify_several,
    ds.certify_double_masking,
    ds.certify_masked,
    ds.covering,
    ds.merged_masks,
    ds.certify_with_alarm,
    ds.worst_rank,
    ds.touched_by_any,
    ds.largest_certified_patch,
    ds.touched,
    ds.masked_scores,
    ds.score,
    ds.SmoothedClassifier.certify,
    ds.mask_labels,
    ds.MaskedClassifier.certify,
    ds.attack,
    ds.ablate,
    ds.crop,
]


def source_path(module):
    path = ROOT / (module.replace(".", "/") + ".py")
    return path if path.exists() else ROOT / module.replace(".", "/") / "__init__.py"


def module_name(path):
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


def imports(source, modules):
    """Every module that a source imports, wherever in it; of `modules` by full name."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: write imports in full"
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= full & set(modules)
            if full - set(modules):
                found.add(node.module)
    return found


def back_edges(order, sources):
    """The imports that point the wrong way, as text."""
    place = {module: i for i, module in enumerate(order)}
    return [
        f"{module} imports {target}"
        for module, source in sources.items()
        for target in imports(source, order)
        if target.partition(".")[0] in {m.partition(".")[0] for m in order}
        and place.get(target, len(order)) >= place[module]
    ]


def test_imports_point_one_way():
    # Protects the line of modules: what is proven never depends on what computes.
    sources = {module: source_path(module).read_text() for module in ORDER}
    assert back_edges(ORDER, sources) == []


def test_every_module_has_its_place_in_the_line():
    # Protects the test above from modules that it does not know.
    there = {module_name(path) for path in (ROOT / "dsmooth_jax").rglob("*.py")}
    assert there | {path.stem for path in ROOT.glob("*.py")} == set(ORDER)


def test_back_edges_are_found_in_every_form():
    # Protects the two tests above: a check that finds nothing proves nothing.
    order = ["pkg.a", "pkg.b", "pkg"]
    for line in ("import pkg.b", "from pkg.b import x", "from pkg import b, a"):
        assert back_edges(order, {"pkg.a": f"def f():\n    {line}"})
    for line in ("import pkg", "from pkg import x", "import pkg.b", "import pkg.new"):
        assert back_edges(order, {"pkg.b": line})
    assert not back_edges(order, {"pkg.b": "from pkg import a\nimport pkg.a, numpy"})


@pytest.mark.parametrize("module", WITHOUT_JAX)
def test_host_side_modules_import_no_jax(module):
    # Protects certificates: integers on the host, whatever the device side becomes.
    roots = {
        m.partition(".")[0] for m in imports(source_path(module).read_text(), ORDER)
    }
    assert not roots & {"jax", "jaxlib", "flax", "optax", "orbax"}


def test_importing_the_package_loads_little(tmp_path):
    # Protects start-up, and users who have neither the heavy packages nor an install.
    heavy = [
        "tensorflow",
        "matplotlib",
        "jinja2",
        "PIL",
        "orbax",
        "tensorflow_datasets",
        "mlxtend",
        "grain",
    ]
    code = f"import sys, dsmooth_jax; print([m for m in {heavy} if m in sys.modules])"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


def test_public_names_are_there():
    # Protects `from dsmooth_jax import *`. (The linter keeps the list sorted.)
    assert len(set(ds.__all__)) == len(ds.__all__)
    for name in sorted(set(ds.__all__) - {"GRADES"}):  # a number
        assert inspect.getmodule(getattr(ds, name)).__name__ in PACKAGE


def public_callables():
    """(name, function) for each public function, method and property of `__all__`."""
    for name in sorted(set(ds.__all__) - {"GRADES"}):
        value = getattr(ds, name)
        if not inspect.isclass(value):
            yield name, value
            continue
        for key in dir(value):
            is_ours = any(
                key in base.__dict__
                for base in value.__mro__
                if base.__module__.startswith("dsmooth_jax")
            )
            member = inspect.getattr_static(value, key)
            if is_ours and not key.startswith("_"):
                if isinstance(member, property):
                    yield f"{name}.{key}", member.fget
                elif inspect.isfunction(member):
                    yield f"{name}.{key}", member


def document(name, function):
    """The docstring; a method's may be its base class's."""
    owner, _, key = name.rpartition(".")
    target = getattr(getattr(ds, owner), key) if owner else function
    return inspect.getdoc(target) or ""


def section(text, title):
    """The lines of one section of a Google-style docstring, "" where it is not."""
    _, _, rest = f"\n{text}\n".partition(f"\n{title}:\n")
    lines = []
    for line in rest.splitlines():
        if line and not line.startswith(" "):
            break
        lines.append(line)
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("name", "function"),
    list(public_callables()),
    ids=lambda v: v if type(v) is str else "",
)
def test_public_functions_and_methods_are_documented(name, function):
    # Protects users: what goes in, by name, and what comes out.
    text = document(name, function)
    assert text, "no docstring"
    if "." in name and text.count("\n") == 0:
        return  # a method that one line says all of
    signature = inspect.signature(function)
    parameters = [p for p in signature.parameters if p != "self"]
    arguments = section(text, "Args")
    undocumented = [p for p in parameters if f"\n  {p}:" not in f"\n{arguments}"]
    assert not undocumented
    if signature.return_annotation not in (None, "None", inspect.Signature.empty):
        assert section(text, "Returns").strip(), "no Returns:"


@pytest.mark.parametrize("name", ds.__all__)
def test_public_names_have_docstrings_of_their_own(name):
    # Protects help(): a dataclass without one would show its signature instead.
    text = getattr(ds, name).__doc__
    assert text and not text.startswith(f"{name}(")
    value = getattr(ds, name)
    if dataclasses.is_dataclass(value):
        attributes = section(inspect.getdoc(value), "Attributes")
        for field in dataclasses.fields(value):
            assert f"\n  {field.name}:" in f"\n{attributes}"


@pytest.mark.parametrize("function", CERTIFIED_PATH, ids=lambda f: f.__qualname__)
def test_the_certified_path_says_what_it_guarantees(function):
    # Protects the product, a guarantee: what holds, and under which assumptions.
    assert len(section(inspect.getdoc(function), "Guarantee").split()) >= 10


@pytest.mark.parametrize("module", ORDER)
def test_modules_stay_short(module):
    # Protects readers: a module is read from top to bottom, once.
    num_lines = len(source_path(module).read_text().splitlines())
    assert (num_lines > 400) == (module in LONG)


@pytest.mark.parametrize("module", ORDER[: len(PACKAGE) + 1])
def test_records_are_frozen(module):
    # Protects values that are shared, hashed and compiled against from being changed.
    loaded = importlib.import_module(module)
    assert loaded.__doc__
    for value in vars(loaded).values():
        if inspect.isclass(value) and dataclasses.is_dataclass(value):
            assert value.__dataclass_params__.frozen, value
