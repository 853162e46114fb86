"""Checkpoints that are whole but odd: what a stranger's metadata may say, and what --resume then says."""
import json
import re
import subprocess
import sys

import pytest

import train_mnist
from commands import ROOT, TIME_OUT, change_arguments, refusal
from params import pack, unpack
from runs import storage

GOOD = {'samples_seen': 64, 'num_updates': 4, 'best_bound': 90.5, 'seconds': 1.5, 'arguments': {}}
FLOATS = (True, '1', [], {}, 3, 10 ** 400, float('nan'), float('-inf'))
BAD_METADATA = [
    *({key: value} for key in ('samples_seen', 'num_updates') for value in (
        0, -1, 2 ** 53, 2 ** 63, 10 ** 400, 1., float('inf'), float('nan'), True, '1', None, [1], {})),
    *({'best_bound': value} for value in (*FLOATS, float('inf'))),
    *({'seconds': value} for value in (*FLOATS, float('inf'), None, -1., 1e11, 1e308)),
    *({'arguments': value} for value in (None, 3, [], 'text'))]


@pytest.mark.parametrize('change', BAD_METADATA, ids=lambda change: str(change)[:40])
def test_metadata_out_of_range(change):
    with pytest.raises(storage.RunError, match=f'its {next(iter(change))} is') as caught:
        storage.check_metadata('checkpoint', {**GOOD, **change})
    assert str(caught.value).isprintable() and len(str(caught.value)) < 200


def test_metadata_in_range():
    largest = {'samples_seen': 2 ** 53 - 1, 'num_updates': 2 ** 53 - 1, 'best_bound': None, 'seconds': 0.}
    for change in ({}, largest, {'best_bound': -1e308}):
        storage.check_metadata('checkpoint', {**GOOD, **change})
    for name in GOOD:
        with pytest.raises(storage.RunError, match=name):
            storage.check_metadata('checkpoint', {key: value for key, value in GOOD.items() if key != name})


@pytest.mark.parametrize('change', [{'samples_seen': 2 ** 62}, {'num_updates': 10 ** 400}, {'seconds': 1e300}],
                         ids=lambda change: next(iter(change)))
def test_checkpoint_with_a_valid_checksum_and_odd_metadata(run, capsys, change):
    path = run / 'checkpoint.safetensors'
    header, numbers = unpack(path)
    pack(path, [('__metadata__', {'draw': json.dumps({**json.loads(header[0][1]['draw']), **change})}), *header[1:]],
         numbers)
    err = refusal(capsys, train_mnist.main, '--resume', run)
    assert 'checkpoint.safetensors' in err and next(iter(change)) in err


@pytest.mark.parametrize('constant', ['NaN', 'Infinity', '-Infinity'])
def test_checkpoint_with_numbers_that_json_does_not_have(run, capsys, constant):
    header, numbers = unpack(run / 'checkpoint.safetensors')
    text = re.sub(r'("seconds": )[^,]+', rf'\g<1>{constant}', header[0][1]['draw'])
    assert f'"seconds": {constant},' in text
    pack(run / 'checkpoint.safetensors', [('__metadata__', {'draw': text}), *header[1:]], numbers)
    assert constant in refusal(capsys, train_mnist.main, '--resume', run)


RESUME_WITH_LITTLE_MEMORY = '''
import resource, sys
sys.path.insert(0, sys.argv.pop(1))
from system import devices
import mxnet as mx
import train_mnist
mx.nd.ones(1).asnumpy()
pages = int(open('/proc/self/statm').read().split()[0])
limit = pages * resource.getpagesize() + 2 ** 29
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
sys.exit(train_mnist.main())
'''


@pytest.mark.parametrize('size', [2 ** 14, 2 ** 16])
def test_config_of_a_huge_network_takes_no_memory(run, size):
    change_arguments(run, num_recurrent_units=size)
    done = subprocess.run([sys.executable, '-c', RESUME_WITH_LITTLE_MEMORY, ROOT, '--resume', run],
                          capture_output=True, text=True, timeout=TIME_OUT)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr[-2000:]
    assert 'does not fit the config.json' in done.stderr
