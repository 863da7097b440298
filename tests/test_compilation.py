"""Code compiled by numba, kept on disk: what several processes that start at once make of it."""

import os
import subprocess
import sys
from pathlib import Path


def test_two_signatures_compiled_at_once_keep_apart(tmp_path: Path) -> None:
    """Each process finds an empty index and would call its code number 1; a third then loads the code of both."""
    (tmp_path / "twice.py").write_text(
        "from hybridsnn.kernels.compilation import compiled\n\n"
        "@compiled(nogil=True)\ndef twice(values):\n    return 2 * values.sum()\n"
    )
    script = (
        "import sys, time, numpy as np; from twice import twice\n"
        "file, start = twice._cache._cache_file, time.monotonic\n"
        "read = file._load_index\n"
        "file._load_index = lambda: (read(), time.sleep(0.5))[0]\n"  # long enough for the other to read it too
        "for kind in sys.argv[1:]: print(twice(np.ones(3, kind)), len(twice.stats.cache_hits))"
    )

    def start(*kinds: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": os.pathsep.join(
            [str(tmp_path), str(Path(__file__).parents[1])])}  # fmt: skip
        command = [sys.executable, "-c", script, *kinds]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)

    for process in [start("float32"), start("int64"), start("float64")]:
        assert process.communicate(timeout=120)[0].split()[0] in ("6", "6.0")
    found = start("float32", "int64", "float64").communicate(timeout=120)[0].split()
    assert found == ["6.0", "1", "6", "2", "6.0", "3"]
