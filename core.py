"""DRAW, a recurrent variational autoencoder that paints an image in T steps, as Gluon HybridBlocks.

Equation numbers are those of Gregor, Danihelka, Graves, Rezende and Wierstra, 2015 (arXiv:1502.04623).

Letters: T steps, N x N filters, A = image width, B = image height (so the batch axis is spelled `batch`).
An image is a row of height * width numbers, row by row. A window is the five numbers of Eqn. 21 in the paper's
order: (g~_X, g~_Y, log sigma^2, log delta~, log gamma), where sigma^2 is the variance of the Gaussian filters.
"""
import system  # noqa: F401  (before mxnet)

import numpy as np
from mxnet import init, nd, sym
from mxnet.gluon import HybridBlock, nn

STATIC = {'static_alloc': True}  # for hybridize; MXNet 1.9.1 can return wrong gradients with static_shape
# Far beyond the windows of trained models. Without limits exp() overflows, and inf * 0 is nan.
_LOG_SIGMA2_LIMITS = -20, 20
_LOG_DELTA_LIMITS = -20, 12  # up to e^12, float32 still tells apart the distances a - mu in an image 200 pixels wide


def _dense(units, in_units=0, use_bias=True, bias=0., factor_type='avg'):
    return nn.Dense(units, in_units=in_units, use_bias=use_bias, bias_initializer=init.Constant(bias),
                    weight_initializer=init.Xavier(factor_type=factor_type))


def filter_centres(F, params, filter_size, image_shape):
    """Centres and variance of the Gaussian filters of an attention window, Eqns. 19-20 and 22-24 (Sec. 3.2).

    Parameters
    ----------
    params : NDArray or Symbol, windows, (batch, 5)
    filter_size : int, N; a single filter stands at the window's centre, and the stride (Eqn. 24) has no effect
    image_shape : tuple of int, (height, width)

    Returns
    -------
    mu_X, mu_Y : each (batch, N), in pixels, counted from 1
    sigma2 : (batch, 1), in pixels^2
    """
    N, (B, A) = filter_size, image_shape
    g_x, g_y, log_sigma2, log_delta, _ = F.split(params, num_outputs=5, axis=1)          # each (batch, 1)
    g_x, g_y = (A + 1) / 2 * (g_x + 1), (B + 1) / 2 * (g_y + 1)                          # Eqns. 22-23
    delta = (max(A, B) - 1) / max(N - 1, 1) * F.exp(F.clip(log_delta, *_LOG_DELTA_LIMITS))       # Eqn. 24
    i = F.reshape(F.arange(1, N + 1), (1, N))
    offsets = F.broadcast_mul(delta, i - N / 2 - 0.5)                                    # (batch, N)
    mu_x, mu_y = F.broadcast_add(g_x, offsets), F.broadcast_add(g_y, offsets)            # Eqns. 19-20
    return mu_x, mu_y, F.exp(F.clip(log_sigma2, *_LOG_SIGMA2_LIMITS))


def filterbank(F, params, filter_size, image_shape):
    """Gaussian filters of an attention window, Eqns. 19-20 and 22-26 (Sec. 3.2).

    A softmax over the pixels computes Eqns. 25-26 with the exact normalizers Z: every filter sums to 1, even those of
    a window far outside the image. Parameters: those of `filter_centres`.

    Returns
    -------
    F_x : (batch, N, width), horizontal filters
    F_y : (batch, N, height), vertical filters
    gamma : (batch, 1), intensity
    """
    (B, A), log_gamma = image_shape, F.slice_axis(params, axis=1, begin=4, end=5)
    mu_x, mu_y, sigma2 = filter_centres(F, params, filter_size, image_shape)

    def bank(mu, length):
        a = F.reshape(F.arange(1, length + 1), (1, 1, length))
        distance = F.broadcast_sub(a, F.expand_dims(mu, axis=2))                         # (batch, N, length)
        logits = F.broadcast_div(F.square(distance), F.expand_dims(-2 * sigma2, axis=2))
        return F.softmax(logits, axis=2)                                                 # Eqns. 25-26

    return bank(mu_x, A), bank(mu_y, B), F.exp(log_gamma)


class AttentionWindow(HybridBlock):
    """Base of the blocks with attention: N, the image's shape, and the linear map from h_dec to the window (Eqn. 21).

    The map's bias starts at `_first_window`: filters wide enough to overlap, so that gradients show where to move.

    Parameters
    ----------
    filter_size : int, N, from 1 to the image's shorter side; ValueError otherwise
    image_shape : tuple of int, (height, width)
    """

    def __init__(self, filter_size, image_shape, **kwargs):
        super().__init__(**kwargs)
        if not 1 <= filter_size <= min(image_shape):
            raise ValueError(f'filter_size must be from 1 to {min(image_shape)}, not {filter_size}')
        self.filter_size, self.image_shape = filter_size, tuple(image_shape)
        with self.name_scope():
            self.window = _dense(5, bias=np.array(self._first_window))


class NoAttentionRead(HybridBlock):
    """The whole image and the whole error image: r_t = [x, x_hat_t] (Eqn. 17).

    Inputs:
        - **x**, **x_hat**: images and error images, (batch, height * width).
        - **h_dec**: h_dec_{t-1}, (batch, units); not used here.

    Outputs:
        - x_hat_t, and None for the window. DRAW multiplies x, the other half of r_t, by its weights once for all steps.
    """

    def hybrid_forward(self, F, x, x_hat, h_dec):
        return x_hat, None


class SelectiveAttentionRead(AttentionWindow):
    """N x N glimpses of the image and of the error image: r_t = gamma [F_y x F_x^T, F_y x_hat F_x^T] (Eqn. 27).

    Parameters: those of `AttentionWindow`. Inputs: those of `NoAttentionRead`.

    Outputs:
        - **r**: r_t, (batch, 2 * N * N), and **window**: the numbers of Eqn. 21, (batch, 5).
    """

    _first_window = 0, 0, 2.5, -1, 0

    def hybrid_forward(self, F, x, x_hat, h_dec):
        window = self.window(h_dec)                                                      # Eqn. 21
        F_x, F_y, gamma = filterbank(F, window, self.filter_size, self.image_shape)

        def glimpse(image):
            rows = F.batch_dot(F_y, F.reshape(image, (-1, *self.image_shape)))           # (batch, N, A)
            return F.batch_dot(rows, F_x, transpose_b=True)                              # (batch, N, N)

        glimpses = F.stack(glimpse(x), glimpse(x_hat), axis=1)  # a 2-D concat leaks memory under autograd
        return F.broadcast_mul(gamma, F.flatten(glimpses)), window                       # Eqn. 27


class NoAttentionWrite(HybridBlock):
    """A linear map from h_dec to the whole canvas (Eqn. 18).

    Parameters
    ----------
    image_shape : tuple of int, (height, width)

    Inputs:
        - **h_dec**: h_dec_t, (batch, units).

    Outputs:
        - what is added to the canvas, (batch, height * width), and None for the window.
    """

    def __init__(self, image_shape, **kwargs):
        super().__init__(**kwargs)
        self.image_shape = tuple(image_shape)
        with self.name_scope():
            self.image = _dense(image_shape[0] * image_shape[1])

    def hybrid_forward(self, F, h_dec):
        return self.image(h_dec), None


class SelectiveAttentionWrite(AttentionWindow):
    """An N x N patch put through the transposed filters: 1/gamma^ F_y^T w_t F_x (Eqns. 28-29).

    Parameters: those of `AttentionWindow`. Inputs: those of `NoAttentionWrite`.

    Outputs:
        - **image**: added to the canvas, (batch, height * width), and **window**: the numbers of Eqn. 21, (batch, 5).
    """

    _first_window = 0, 0, 2.2, 0, 0

    def __init__(self, filter_size, image_shape, **kwargs):
        super().__init__(filter_size, image_shape, **kwargs)
        with self.name_scope():
            self.patch = _dense(filter_size ** 2)

    def hybrid_forward(self, F, h_dec):
        N, window = self.filter_size, self.window(h_dec)                                 # Eqn. 21
        F_x, F_y, gamma = filterbank(F, window, N, self.image_shape)
        w = F.reshape(F.broadcast_div(self.patch(h_dec), gamma), (-1, N, N))             # w_t / gamma^, Eqn. 28
        image = F.batch_dot(F_y, F.batch_dot(w, F_x), transpose_a=True)                  # (batch, B, A), Eqn. 29
        return F.flatten(image), window


def lstm(F, gates, c):
    """One step of an LSTM with forget gates: the next h and c, each (batch, units).

    `gates`, (batch, 4 * units), holds the pre-activations of the input, forget and output gates and of the candidate.
    """
    i, f, o, g = F.split(gates, num_outputs=4, axis=1)  # F.Activation is much faster on the CPU than F.sigmoid
    c = F.Activation(f, 'sigmoid') * c + F.Activation(i, 'sigmoid') * F.Activation(g, 'tanh')
    return F.Activation(o, 'sigmoid') * F.Activation(c, 'tanh'), c


def _check_array(name, array, *shape):
    """Raise ValueError unless `array` is a float32 NDArray of this shape, in which 'batch' is any size."""
    found = array.dtype if type(array) is nd.NDArray else type(array)
    if found is not np.float32:
        raise ValueError(f"{name} must be a float32 NDArray, not {found.__name__}: "
                         f"use mx.nd.array({name}, dtype='float32')")
    if array.ndim != len(shape) or any(size not in ('batch', n) for size, n in zip(shape, array.shape)):
        raise ValueError(f"{name} must be ({', '.join(map(str, shape))}), not {array.shape}")


class DRAW(HybridBlock):
    """The DRAW network, Eqns. 1-8: a deterministic function of x and eps, for any batch size.

    The canvas starts at zero and is not learned; the initial h and c of both LSTMs are.

    Parameters
    ----------
    read : NoAttentionRead or SelectiveAttentionRead
    write : NoAttentionWrite or SelectiveAttentionWrite
    image_shape : tuple of int, (height, width)
    num_steps : int, T
    num_recurrent_units : int, units of the encoder and of the decoder LSTM
    latent_dim : int, size of z_t

    Inputs:
        - **x**: images, (batch, height * width), values in [0, 1].
        - **eps**: standard normal noise, fresh for every step, (num_steps, batch, latent_dim).

    Outputs:
        - **canvas**: the final canvas c_T, logits, (batch, height * width).
        - **mu**, **log_sigma**: means and logarithms of the standard deviations of q(z_t | x, z_1 .. z_{t-1}), each
          (num_steps, batch, latent_dim).

    Raises ValueError for sizes out of range, blocks for another image shape, inputs of a wrong type, shape or range.
    """

    def __init__(self, read, write, image_shape, num_steps, num_recurrent_units, latent_dim, **kwargs):
        super().__init__(**kwargs)
        self.image_shape, self.num_steps, self.latent_dim = tuple(image_shape), num_steps, latent_dim
        self._num_pixels = image_shape[0] * image_shape[1]
        if min(*image_shape, num_steps, num_recurrent_units, latent_dim) < 1 or self._num_pixels >= 2 ** 31:
            raise ValueError('sizes must be at least 1, and images have fewer than 2^31 pixels: '
                             f'{image_shape=}, {num_steps=}, {num_recurrent_units=}, {latent_dim=}')
        units, num_gates = num_recurrent_units, 4 * num_recurrent_units
        for block in (read, write):
            if getattr(block, 'image_shape', self.image_shape) != self.image_shape:
                raise ValueError(f'a block for {block.image_shape} images in a network for {self.image_shape}')
            for layer in block._children.values():  # the maps from h_dec
                layer.infer_shape(nd.zeros((1, units)))
        with self.name_scope():
            self.read, self.write = read, write
            if isinstance(read, NoAttentionRead):
                self.r_to_enc = _dense(num_gates, self._num_pixels)
                self.x_to_enc = _dense(num_gates, self._num_pixels, use_bias=False)
            else:  # Xavier with fan-in alone: it is small, and averaging it with fan-out would shrink the weights
                self.r_to_enc = _dense(num_gates, 2 * read.filter_size ** 2, factor_type='in')
                self.x_to_enc = None
            self.h_dec_to_enc = _dense(num_gates, units, use_bias=False)
            self.h_enc_to_enc = _dense(num_gates, units, use_bias=False)
            self.h_enc_to_q = _dense(2 * latent_dim, units)
            self.z_to_dec = _dense(num_gates, latent_dim)
            self.h_dec_to_dec = _dense(num_gates, units, use_bias=False)
            for state in ('h_enc_0', 'c_enc_0', 'h_dec_0', 'c_dec_0'):
                setattr(self, state, self.params.get(state, shape=(1, units), init=init.Zero()))

    def hybridize(self, active=True, *args, **kwargs):
        """Gluon's hybridize for the network as one graph; its parts stay imperative, for `generate`."""
        super().hybridize(active, *args, **kwargs)
        for child in self._children.values():
            child.hybridize(False)

    def forward(self, x, eps):
        if not isinstance(x, sym.Symbol):
            # Checking the values means waiting for the device: a compiled network does it in its first call only.
            self._check(x, eps, values=self._cached_op is None)
        return super().forward(x, eps)

    def _check(self, x, eps, values=True):
        _check_array('x', x, 'batch', self._num_pixels)
        _check_array('eps', eps, self.num_steps, len(x), self.latent_dim)
        if values and not 0 <= x.asnumpy().min() <= x.asnumpy().max() <= 1:
            raise ValueError('x must lie in [0, 1]: divide grey levels by 255')

    def hybrid_forward(self, F, x, eps, h_enc_0, c_enc_0, h_dec_0, c_dec_0):
        canvases, mu, log_sigma, *_ = self._unroll(F, eps, (h_enc_0, c_enc_0, h_dec_0, c_dec_0), x)
        return canvases[-1], F.stack(*mu, axis=0), F.stack(*log_sigma, axis=0)

    def generate(self, eps):
        """Samples from the model: z_t = eps_t, from the prior N(0, 1) (Sec. 2.3).

        Parameters
        ----------
        eps : NDArray, standard normal noise, (num_steps, batch, latent_dim)

        Returns
        -------
        canvases : c_0 .. c_T, logits, (num_steps + 1, batch, height * width)
        write_windows : (num_steps, batch, 5), or None without attention
        """
        _check_array('eps', eps, self.num_steps, 'batch', self.latent_dim)
        return self._paint(eps)[:2]

    def reconstruct(self, x, eps):
        """Reconstructions of x: z_t from q(z_t | x).

        Parameters
        ----------
        x, eps : NDArray, the network's inputs

        Returns
        -------
        canvases, write_windows : as of `generate`
        read_windows : (num_steps, batch, 5), or None without attention
        """
        self._check(x, eps)
        return self._paint(eps, x)

    def _paint(self, eps, x=None):
        with eps.context:  # for the parameters and for constants like F.arange
            initial = [parameter.data() for parameter in (self.h_enc_0, self.c_enc_0, self.h_dec_0, self.c_dec_0)]
            canvases, _, _, read_windows, write_windows = self._unroll(nd, eps, initial, x)
            return (nd.stack(nd.zeros_like(canvases[0]), *canvases),
                    *(None if windows[0] is None else nd.stack(*windows) for windows in (write_windows, read_windows)))

    def _unroll(self, F, eps, initial, x=None):
        """The T steps of training, reconstruction and (without x) generation; a tuple of T for each output."""
        state = [F.broadcast_like(row, eps, lhs_axes=(0,), rhs_axes=(1,))                # (1, n) -> (batch, n)
                 for row in (*initial, F.zeros((1, self._num_pixels)))]
        x_gates = () if x is None or self.x_to_enc is None else (self.x_to_enc(x),)      # the same at every step
        outputs = []
        for t in range(self.num_steps):
            eps_t = F.squeeze(F.slice_axis(eps, axis=0, begin=t, end=t + 1), axis=0)     # (batch, latent_dim)
            state, output = self._step(F, state, eps_t, x, x_gates)
            outputs.append(output)
        return zip(*outputs)

    def _step(self, F, state, eps, x, x_gates):
        """One step of the recurrence; without x, z_t is drawn from the prior and the encoder is not used."""
        h_enc, c_enc, h_dec, c_dec, canvas = state
        z, mu, log_sigma, read_window = eps, None, None, None                            # Sec. 2.3
        if x is not None:
            x_hat = x - F.Activation(canvas, 'sigmoid')                                  # Eqn. 3
            r, read_window = self.read(x, x_hat, h_dec)                                  # Eqn. 4
            gates = F.add_n(self.r_to_enc(r), *x_gates, self.h_dec_to_enc(h_dec), self.h_enc_to_enc(h_enc))
            h_enc, c_enc = lstm(F, gates, c_enc)                                         # Eqn. 5
            mu, log_sigma = F.split(self.h_enc_to_q(h_enc), num_outputs=2, axis=1)       # Eqns. 1-2
            z = mu + F.exp(log_sigma) * eps                                              # Eqn. 6
        h_dec, c_dec = lstm(F, self.z_to_dec(z) + self.h_dec_to_dec(h_dec), c_dec)       # Eqn. 7
        image, write_window = self.write(h_dec)
        canvas = canvas + image                                                          # Eqn. 8
        return (h_enc, c_enc, h_dec, c_dec, canvas), (canvas, mu, log_sigma, read_window, write_window)


def kl_per_step(F, mu, log_sigma):
    """KL(q(z_t | x) || N(0, 1)) of every step (Eqn. 11), summed over the latent dimensions: (num_steps, batch), nats.

    mu and log_sigma are (num_steps, batch, latent_dim); F may be numpy. Eqn. 11 gives the constant of a scalar z_t;
    here it is 1/2 per latent dimension.
    """
    return 0.5 * F.sum(F.square(mu) + F.exp(2 * log_sigma) - 2 * log_sigma - 1, axis=2)


class DRAWLoss(HybridBlock):
    """The two parts of the negative variational bound, Eqns. 9-12, in nats per image.

    `mean(reconstruction + kl)` is a one-sample estimate of the negative bound (Eqn. 12).

    Inputs:
        - **canvas**: final canvas, logits, (batch, height * width).
        - **mu**, **log_sigma**: each (num_steps, batch, latent_dim).
        - **x**: images, (batch, height * width).

    Outputs:
        - **reconstruction**: L^x, binary cross-entropy summed over the pixels, (batch,).
        - **kl**: L^z, summed over the steps and the latent dimensions, (batch,).
    """

    def hybrid_forward(self, F, canvas, mu, log_sigma, x):
        # Eqn. 9 from logits, log(1 + e^c) - x c, which neither overflows nor takes the log of a rounded 0.
        reconstruction = F.sum(F.Activation(canvas, 'softrelu') - x * canvas, axis=1)
        kl = F.sum(kl_per_step(F, mu, log_sigma), axis=0)                                # Eqn. 11
        return reconstruction, kl
