"""The wheel holds everything that the package needs: built from a clone, run outside the repository."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]


def run(*words: object, **options: object) -> str:
    """A command's output; its error stream in the message where it fails."""
    done = subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, check=False, **options
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def installed_wheel(folder: Path) -> Path:
    """The Python of an environment that has the wheel, and the dependencies without this checkout."""
    run("git", "clone", "--quiet", "--depth", "1", f"file://{ROOT}", folder / "clone")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", folder / "wheels"]
    run(*pip, *build, folder / "clone")
    run(sys.executable, "-m", "venv", "--without-pip", folder / "venv")
    python = folder / "venv" / "bin" / "python"
    (wheel,) = (folder / "wheels").glob("*.whl")
    run(*pip, "--python", python, "install", "--no-deps", "--no-index", wheel)
    own = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    # A plain path: the editable install's own .pth file in there is not read.
    (own / "dependencies.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")
    return python


def test_a_wheel_from_a_clean_clone_compares_outside_the_repository(
    tmp_path: Path, scenes_folder: Path
) -> None:
    python = installed_wheel(tmp_path)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"MODALIGN_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    place = tmp_path / "elsewhere"
    place.mkdir()
    where = run(
        python, "-c", "import modalign; print(modalign.__file__)", cwd=place, env=environment
    )
    assert Path(where.strip()).is_relative_to(tmp_path / "venv")
    data = [f"--train={scenes_folder / 'train.jsonl'}", f"--eval={scenes_folder / 'eval.jsonl'}"]
    words = ["--methods", "linear,mlp", "--seeds", "1", "--budget", "160samples", "--out", "out"]
    command = [python.with_name("modalign"), "compare", *data, *words]
    run(*command, cwd=place, env=environment)
    report = json.loads((place / "out" / "report.json").read_text(encoding="utf-8"))
    assert {method["name"]: method["status"] for method in report["methods"]} == {
        "linear": "ok",
        "mlp": "ok",
    }
    assert (place / "out" / "report.html").exists()
    assert (place / "out" / "best" / "config.json").exists()
