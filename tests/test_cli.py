"""What importing system does to the environment that mxnet starts in."""
import os
import subprocess
import sys
from pathlib import Path

import pytest

NAMES = ('OMP_NUM_THREADS', 'MXNET_OMP_MAX_THREADS', 'MXNET_CPU_PARALLEL_SIZE')
PROCESSORS = len(os.sched_getaffinity(0))


def settings(own, *argv, names=NAMES):
    """What system makes of these variables and this command line."""
    environment = {name: value for name, value in os.environ.items() if name not in names}
    code = f'import os, system; print(*(os.environ.get(name) for name in {names}))'
    output = subprocess.run([sys.executable, '-c', code, *argv], env={**environment, **own},
                            cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True, timeout=60)
    return tuple(output.stdout.split())


@pytest.mark.parametrize('own, expected', [
    ({}, (str(PROCESSORS), 'None', str(2 ** 31 - 1))),
    ({'OMP_NUM_THREADS': '7'}, ('7', 'None', str(2 ** 31 - 1))),
    ({'MXNET_OMP_MAX_THREADS': '3'}, ('None', '3', str(2 ** 31 - 1))),
    ({'MXNET_CPU_PARALLEL_SIZE': '5', 'OMP_NUM_THREADS': '1'}, ('1', 'None', '5')),
], ids=str)
def test_threads_are_set_unless_the_user_did(own, expected):
    assert settings(own) == expected


@pytest.mark.parametrize('argv, contexts', [
    (['--cpu_contexts', '2'], 2), (['-b', '8', '--cpu_contexts=2', '--attention'], 2),
    (['--cpu_contexts', '1000'], 1000), (['--cpu_contexts', '0'], 1), (['--cpu_contexts', 'two'], 1),
    (['--cpu_contexts'], 1), (['--gpu'], 1)], ids=str)
def test_contexts_share_the_processors(argv, contexts):
    assert settings({}, *argv)[0] == str(max(1, PROCESSORS // contexts))
    assert settings({'OMP_NUM_THREADS': '7'}, *argv)[0] == '7'
    pieces = ('MXNET_CPU_TEMP_COPY',)
    assert settings({}, *argv, names=pieces) == ('4096' if contexts > 1 else 'None',)
    assert settings({'MXNET_CPU_TEMP_COPY': '8'}, *argv, names=pieces) == ('8',)
