"""Networks in a run's folder, for the tests of what is stored: making, comparing, taking apart and signing files."""
import hashlib
import json
import re
import struct
from pathlib import Path

import numpy as np
import pytest
from mxnet import nd

from runs import storage

ARGUMENTS = {'input_height': 3, 'input_width': 4, 'num_steps': 2, 'num_recurrent_units': 2, 'latent_dim': 1,
             'attention': True, 'read_size': 1, 'write_size': 2, 'dataset': 'mnist', 'data_dir': 'data',
             'binarization': 'dynamic'}


def make_net(seed=1, **changes):
    """A tiny network with random numbers in every parameter."""
    rng = np.random.default_rng(seed)
    net = storage.build_net({**ARGUMENTS, **changes})
    net.initialize()
    for parameter in net.collect_params().values():
        parameter.set_data(nd.array(rng.normal(size=parameter.shape)))
    return net


def values(net):
    return {name: parameter.data().asnumpy() for name, parameter in net._collect_params_with_prefix().items()}


def assert_same(left, right):
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_array_equal(left[name], right[name], err_msg=name)


def refusal(function, *args):
    """The message of the RunError that the call raises; it is one line."""
    with pytest.raises(storage.RunError) as caught:
        function(*args)
    message = str(caught.value)
    assert message.isprintable() and message
    return message


def sign(path):
    """Make the checksum right again, where there still is one, so that a test reaches what is behind it."""
    content = Path(path).read_bytes()
    checksum = re.search(rb'sha256\\": \\"([0-9a-f]{64})', content)
    if checksum:
        start, end = checksum.span(1)
        digest = hashlib.sha256(content[:start] + b'0' * 64 + content[end:]).hexdigest()
        Path(path).write_bytes(content[:start] + digest.encode() + content[end:])


def unpack(path):
    """A parameter file as (header, numbers): [(key, value)], so that a key can stand twice, and bytes."""
    content = Path(path).read_bytes()
    end = 8 + int.from_bytes(content[:8], 'little')
    return list(json.loads(content[8:end]).items()), content[end:]


def pack(path, header, numbers):
    """Write and sign what `unpack` returned."""
    text = '{' + ','.join(f'{json.dumps(key)}:{json.dumps(value)}' for key, value in header) + '}'
    Path(path).write_bytes(struct.pack('<Q', len(text)) + text.encode() + numbers)
    sign(path)
