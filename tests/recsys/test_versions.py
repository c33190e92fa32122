"""The table of releases that fit together, tried against made-up installations."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from recsys.versions import library_versions, output_held_back

ROOT = Path(__file__).parents[2]


def imported(tmp_path, packages):
    """Import recsys where exactly these packages' metadata is installed; returns (code, stderr)."""
    for name, version in packages.items():
        folder = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
    # -S: no site-packages, so nothing but the made-up metadata can be found.
    result = subprocess.run(
        [sys.executable, "-S", "-c", "import recsys"],
        env={"PYTHONPATH": f"{tmp_path}:{ROOT}"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    return result.returncode, result.stderr


@pytest.mark.parametrize(
    "packages",
    [
        {"torch": "2.13.0+cpu", "torchrec": "1.8.0", "fbgemm-gpu-cpu": "1.8.0"},
        {"torch": "2.13.1+cu130", "torchrec": "1.8.0+cu130", "fbgemm-gpu": "1.8.0+cu130"},
        {"torch": "2.11.0", "torchrec": "1.6.1", "fbgemm-gpu": "1.6.0"},
        {"torch": "2.11.0", "torchrec": "1.6.0", "fbgemm-gpu-cpu": "1.6.0"},
        {"torch": "2.13.0"},
        {},
    ],
)
def test_releases_that_fit_and_servers_without_torchrec_import(tmp_path, packages):
    assert imported(tmp_path, packages) == (0, "")


@pytest.mark.parametrize(
    ("packages", "remedy"),
    [
        (
            {"torch": "2.13.0+cpu", "torchrec": "1.8.0", "fbgemm-gpu-cpu": "1.9.0"},
            "torch==2.13.0 && {python} -m pip install --no-deps torchrec==1.8.0"
            " fbgemm-gpu-cpu==1.8.0",
        ),
        (
            {"torch": "2.11.0+cu128", "torchrec": "1.8.0", "fbgemm-gpu": "1.6.0"},
            "torch==2.11.0 && {python} -m pip install --no-deps torchrec==1.6.1 fbgemm-gpu==1.6.0",
        ),
        (
            {"torch": "2.15.0", "torchrec": "1.9.2", "fbgemm-gpu": "1.9.0"},
            "torch==2.13.0 && {python} -m pip install --no-deps torchrec==1.8.0 fbgemm-gpu==1.8.0",
        ),
        ({"torch": "2.13.0", "torchrec": "1.6.0"}, "torchrec==1.8.0"),
        ({"torch": "2.1.0"}, "torch==2.13.0"),
        ({"torch": "2.13.0", "fbgemm-gpu": "1.8.0", "fbgemm-gpu-cpu": "1.7.0"}, "fbgemm"),
    ],
)
def test_a_mismatch_is_one_line_with_what_is_there_and_the_command(tmp_path, packages, remedy):
    code, error = imported(tmp_path, packages)
    last = error.strip().splitlines()[-1]
    assert code == 1
    assert last.startswith("ImportError: installed releases do not fit together")
    assert remedy.format(python=sys.executable) in last
    assert all(f"{name} {version}" in last for name, version in packages.items())


def test_importing_recsys_imports_nothing_heavy():
    code = "import sys, recsys; print([m for m in ('torch', 'polars', 'ray') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout.strip() == "[]"


def test_versions_of_this_environment_are_listed():
    versions = library_versions()
    assert versions["python"] == sys.version.split()[0]
    assert all(versions[name] for name in ("torch", "torchrec", "fbgemm", "ray", "polars"))


TALKS = (
    "import os, sys, warnings;"
    "from recsys.versions import output_held_back\n"
    "with output_held_back():\n"
    "    print('from python'); os.write(2, b'from native code\\n'); warnings.warn('old')\n"
    "    {ending}\n"
    "print('after')\n"
)


def held_back(ending):
    return subprocess.run(
        [sys.executable, "-c", TALKS.format(ending=ending)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def test_chatter_is_held_back_from_python_and_native_code():
    result = held_back("pass")
    assert (result.stdout, result.stderr) == ("after\n", "")


def test_nothing_is_hidden_when_the_block_fails():
    result = held_back("raise OSError('cannot load')")
    assert result.returncode == 1
    for text in ("from python", "from native code", "OSError: cannot load"):
        assert text in result.stderr


def test_a_stop_inside_the_block_gives_the_streams_back(capfd):
    with pytest.raises(KeyboardInterrupt), output_held_back():
        raise KeyboardInterrupt
    os.write(1, b"visible")
    assert "visible" in capfd.readouterr().out


def test_importing_the_training_libraries_says_nothing():
    code = "import logging; logging.basicConfig(level=logging.INFO)\n"
    code += (
        "from recsys.versions import import_quietly; import_quietly(); import torchrec, fbgemm_gpu"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
