"""Parameter files: what is written is read again; what is damaged, foreign or of another network ends in one line."""
import argparse
import errno
import os
import pickle
from pathlib import Path

from system import files

import numpy as np
import pytest
from mxnet import nd
from safetensors.numpy import save_file

from networks import assert_equal, random_parameters
from runs import config, params
from small_runs import change_config, fail_with, fails

PATH = 'best.safetensors'
ARGV = ['-hh', '3', '-ww', '4', '-s', '2', '-u', '2', '-l', '1', '--attention', '-ar', '1', '-aw', '2']


def make_net(**changes):
    """A tiny network with random numbers in every parameter."""
    net = params.build_net(argparse.Namespace(**{**vars(config.parse_args(ARGV)), **changes}))
    net.initialize()
    params.set_arrays(net, random_parameters(net, seed=1))
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
    params.save(PATH, arrays)
    return Path(PATH)


def random_checkpoint(net):
    """Random arrays of all names and shapes of a checkpoint."""
    rng = np.random.default_rng(0)
    return {prefix + name: rng.normal(size=array.shape).astype(np.float32)
            for prefix in params.PREFIXES for name, array in params.arrays_of(net).items()}


def refusal(net, path=PATH):
    """The line with which a file is refused; it names the file."""
    line = fails(params.load, path, net)
    assert path in line
    return line


# What is written is read again

def test_what_is_saved_is_loaded(net):
    state, arrays = {'samples_seen': 7, 'best_bound': None}, random_checkpoint(net)
    params.save(PATH, arrays, state)
    assert os.listdir() == [PATH]
    found, found_state = params.load(PATH, net, params.PREFIXES)
    assert_equal(found, arrays)
    assert {name: found_state[name] for name in state} == state
    params.save('again', arrays, state)
    assert Path('again').read_bytes() == Path(PATH).read_bytes()


def test_model_of_a_run(saved, net, arrays):
    """Its best parameters, or those of the checkpoint before the first validation."""
    latest = random_checkpoint(net)
    params.save(params.CHECKPOINT, latest)
    found, stored, path = params.load_run('.')
    assert_equal(params.arrays_of(found), arrays)
    assert path == f'./{PATH}' and stored['arguments'].num_steps == 2
    saved.unlink()
    assert_equal(params.arrays_of(params.load_net('.')), {name: latest[name] for name in arrays})
    os.unlink(params.CHECKPOINT)
    assert 'has neither best.safetensors nor checkpoint.safetensors' in fails(params.load_net, '.')


def test_failure_leaves_the_old_file(saved, net, arrays, monkeypatch):
    before = saved.read_bytes()
    for function in ('fsync', 'replace'):
        with monkeypatch.context() as patch:
            patch.setattr(os, function, fail_with(OSError(errno.ENOSPC, 'No space left on device')))
            with pytest.raises(OSError, match=PATH):
                params.save(PATH, arrays, {'samples_seen': 7})
        assert saved.read_bytes() == before and sorted(os.listdir()) == [PATH, 'config.json']
    with pytest.raises(ValueError, match='JSON'):
        params.save(PATH, arrays, {'best_bound': float('nan')})
    assert saved.read_bytes() == before


# Files of other networks

@pytest.mark.parametrize('changes', [
    {'num_recurrent_units': 3}, {'latent_dim': 2}, {'read_size': 2}, {'write_size': 1}, {'attention': False}], ids=str)
def test_parameters_of_another_network_are_refused(saved, changes):
    assert 'does not fit the config.json' in refusal(make_net(**changes))
    assert 'does not fit the config.json' in fails(params.load, PATH, make_net(), params.PREFIXES)
    changed = {'read_size': None, 'write_size': None, **changes} if 'attention' in changes else changes
    change_config('.', changed)
    assert PATH in fails(params.load_run, '.')


# Files that are damaged or foreign

def test_every_truncation_and_every_changed_byte_is_refused(saved, net):
    whole, rng = saved.read_bytes(), np.random.default_rng(0)
    for at in range(0, len(whole), 3):
        saved.write_bytes(whole[:at])
        refusal(net)
        saved.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << rng.integers(8)]) + whole[at + 1:])
        refusal(net)
    saved.write_bytes(whole + b'\0')
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
    'a list': lambda path, arrays: save_file(arrays, path, {'draw': '[]'})}


@pytest.mark.parametrize('kind', FOREIGN)
def test_foreign_file_is_refused(net, arrays, kind):
    FOREIGN[kind](Path(PATH), arrays)
    refusal(net)
    assert not os.path.exists('trap')
