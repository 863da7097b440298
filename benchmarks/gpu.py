"""On a machine with a CUDA device: the tests of its kernels, then the benchmarks on it."""

import torch
from run_all import run

FOLDER = "../docs/benchmarks/cuda"
COMMANDS = (
    ("-m", "pytest", "../tests/test_cuda.py", "../tests/test_kernels.py"),
    ("compare_peers.py", "--device", "cuda", "--precision", "32-true", "bf16-mixed", "--output", FOLDER),
    ("kernels.py", "--device", "cuda", "--output", FOLDER),
    ("table.py",),
)

if __name__ == "__main__":
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device: torch finds none here; run this where it does, or 'make bench' for the CPU")
    run(COMMANDS)
