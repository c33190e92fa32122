"""The layout of the house: who imports whom, what files are called, what the README names."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("recsys", "pipelines", "feature_store")
FORBIDDEN_NAMES = {
    "utils", "util", "common", "helpers", "helper", "base", "core", "constants", "scripts", "misc",
}  # fmt: skip


def tracked(*patterns: str) -> list[Path]:
    """Files of the repository (tracked or about to be) that match."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *patterns]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / line for line in listed.splitlines() if (ROOT / line).is_file()]


def sources() -> list[Path]:
    return [path for package in PACKAGES for path in tracked(f"{package}/**.py", f"{package}/*.py")]


def test_imports_follow_the_contracts():
    result = subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_module_of_recsys_stands_in_the_layers():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    contracts = settings["tool"]["importlinter"]["contracts"]
    layers = next(c["layers"] for c in contracts if c["name"].startswith("Data moves one way"))
    named = {name.strip() for layer in layers for name in layer.split("|")}
    modules = {
        f"recsys.{path.stem}" for path in (ROOT / "recsys").glob("*.py") if path.stem != "__init__"
    }
    folders = {f"recsys.{path.parent.name}" for path in (ROOT / "recsys").glob("*/__init__.py")}
    assert modules | folders == named


def test_no_file_has_a_name_that_says_nothing():
    found = [
        path.relative_to(ROOT)
        for path in tracked("*.py")
        if {path.stem, *path.relative_to(ROOT).parts[:-1]} & FORBIDDEN_NAMES
    ]
    assert found == []


ACROSS_FILES = {"pipelines/test_killed.py"}
"""Tests of what several files of one package must do together."""


def test_every_test_file_mirrors_a_source_file():
    orphans = []
    for path in tracked("tests/**/test_*.py"):
        inside = path.relative_to(ROOT / "tests")
        if len(inside.parts) == 1:
            continue  # test_flow, test_architecture: about the whole
        name = path.stem.removeprefix("test_")
        folder = ROOT / inside.parent
        places = [*folder.rglob(f"{name}.py"), *folder.rglob(f"{name}/__init__.py")]
        if not places and str(inside) not in ACROSS_FILES:
            orphans.append(str(inside))
    assert orphans == []


def test_test_files_have_unique_names():
    names = [path.name for path in tracked("tests/**/test_*.py", "tests/test_*.py")]
    assert sorted(names) == sorted(set(names))


def test_errors_are_never_swallowed_and_attributes_never_guessed():
    found = []
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            where = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.ExceptHandler) and node.type is None:
                found.append(f"{where} bare except")
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "hasattr":
                found.append(f"{where} hasattr")
    assert found == []


def test_imports_stand_at_the_top_except_where_a_command_starts():
    """The files of commands delay what is slow to import, and say why; nothing else does."""
    found = []
    for path in sources():
        if path.name in ("cli.py", "feature_commands.py", "versions.py"):
            continue
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef):
                found += [
                    f"{path.relative_to(ROOT)}:{node.lineno}"
                    for node in ast.walk(function)
                    if isinstance(node, ast.Import | ast.ImportFrom)
                ]
    assert found == []


def test_a_test_that_needs_a_gpu_carries_its_marker():
    """A test that touches CUDA without the marker would be skipped by no lane, or run by none."""
    found = []
    for path in tracked("tests/**/test_*.py", "tests/test_*.py"):
        if path == Path(__file__):
            continue
        text = path.read_text()
        if "pytestmark = pytest.mark.gpu" in text:
            continue
        for node in ast.parse(text).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                uses = re.search(r"\.cuda\(|device\(.cuda|=.cuda.|\.to\(.cuda", ast.unparse(node))
                marked = any("gpu" in ast.unparse(d) for d in node.decorator_list)
                if uses and not marked:
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}")
    assert found == []


def makefile_targets() -> set[str]:
    return set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.M))


def code_lines(path: Path) -> list[str]:
    """The lines of a text's shell blocks, without their comments and continuation."""
    text = path.read_text()
    blocks = re.findall(r"^```bash\n(.*?)^```", text, flags=re.M | re.S)
    joined = "\n".join(blocks).replace("\\\n", " ")
    return [line.split("#")[0].strip() for line in joined.splitlines() if line.strip()]


def test_the_readmes_commands_exist():
    from typer.core import TyperGroup
    from typer.main import get_command

    from recsys.cli import app

    verbs = get_command(app).commands
    checked = 0
    for line in code_lines(ROOT / "README.md"):
        for command in re.split(r"&&|\|", line):
            words = command.removeprefix(".venv/bin/").split()
            if words[:1] == ["make"] and len(words) > 1:
                assert words[1] in makefile_targets(), line
                checked += 1
            if words[:1] == ["recsys"] and words[1] != "--version":
                verb = verbs.get(words[1])
                assert verb is not None, line
                if isinstance(verb, TyperGroup):
                    verb = verb.commands.get(words[2])
                    assert verb is not None, line
                known = {name for p in verb.params for name in p.opts} | {"--help"}
                assert {w for w in words if w.startswith("--")} <= known, line
                checked += 1
            for word in words:
                if word.startswith(("examples/", "requirements/")):
                    assert (ROOT / word).exists(), line
    assert checked >= 5


def test_documented_benchmarks_exist():
    named = re.findall(r"make bench NAME=(\w+)", (ROOT / "README.md").read_text())
    assert named
    assert [name for name in named if not (ROOT / "benchmarks" / f"{name}.py").is_file()] == []


def examples(*, suites: bool) -> list[str]:
    """Names of the example files: experiments, or suites of them."""
    files = sorted((ROOT / "examples").glob("*.yaml"))
    return [path.name for path in files if ("\nexperiments:" in path.read_text()) == suites]


@pytest.mark.parametrize("path", examples(suites=False))
def test_every_example_is_a_valid_experiment(path):
    from recsys import experiment

    loaded = experiment.load(ROOT / "examples" / path)
    assert loaded.name == path.removesuffix(".yaml")


@pytest.mark.parametrize("path", examples(suites=True))
def test_every_example_of_a_suite_has_valid_experiments(path):
    from recsys import experiment
    from recsys.leaderboard import load_suite

    suite = load_suite(ROOT / "examples" / path)
    for entry in suite.experiments:
        assert experiment.load(entry.file, entry.set)


def test_locks_pins_and_the_table_of_triples_agree():
    from recsys.versions import ACCEPTED

    newest = ACCEPTED[0]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"torch=={newest.torch}.0" in project["dependencies"]
    assert f"torchrec=={newest.torchrec[0]}" in project["dependencies"]
    assert f"TORCH := torch=={newest.torch}.0\n" in (ROOT / "Makefile").read_text()
    for name, package in {"cpu": "fbgemm-gpu-cpu", "cuda": "fbgemm-gpu"}.items():
        pin = f"{package}=={newest.fbgemm}"
        lock = (ROOT / "requirements" / f"{name}.txt").read_text().splitlines()
        assert project["optional-dependencies"][name] == [pin]
        assert pin in lock
        assert f"torchrec=={newest.torchrec[0]}" in lock
        assert all(re.fullmatch(r"#.*|[a-z0-9-]+==[^ ]+", line) for line in lock)
        # TorchRec names fbgemm-gpu and torch; the lock must bring neither by accident.
        assert not [line for line in lock if line.startswith("torch==")]
        assert sum(line.startswith("fbgemm") for line in lock) == 1
