"""Parameter files: what is written is read again, and what is damaged, foreign or too large is refused."""
import json
import os
import re
import struct
import tracemalloc
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest
from mxnet import nd
from safetensors.numpy import load_file, save_file

from params import ARGUMENTS, assert_same, make_net, pack, refusal, sign, unpack, values
from runs import params_file, storage


@pytest.mark.parametrize('attention', [True, False])
def test_round_trip(tmp_path, attention):
    net, other = make_net(seed=1, attention=attention), make_net(seed=2, attention=attention)
    storage.save_params(tmp_path, 'last', net)
    assert os.listdir(tmp_path) == ['last.safetensors']
    assert storage.load_params(tmp_path, 'last', other) == os.path.join(tmp_path, 'last.safetensors')
    assert_same(values(other), values(net))


def test_the_same_parameters_make_the_same_bytes(tmp_path):
    for name in ('last', 'best'):
        storage.save_params(tmp_path, name, make_net())
    assert (tmp_path / 'last.safetensors').read_bytes() == (tmp_path / 'best.safetensors').read_bytes()


@pytest.mark.parametrize('dtype', ['float32', 'float16'])
def test_two_lines_load_a_file_by_hand(tmp_path, dtype):
    net, other = make_net(seed=1), make_net(seed=2)
    storage.save_params(tmp_path, 'best', net, dtype)
    for name, array in load_file(tmp_path / 'best.safetensors').items():
        other._collect_params_with_prefix()[name].set_data(nd.array(array))
    assert_same(values(other), {name: array.astype(dtype).astype('float32') for name, array in values(net).items()})


def test_parameters_without_a_checksum_are_refused(tmp_path):
    net = make_net()
    for other in (None, {'draw': '{}'}, {'draw': '[]'}, {'draw': '"text"'}, {'sha256': '0' * 64}):
        save_file(values(net), tmp_path / 'last.safetensors', other)
        assert 'checksum' in refusal(storage.load_params, tmp_path, 'last', net)


def test_half_precision(tmp_path):
    net, other = make_net(seed=1), make_net(seed=2)
    storage.save_params(tmp_path, 'half', net, dtype='float16')
    storage.save_params(tmp_path, 'whole', net)
    numbers = sum(array.size for array in values(net).values())
    assert len(unpack(tmp_path / 'whole.safetensors')[1]) == 4 * numbers
    assert len(unpack(tmp_path / 'half.safetensors')[1]) == 2 * numbers
    storage.load_params(tmp_path, 'half', other)
    assert_same(values(other), {name: array.astype(np.float16).astype(np.float32)
                                for name, array in values(net).items()})


@pytest.mark.parametrize('changes', [{'num_steps': 3}, {'input_height': 4}, {'input_width': 3},
                                     {'input_height': 4, 'input_width': 3}], ids=str)
def test_parameters_of_another_network_of_the_same_shapes(saved, changes):
    folder, _ = saved
    assert 'does not fit' in refusal(storage.load_params, folder, 'last', make_net(**changes))


def test_saving_replaces_the_old_file(saved):
    folder, net = saved
    other = make_net(seed=2)
    storage.save_params(folder, 'last', other)
    storage.load_params(folder, 'last', net)
    assert_same(values(net), values(other))
    assert sorted(os.listdir(folder)) == ['config.json', 'last.safetensors']


def test_load_net_prefers_the_best_parameters(saved):
    folder, last = saved
    net, config, path = storage.load_net(folder, [mx.cpu()])
    assert_same(values(net), values(last))
    assert config == {'arguments': ARGUMENTS} and path == os.path.join(folder, 'last.safetensors')
    best = make_net(seed=2)
    storage.save_params(folder, 'best', best)
    net, _, path = storage.load_net(folder, [mx.cpu()])
    assert_same(values(net), values(best))
    assert path == os.path.join(folder, 'best.safetensors')


def test_folder_without_parameters(saved):
    folder, _ = saved
    os.remove(folder / 'last.safetensors')
    assert str(folder / 'best.safetensors') in refusal(storage.load_net, folder, mx.cpu())
    os.mkdir(folder / 'last.safetensors')
    assert str(folder / 'last.safetensors') in refusal(storage.load_net, folder, mx.cpu())


@pytest.mark.parametrize('change, parameter', [
    ({'num_recurrent_units': 3}, 'h_enc_0|h_dec_0|c_enc_0|c_dec_0|weight|bias'),
    ({'latent_dim': 2}, 'h_enc_to_q|z_to_dec'), ({'read_size': 2}, 'r_to_enc'),
    ({'write_size': 1}, r'write\.patch'), ({'attention': False}, r'read\.window|write\.|x_to_enc|r_to_enc')])
def test_parameters_of_another_architecture(saved, change, parameter):
    folder, _ = saved
    other = make_net(seed=2, **change)
    before = values(other)
    message = refusal(storage.load_params, folder, 'last', other)
    assert str(folder / 'last.safetensors') in message and re.search(parameter, message)
    assert_same(values(other), before)


@pytest.mark.parametrize('number', [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite(saved, number):
    folder, net = saved
    bias = net.h_enc_to_q.bias
    bias.set_data(nd.array([0, number]))
    storage.save_params(folder, 'last', net)
    assert 'h_enc_to_q.bias' in refusal(storage.load_params, folder, 'last', make_net(seed=2))


def test_every_truncation_is_refused(saved):
    folder, net = saved
    before = values(net)
    path = folder / 'last.safetensors'
    for length in reversed(range(path.stat().st_size)):
        os.truncate(path, length)
        assert str(path) in refusal(storage.load_params, folder, 'last', net), length
    assert_same(values(net), before)


@pytest.mark.parametrize('tail', [b'\0', b'x' * 7, b'\0' * 10000])
def test_appended_bytes_are_refused(saved, tail):
    folder, net = saved
    with open(folder / 'last.safetensors', 'ab') as file:
        file.write(tail)
    assert str(folder / 'last.safetensors') in refusal(storage.load_params, folder, 'last', net)


def overwrite(path, position, content):
    with open(path, 'r+b') as file:
        file.seek(position)
        file.write(content)


def outside_payloads(data, net):
    """Positions of all bytes that are not numbers of a parameter."""
    positions = set(range(len(data)))
    for array in values(net).values():
        start = data.index(array.tobytes())
        positions -= set(range(start, start + array.nbytes))
    return sorted(positions)


@pytest.mark.parametrize('every', [16, pytest.param(1, marks=pytest.mark.exhaustive)])
def test_damaged_byte_is_refused_or_has_no_effect(saved, every):
    folder, net = saved
    path, other = folder / 'last.safetensors', make_net(seed=2)
    expected = values(net)
    whole = path.read_bytes()
    positions = outside_payloads(whole, net)
    assert len(positions) + sum(array.nbytes for array in expected.values()) == len(whole)
    harmless = 0
    for position in positions[::every]:
        for byte in {whole[position] ^ 1, whole[position] ^ 0x80}:
            path.write_bytes(whole)
            overwrite(path, position, bytes([byte]))
            if position % 8 == 0 or every > 1:
                refusal(storage.load_params, folder, 'last', other)
            sign(path)
            try:
                storage.load_params(folder, 'last', other)
            except storage.RunError as error:
                assert str(error).isprintable(), (position, byte)
            else:
                harmless += 1
                assert_same(values(other), expected)
    assert harmless <= 2 * 64  # the checksum itself, which is made right again


def claims(header):
    """Headers with one wrong claim, of which `header` is the right one."""
    at = [key for key, _ in header].index('h_enc_0')
    name, right = header[at]
    start, end = right['data_offsets']
    wrong = {
        'shape': [[2 ** 63 - 1], [2 ** 64 - 1, 2], [2 ** 64, 1], [10 ** 400], [2 ** 40, 2], [2 ** 33, 2 ** 31], [0, 2],
                  [-1, -2], [1.5, 2], ['1', 2], [[1, 2]], [], [1] * 100, [0, 2 ** 63], None, 'text', {}, 2],
        'data_offsets': [[start, end - 1], [start + 1, end], [start, end + 4], [start + 4, end + 4], [end, start],
                         [start, 2 ** 63], [2 ** 64 - 8, 2 ** 64 - 1], [-8, 0], [start, 2 ** 64], [start], [], None,
                         'text', [float(start), float(end)], [start, 10 ** 400], header[1][1]['data_offsets']],
        'dtype': ['F64', 'I32', 'U32', 'BF16', 'F16', 'F8_E4M3', 'F8_E5M2', 'F4', 'BOOL', 'U8', 'C64', 'f32', 'float32',
                  '', None, 3, [], {'F32': 1}, '\n', 'F32\0']}
    entries = [(name, {**right, key: other}) for key, others in wrong.items() for other in others]
    entries += [(name, other) for other in (None, 3, 'text', [], {}, {'shape': right['shape']})]
    entries += [(other, right) for other in ('', 'h_enc_1', 'H_enc_0', 'x' * 100000, '\ud800', 'h_enc_0\n', 'h_enc_0\0',
                                             '__metadata__', '1/h_enc_0')]
    yield from ([*header[:at], entry, *header[at + 1:]] for entry in entries)
    yield [*header[:at], *header[at + 1:]]
    yield [*header, ('more', {**right, 'shape': [0], 'data_offsets': [end, end]})]  # an array too many, of no numbers
    yield [*header, ('more', right)]  # of the same numbers
    yield [*header, (name, {**right, 'shape': right['shape'][::-1]})]  # twice, and the last one counts
    yield [header[0], *header]
    yield header[1:]
    others = (None, 3, 'text', [], {}, *({'draw': text} for text in (
        None, 3, {}, '\ud800', '', '[' * 100000, '9' * 5000, '{"sha256": 3}', '{"sha256": "\\ud800"}',
        '{"sha256": ""}', '{"sha256": null}')))
    yield from ([('__metadata__', other), *header[1:]] for other in others)


def test_headers_with_a_valid_checksum(saved):
    """Whatever the header claims is refused, without taking memory."""
    folder, net = saved
    path, before = folder / 'last.safetensors', values(net)
    header, numbers = unpack(path)
    for other in claims(header):
        pack(path, other, numbers)
        tracemalloc.start()
        try:
            assert str(path) in refusal(storage.load_params, folder, 'last', net)
            assert tracemalloc.get_traced_memory()[1] < 2 ** 23
        finally:
            tracemalloc.stop()
    assert_same(values(net), before)
    pack(path, header, numbers)
    storage.load_params(folder, 'last', make_net(seed=2))  # the tools of this test are right


@pytest.mark.parametrize('length', [0, 1, 7, -1, -8, 2 ** 20 + 1, 2 ** 27, 2 ** 40, 2 ** 63, 2 ** 64 - 1])
def test_length_of_the_header(saved, length):
    folder, net = saved
    path = folder / 'last.safetensors'
    content = path.read_bytes()
    actual, = struct.unpack_from('<Q', content)
    path.write_bytes(struct.pack('<Q', actual + length if length < 0 else length) + content[8:])
    sign(path)
    tracemalloc.start()
    try:
        assert str(path) in refusal(storage.load_params, folder, 'last', net)
        assert tracemalloc.get_traced_memory()[1] < 2 ** 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize('metadata', [{'x': float('nan')}, {'x': float('inf')}])
def test_metadata_is_standard_json(tmp_path, metadata):
    path, arrays = str(tmp_path / 'file'), {'x': np.ones(3, np.float32)}
    with pytest.raises(ValueError, match='JSON'):
        params_file.write(path, arrays, metadata)
    text = json.dumps({'sha256': '0' * 64, **metadata})
    save_file(arrays, path, {'draw': text})
    sign(path)
    with pytest.raises(params_file.ParamsError, match='no JSON'):
        params_file.read(path, {'x': (3,)})


def test_metadata_of_any_size_is_read_again_or_not_written(tmp_path):
    path, arrays = str(tmp_path / 'file'), {'x': np.ones(3, np.float32)}
    files_of_4000_sittings = {f'events.out.tfevents.1700000000.{"host" * 10}.{k:020}': 10 ** 9 for k in range(4000)}
    params_file.write(path, arrays, {'event_files': files_of_4000_sittings})
    assert params_file.read(path, {'x': (3,)})[1] == {'event_files': files_of_4000_sittings}
    for length in range(2 ** 20 - 250, 2 ** 20, 10):
        try:
            params_file.write(path, arrays, {'text': 'x' * length})
        except OSError as error:
            assert error.filename == path and 'larger' in error.strerror
            assert params_file.read(path, {'x': (3,)})[1] == {'text': 'x' * (length - 10)}  # the one before
            break
        assert params_file.read(path, {'x': (3,)})[1] == {'text': 'x' * length}
    else:
        pytest.fail('metadata of any size is written')


def test_enormous_file_is_not_read(saved):
    folder, net = saved
    os.truncate(folder / 'last.safetensors', 2 ** 33)  # a hole, which takes no room
    tracemalloc.start()
    try:
        refusal(storage.load_params, folder, 'last', net)
        assert tracemalloc.get_traced_memory()[1] < 2 ** 20
    finally:
        tracemalloc.stop()


def foreign_files():
    rng = np.random.default_rng(0)
    yield 'empty', lambda path: open(path, 'wb').close()
    yield 'text', lambda path: Path(path).write_text('not parameters\n' * 100)
    yield 'random', lambda path: Path(path).write_bytes(rng.bytes(3000))
    yield 'of MXNet', lambda path: nd.save(path, {'h_enc_0': nd.ones((1, 2))})
    yield 'one array', lambda path: save_file({'h_enc_0': np.ones((1, 2), np.float32)}, path)
    yield 'no arrays', lambda path: save_file({}, path)
    yield 'signed, one array', lambda path: params_file.write(path, {'h_enc_0': np.ones((1, 2), np.float32)}, {})
    yield 'signed, no arrays', lambda path: params_file.write(path, {}, {})


@pytest.mark.parametrize('write', [pytest.param(write, id=name) for name, write in foreign_files()])
def test_foreign_file_is_refused(saved, write):
    folder, net = saved
    before = values(net)
    os.remove(folder / 'last.safetensors')
    write(str(folder / 'last.safetensors'))
    assert str(folder / 'last.safetensors') in refusal(storage.load_params, folder, 'last', net)
    assert_same(values(net), before)


@pytest.mark.parametrize('dtype', ['float64', 'int32', 'int16', 'uint8', 'bool'])
def test_other_types_are_refused(saved, dtype):
    folder, net = saved
    path = folder / 'last.safetensors'
    _, metadata = params_file.read(path, {name: array.shape for name, array in values(net).items()})
    params_file.write(path, {name: np.ones(array.shape, dtype) for name, array in values(net).items()}, metadata)
    assert 'float32' in refusal(storage.load_params, folder, 'last', net)


def test_name_that_occurs_twice_is_refused(saved):
    folder, net = saved
    path = folder / 'last.safetensors'
    path.write_bytes(path.read_bytes().replace(b'c_enc_0', b'h_enc_0'))
    sign(path)
    assert str(path) in refusal(storage.load_params, folder, 'last', net)


@pytest.mark.parametrize('names', [['best'], ['last'], ['checkpoint'], ['best', 'last', 'checkpoint']], ids=' '.join)
def test_folder_of_an_earlier_version(saved, names):
    folder, net = saved
    os.remove(folder / 'last.safetensors')
    for name in names:
        net.save_parameters(str(folder / f'{name}.params'))
    for function in (storage.read_config, lambda folder: storage.load_net(folder, [mx.cpu()])):
        assert f'holds {names[0]}.params, the format of earlier versions' in refusal(function, folder)
    storage.save_params(folder, 'last', net)
    storage.load_net(folder, [mx.cpu()])
