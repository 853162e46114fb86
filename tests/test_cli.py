"""What importing cli does to the environment that mxnet starts in."""
import os
import subprocess
import sys
from pathlib import Path

import pytest

NAMES = ('OMP_NUM_THREADS', 'MXNET_OMP_MAX_THREADS', 'MXNET_CPU_PARALLEL_SIZE')


@pytest.mark.parametrize('own, expected', [
    ({}, (str(len(os.sched_getaffinity(0))), 'None', str(2 ** 31 - 1))),
    ({'OMP_NUM_THREADS': '7'}, ('7', 'None', str(2 ** 31 - 1))),
    ({'MXNET_OMP_MAX_THREADS': '3'}, ('None', '3', str(2 ** 31 - 1))),
    ({'MXNET_CPU_PARALLEL_SIZE': '5', 'OMP_NUM_THREADS': '1'}, ('1', 'None', '5')),
], ids=str)
def test_threads_are_set_unless_the_user_did(own, expected):
    environment = {name: value for name, value in os.environ.items() if name not in NAMES}
    code = f'import os, cli; print(*(os.environ.get(name) for name in {NAMES}))'
    output = subprocess.run([sys.executable, '-c', code], env={**environment, **own}, cwd=Path(__file__).parents[1],
                            capture_output=True, text=True, check=True, timeout=60)
    assert tuple(output.stdout.split()) == expected
