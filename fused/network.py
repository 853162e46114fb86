"""core.DRAW computed by one operator."""
import ctypes
import functools

from system import cli, devices

import numpy as np
from mxnet import autograd, init, nd
from mxnet.base import _LIB, check_call

import core
from fused import library

_CHUNK = 32  # a thread takes at most this many images through all steps together; with fewer, a weight is reused less
_STATES = 'h_enc_0', 'c_enc_0', 'h_dec_0', 'c_dec_0'
_ATTENTION = {(core.SelectiveAttentionRead, core.SelectiveAttentionWrite): True,
              (core.NoAttentionRead, core.NoAttentionWrite): False}
_NO_BIAS = 'x_to_enc', 'h_dec_to_enc', 'h_enc_to_enc', 'h_dec_to_dec'


def accelerate(net, contexts, fused='auto'):
    """The callable that computes an initialized network: a `FusedDRAW`, or `net` itself on a GPU, without a C compiler,
    where core.py was changed or `net` is of another class, or with fused='off'. Raises cli.UserError where fused='on'
    is impossible."""
    try:
        if fused != 'off' and contexts[0].device_type == 'cpu':
            operator = FusedDRAW(net, devices.threads())
            _compare(type(net.read), type(net.write))
            return operator
        if fused == 'on':
            raise library.Unavailable('it is for the CPU')
    except library.Unavailable as error:
        if fused == 'on':
            raise cli.UserError(f'argument --fused: {error}') from None
        cli.say(f'The fused operator cannot be used: {error}. Without it, this takes two to four times as long; '
                '--fused off hides this line.')
    return net


@functools.cache
def _compare(read, write):
    """Raise library.Unavailable if core.py, which a reader may change, and draw.c differ on small networks: in values
    and gradients and, for numbers far from zero, where a clip shows, in values."""
    rng = np.random.RandomState(0)
    for shape, scale in ((5, 7), 0.5), *[((7, 5), 4)] * 8:  # scale: of all but the weights
        blocks = (read(2, shape), write(3, shape)) if _ATTENTION[read, write] else (read(), write(shape))
        net = core.DRAW(*blocks, shape, num_steps=3, num_recurrent_units=4, latent_dim=2)
        parameters = net._collect_params_with_prefix()
        for name, parameter in parameters.items():
            parameter.initialize(init.Zero())  # MXNet's random numbers are the caller's
            values = rng.normal(scale=0.5 if name.endswith('weight') else scale, size=parameter.shape)
            parameter.set_data(nd.array(values))
        x, eps, results = nd.array(rng.rand(2, 35) > 0.5), nd.array(rng.normal(size=(3, 2, 2))), []
        for forward in net, FusedDRAW(net, 1):
            with autograd.record():
                outputs = forward(x, eps)
                total = sum(output.square().sum() for output in outputs)
            if scale < 1:
                total.backward()
                outputs = *outputs, *(parameter.grad() for parameter in parameters.values())
            results.append([output.asnumpy() for output in outputs])
        if not all(np.allclose(ours, theirs, rtol=0, atol=1e-4 * abs(theirs).max()) for ours, theirs in zip(*results)):
            raise library.Unavailable('core.py does not compute what fused/draw.c does')


class FusedDRAW:
    """A `core.DRAW` whose forward and backward pass are one operator each, on the CPU.

    The same function of the same parameters, several times as fast. The result is bit-identical for any number of
    threads.

    Parameters
    ----------
    net : core.DRAW
        Initialized on the CPU. Its parameters are used as they are at each call.
    num_threads : int

    Inputs and outputs are those of `core.DRAW`. Under `autograd.record()` the parameters get gradients; x and eps get
    none (theirs would be NaN).

    Raises ValueError as `core.DRAW` does, and for parameters with grad_req 'add', which `autograd.Function` does not
    support. Raises `fused.library.Unavailable` without a C compiler, and for networks of other classes or parameters.
    """

    def __init__(self, net, num_threads):
        self.library = library.load()
        self._net, self._num_threads, self._free = net, num_threads, {True: [], False: []}
        self._parameters = net._collect_params_with_prefix()
        attention = _ATTENTION.get((type(net.read), type(net.write)))
        if type(net) is not core.DRAW or attention is None:
            raise library.Unavailable('it computes core.DRAW with attention in both blocks or in neither')
        units, latent, pixels = net.h_enc_0.shape[1], net.latent_dim, net.image_shape[0] * net.image_shape[1]
        gates, r, w = 4 * units, pixels, pixels
        if attention:
            r, w = 2 * net.read.filter_size ** 2, net.write.filter_size ** 2
        layers = {  # outputs and inputs, in draw.c's order
            'r_to_enc': (gates, r), 'x_to_enc': (gates, pixels), 'h_dec_to_enc': (gates, units),
            'h_enc_to_enc': (gates, units), 'h_enc_to_q': (2 * latent, units), 'z_to_dec': (gates, latent),
            'h_dec_to_dec': (gates, units), 'write.patch' if attention else 'write.image': (w, units),
            'read.window': (5, units), 'write.window': (5, units)}
        self._order = [f'{layer}.{kind}' for layer in layers for kind in ('weight', 'bias')] + [*_STATES]
        for layer in ['x_to_enc'] if attention else ['read.window', 'write.window']:
            del layers[layer]
        shapes = {f'{layer}.weight': shape for layer, shape in layers.items()}
        shapes.update((f'{layer}.bias', shape[:1]) for layer, shape in layers.items() if layer not in _NO_BIAS)
        shapes.update(dict.fromkeys(_STATES, (1, units)))
        if shapes != {name: parameter.shape for name, parameter in self._parameters.items()}:
            raise library.Unavailable('core.DRAW has other parameters than fused/draw.c')

    def __call__(self, x, eps):
        self._net._check(x, eps)
        # MXNet 1.9.1 stops handing out gradients at the first input that needs none.
        names = sorted(self._parameters, key=lambda name: self._parameters[name].grad_req == 'null')
        added = [name for name in names if self._parameters[name].grad_req == 'add']
        if added and autograd.is_recording():
            raise ValueError(f"{added[0]} has grad_req 'add', which needs core.DRAW itself")
        return _Operator(self, names)(*(self._parameters[name].data() for name in names), x, eps)

    def sizes(self, batch_size, keep):
        """The struct `sizes` of draw.c."""
        net, (height, width) = self._net, self._net.image_shape
        filters = [getattr(block, 'filter_size', 0) for block in (net.read, net.write)]
        per_thread = -(-batch_size // self._num_threads)
        chunk = -(-per_thread // -(-per_thread // _CHUNK))  # equal chunks, as many for each thread
        values = (net.num_steps, batch_size, self._parameters['h_enc_0'].shape[1], net.latent_dim, height, width,
                  filters[0] > 0, *filters, keep, self._num_threads, chunk)
        return (ctypes.c_long * len(values))(*values)

    def take_memory(self, sizes, keep):
        """The memory that the operator works in, kept from call to call: new pages are expensive."""
        num_bytes = 4 * self.library.draw_floats(sizes)
        self._free[keep] = [memory for memory in self._free[keep] if memory.nbytes == num_bytes + 64]
        return self._free[keep].pop() if self._free[keep] else np.zeros(num_bytes + 64, np.uint8)

    def give_back(self, memory, keep):
        self._free[keep].append(memory)

    def addresses(self, names, arrays):
        """The addresses of parameters, or of their gradients, in draw.c's order; 0 for those that a network lacks."""
        found = dict(zip(names, map(_address, arrays)))
        return (ctypes.c_void_p * len(self._order))(*map(found.get, self._order))


class _Operator(autograd.Function):
    """One call, as an autograd.Function: mx.library would need MXNet's headers and a C++ compiler."""

    def __init__(self, fused, names):
        super().__init__()
        self._fused, self._names, self._keep = fused, names, autograd.is_recording()

    def forward(self, *inputs):
        *values, x, eps = inputs
        fused = self._fused
        self._sizes = fused.sizes(len(x), self._keep)
        self._memory = fused.take_memory(self._sizes, self._keep)
        outputs = nd.empty(x.shape), nd.empty(eps.shape), nd.empty(eps.shape)
        fused.library.draw_forward(self._sizes, fused.addresses(self._names, values), _pointer(x), _pointer(eps),
                                   _aligned(self._memory), *map(_pointer, outputs))
        if not self._keep:
            fused.give_back(self._memory, False)
        return outputs

    def backward(self, *heads):
        if self._memory is None:
            raise RuntimeError('only one backward pass per forward pass is possible: it uses up the memory')
        parameters = self._fused._parameters
        gradients = [nd.empty(parameters[name].shape) for name in self._names]
        self._fused.library.draw_backward(self._sizes, _aligned(self._memory), *map(_pointer, heads),
                                          self._fused.addresses(self._names, gradients))
        self._fused.give_back(self._memory, True)
        self._memory = None
        return [*gradients, *[nd.full((1, 1), np.nan)] * 2]


def _address(array):
    """The address of the numbers of an NDArray on the CPU, once they have been computed."""
    address = ctypes.c_void_p()
    array.wait_to_read()
    check_call(_LIB.MXNDArrayGetData(array.handle, ctypes.byref(address)))
    return address.value


def _pointer(array):
    return ctypes.c_void_p(_address(array))


def _aligned(memory):
    return ctypes.c_void_p(memory.ctypes.data + -memory.ctypes.data % 64)
