"""Every benchmark, and the page that shows what they gave: `docs/benchmarks.md`."""

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
FOLDER = "../docs/benchmarks"
COMMANDS = (
    ("compare_peers.py", "--repeats", "2", "--output", FOLDER),  # four rates, in two precisions: some ten minutes
    ("scaling.py", "--output", FOLDER),
    ("kernels.py", "--output", FOLDER),
    ("stop_speed.py", "--repeats", "3", "--output", FOLDER),
    ("stop_memory.py", "--repeats", "1", "--output", FOLDER),
    ("table.py",),
)


def run(commands: tuple[tuple[str, ...], ...]) -> None:
    """Run Python on each in this folder, all of them even if one fails; exits with 1 if one did."""
    # So that it works from a copy of the repository that was never installed.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])}
    failed = []
    for command in commands:
        print(f"\n$ python {' '.join(command)}", flush=True)
        if subprocess.run([sys.executable, *command], cwd=HERE, env=environment, check=False).returncode:
            failed.append(" ".join(command))
    if failed:
        raise SystemExit("\n".join(f"failed: {command}" for command in failed))


if __name__ == "__main__":
    run(COMMANDS)
