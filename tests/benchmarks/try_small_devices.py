"""Milliseconds a picture of every file of a model folder on this machine, one thread:
python -m tests.benchmarks.try_small_devices models/line  (made with `optimize --steps litert,ncnn,…`)"""

import sys

from cv_pipeline.inference.loading import explain_choice

if __name__ == "__main__":
    print(explain_choice(sys.argv[1] if len(sys.argv) > 1 else "factory_line", threads=1))
