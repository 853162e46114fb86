"""Parameter files: what is written is read again; what is damaged, foreign or of another network ends in one line."""
import argparse
import errno
import hashlib
import json
import os
import pickle
import re
import resource
import struct
from pathlib import Path

from system import files

import numpy as np
import pytest
from mxnet import nd
from safetensors.numpy import save_file

from networks import assert_equal, random_parameters, set_parameters
from runs import config, params
from small_runs import ROOT, change_config, fail_with, fails

PATH = 'best.safetensors'
ARGV = ['-hh', '3', '-ww', '4', '-s', '2', '-u', '2', '-l', '1', '--attention', '-ar', '1', '-aw', '2']


def make_net(seed=1, **changes):
    """A tiny network with random numbers in every parameter."""
    net = params.build_net(argparse.Namespace(**{**vars(config.parse_args(ARGV)), **changes}))
    net.initialize()
    set_parameters(net, random_parameters(net, seed))
    return net


@pytest.fixture(scope='module')
def net():
    return make_net()


@pytest.fixture(scope='module')
def arrays(net):
    return params.arrays_of(net)


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def saved(net, arrays):
    """best.safetensors in the folder of a run."""
    files.write_json('config.json', {'arguments': vars(config.parse_args(ARGV))})
    params.save(PATH, net, arrays)
    return Path(PATH)


def refusal(net, path=PATH):
    """The line with which a file is refused; it names the file."""
    line = fails(params.load, path, net)
    assert path in line
    return line


def sign(content):
    """Make the checksum right again, where there still is one, to reach what is behind it."""
    found = re.search(rb'sha256\\": \\"([0-9a-f]{64})', content)
    if not found:
        return content
    start, end = found.span(1)
    digest = hashlib.sha256(content[:start] + b'0' * 64 + content[end:]).hexdigest()
    return content[:start] + digest.encode() + content[end:]


def unpack(path):
    """A parameter file as (header, numbers): [(key, value)], in which a key may occur twice, and bytes."""
    content = Path(path).read_bytes()
    end = 8 + int.from_bytes(content[:8], 'little')
    return [*json.loads(content[8:end]).items()], content[end:]


def pack(path, header, numbers):
    """Write and sign what `unpack` returned."""
    text = '{' + ','.join(f'{json.dumps(key)}:{json.dumps(value)}' for key, value in header) + '}'
    Path(path).write_bytes(sign(struct.pack('<Q', len(text)) + text.encode() + numbers))


@pytest.fixture
def little_memory():
    """Nothing in a test takes much memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024  # KiB


# What is written is read again

@pytest.mark.parametrize('attention', [True, False])
@pytest.mark.parametrize('groups', [('',), params.GROUPS], ids=['parameters', 'checkpoint'])
def test_what_is_saved_is_loaded(attention, groups):
    net, state = make_net(attention=attention), {'samples_seen': 7, 'best_bound': None}
    arrays = {group + name: array + k for k, group in enumerate(groups)
              for name, array in params.arrays_of(net).items()}
    params.save(PATH, net, arrays, state)
    assert os.listdir() == [PATH]
    found, found_state = params.load(PATH, make_net(2, attention=attention), groups)
    assert_equal(found, arrays)
    assert {name: found_state[name] for name in state} == state
    params.save('again', net, arrays, state)
    assert Path('again').read_bytes() == Path(PATH).read_bytes()


def test_half_precision(net):
    half = params.arrays_of(net, 'float16')
    params.save(PATH, net, half)
    assert len(unpack(PATH)[1]) == 2 * sum(array.size for array in half.values())
    assert_equal(params.load(PATH, net)[0], {name: array.astype('float32') for name, array in half.items()})


def test_model_of_a_run(saved, net, arrays):
    """Its best parameters, or those of the checkpoint before the first validation."""
    moments = {group + name: array + 1 for group in params.GROUPS for name, array in arrays.items()}
    params.save(params.CHECKPOINT, net, moments)
    found, stored, path = params.load_run('.')
    assert_equal(params.arrays_of(found), arrays)
    assert path == f'./{PATH}' and stored['arguments'].num_steps == 2
    saved.unlink()
    assert_equal(params.arrays_of(params.load_net('.')), {name: moments[name] for name in arrays})
    os.unlink(params.CHECKPOINT)
    assert PATH in fails(params.load_net, '.')


@pytest.mark.parametrize('name', ['draw_w_attn', 'draw_wo_attn'])
def test_models_of_the_previous_version_are_loaded(name):
    net, stored, _ = params.load_run(str(ROOT / 'assets' / name))
    assert net.num_steps == 64 and stored['validation']['bound'] < 90
    args = config.parse_args(['--init', str(ROOT / 'assets' / name)])
    assert_equal(params.load_init(args)[0], params.arrays_of(net))


def test_failure_leaves_the_old_file(saved, net, arrays, monkeypatch):
    before = saved.read_bytes()
    for function in ('fsync', 'replace'):
        with monkeypatch.context() as patch:
            patch.setattr(os, function, fail_with(OSError(errno.ENOSPC, 'No space left on device')))
            with pytest.raises(OSError, match=PATH):
                params.save(PATH, net, arrays, {'samples_seen': 7})
        assert saved.read_bytes() == before and sorted(os.listdir()) == [PATH, 'config.json']
    with pytest.raises(ValueError, match='JSON'):
        params.save(PATH, net, arrays, {'best_bound': float('nan')})
    assert saved.read_bytes() == before


# Files of other networks

@pytest.mark.parametrize('changes', [
    {'num_steps': 3}, {'input_height': 4}, {'input_height': 4, 'input_width': 3}, {'num_recurrent_units': 3},
    {'latent_dim': 2}, {'read_size': 2}, {'write_size': 1}, {'attention': False}], ids=str)
def test_parameters_of_another_network_are_refused(saved, changes):
    assert 'does not fit the config.json' in refusal(make_net(**changes))
    assert 'does not fit the config.json' in fails(params.load, PATH, make_net(), params.GROUPS)
    changed = {'read_size': None, 'write_size': None, **changes} if 'attention' in changes else changes
    change_config('.', changed)
    assert PATH in fails(params.load_run, '.')


def test_huge_network_takes_no_memory(saved, little_memory):
    for changes in ({'num_recurrent_units': 4096}, {'latent_dim': 4096}, {'input_height': 2000, 'input_width': 2000}):
        change_config('.', changes)
        assert 'does not fit' in fails(params.load_run, '.')


# Files that are damaged or foreign

def test_every_truncation_and_every_changed_byte_is_refused(saved, net, arrays, little_memory):
    """A change under a right checksum is refused, or changes numbers, which stay finite and those of this network."""
    whole, rng, loaded = saved.read_bytes(), np.random.default_rng(0), 0
    for length in range(0, len(whole), 3):
        saved.write_bytes(whole[:length])
        refusal(net)
    for at in range(0, len(whole), 3):
        changed = whole[:at] + bytes([whole[at] ^ 1 << rng.integers(8)]) + whole[at + 1:]
        saved.write_bytes(changed)
        refusal(net)
        saved.write_bytes(sign(changed))
        try:
            found, _ = params.load(PATH, net)
        except params.cli.UserError:
            refusal(net)
            continue
        loaded += 1
        assert {name: array.shape for name, array in found.items()} == {name: a.shape for name, a in arrays.items()}
        assert all(np.isfinite(array).all() for array in found.values())
    assert 100 < loaded < len(whole) / 6
    for tail in (b'\0', b'x' * 7, b'\0' * 10000):
        saved.write_bytes(whole + tail)
        refusal(net)


class Trap:
    """Writes a file when it is unpickled."""

    def __reduce__(self):
        return Path.touch, (Path('trap'),)


FOREIGN = {
    'empty': lambda path, arrays: path.touch(), 'text': lambda path, arrays: path.write_text('no numbers\n' * 100),
    'random': lambda path, arrays: path.write_bytes(np.random.default_rng(0).bytes(3000)),
    'a pickle': lambda path, arrays: path.write_bytes(pickle.dumps(Trap())),
    'of MXNet': lambda path, arrays: nd.save(str(path), {'h_enc_0': nd.ones((1, 2))}),
    'no checksum': lambda path, arrays: save_file(arrays, path),
    'other metadata': lambda path, arrays: save_file(arrays, path, {'draw': '{}'}),
    'a list': lambda path, arrays: save_file(arrays, path, {'draw': '[]'}),
    'a folder': lambda path, arrays: path.mkdir(), 'a pipe': lambda path, arrays: os.mkfifo(path),
    'endless': lambda path, arrays: path.symlink_to('/dev/zero'), 'a loop': lambda path, arrays: path.symlink_to(path),
    'missing': lambda path, arrays: None}


@pytest.mark.parametrize('kind', FOREIGN)
def test_foreign_file_is_refused(net, arrays, kind, little_memory):
    FOREIGN[kind](Path(PATH), arrays)
    refusal(net)
    assert not os.path.exists('trap')


@pytest.mark.parametrize('numbers', [
    *(np.zeros(2, dtype) for dtype in ('float64', 'int32', 'int16', 'uint8', 'bool')),
    *(np.array([0, number], np.float32) for number in (np.nan, np.inf, -np.inf))], ids=lambda array: f'{array}')
def test_numbers_of_another_type_or_not_finite_are_refused(net, arrays, numbers):
    params.save(PATH, net, {**arrays, 'h_enc_to_q.bias': numbers})
    assert 'h_enc_to_q.bias must hold finite float32' in refusal(net)


def claims(header):
    """Headers with one wrong claim, of which `header` is the right one."""
    at = [key for key, _ in header].index('h_enc_0')
    name, right = header[at]
    start, end = right['data_offsets']
    wrong = {
        'shape': [[2 ** 63 - 1], [2 ** 64 - 1, 2], [10 ** 400], [2 ** 33, 2 ** 31], [0, 2], [-1, -2], [1.5, 2],
                  ['1', 2], [], [0, 2 ** 63], None, 'text', {}, 2],
        'data_offsets': [[start, end - 1], [start + 1, end], [start, end + 4], [end, start], [2 ** 64 - 8, 2 ** 64 - 1],
                         [-8, 0], [start], None, 'text', [start, 10 ** 400], header[1][1]['data_offsets']],
        'dtype': ['F64', 'I32', 'BF16', 'F16', 'F8_E4M3', 'F4', 'f32', '', None, 3, [], {'F32': 1}, 'F32\0']}
    entries = [(name, {**right, key: other}) for key, others in wrong.items() for other in others]
    entries += [(name, other) for other in (None, 3, 'text', [], {}, {'shape': right['shape']})]
    entries += [(other, right) for other in ('', 'h_enc_1', 'x' * 100000, '\ud800', 'h_enc_0\n', '__metadata__')]
    yield from ([*header[:at], entry, *header[at + 1:]] for entry in entries)
    yield [*header[:at], *header[at + 1:]]
    yield [*header, ('more', {**right, 'shape': [0], 'data_offsets': [end, end]})]  # an array of no numbers
    yield [*header, ('more', right)]  # of the same numbers
    yield [*header, (name, {**right, 'shape': right['shape'][::-1]})]  # twice, and the last one counts
    yield header[1:]
    metadata = None, 3, 'text', [], {}, *({'draw': text} for text in (
        None, 3, '', '[' * 100000, '9' * 5000, '{"sha256": 3}', '{"sha256": "\\ud800"}', '{"sha256": ""}'))
    yield from ([('__metadata__', other), *header[1:]] for other in metadata)


def test_whatever_a_header_claims_is_refused(saved, net, arrays, little_memory):
    header, numbers = unpack(PATH)
    for other in claims(header):
        pack(PATH, other, numbers)
        refusal(net)
    pack(PATH, header, numbers)
    assert_equal(params.load(PATH, net)[0], arrays)  # the tools of this test are right


@pytest.mark.parametrize('length', [0, 1, -1, -8, 2 ** 20 + 1, 2 ** 27, 2 ** 40, 2 ** 63, 2 ** 64 - 1])
def test_length_of_the_header(saved, net, length, little_memory):
    content = saved.read_bytes()
    right, = struct.unpack_from('<Q', content)
    saved.write_bytes(sign(struct.pack('<Q', right + length if length < 0 else length) + content[8:]))
    refusal(net)


def test_enormous_file_is_not_read(saved, net, little_memory):
    os.truncate(PATH, 2 ** 33)  # a hole, which takes no room
    assert 'larger' in refusal(net)
