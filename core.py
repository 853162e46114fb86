"""DRAW, a recurrent variational autoencoder that paints an image in T steps, as Gluon HybridBlocks.

Equation numbers are those of Gregor, Danihelka, Graves, Rezende and Wierstra, 2015 (arXiv:1502.04623).

Letters: T steps, N x N filters, A = image width, B = image height (so the batch axis is spelled `batch`).
An image is a row of height * width numbers, row by row. A window is the five numbers of Eqn. 21 in the paper's
order: (g~_X, g~_Y, log sigma^2, log delta~, log gamma), sigma^2 being the variance of the Gaussian filters.

Fast operators of MXNet 1.9.1 are chosen on purpose: `Activation` runs in oneDNN where `F.sigmoid` and `F.tanh`
are scalar loops, and a product with ones (`_expand`) has a matrix product for a backward pass where `broadcast_*`
has a slow reduction. `FullyConnected` is the faster product with weights, `dot` with the constants of the filters.
There is no 2-D `concat` inside the recurrence: it leaks memory under autograd.
"""
import system  # noqa: F401  (before mxnet)

import numpy as np
from mxnet import init, nd
from mxnet.gluon import HybridBlock, nn

STATIC = {'static_alloc': True, 'static_shape': True}  # for hybridize; one forward pass per record(), see DRAW
# Far beyond what trained windows use; without them exp() overflows, and inf * 0 is nan.
_LOG_SIGMA2_LIMITS = {'a_min': -20, 'a_max': 20}
_LOG_DELTA_LIMITS = {'a_min': -20, 'a_max': 12}  # up to e^12 all a - mu of 200 pixels differ in float32


def _columns(F, x, begin, end):
    return F.slice_axis(x, axis=1, begin=begin, end=end)


def _expand(F, x, size):
    """x repeated along axis 1: (batch, 1) -> (batch, size)."""
    return F.dot(x, F.ones((1, size)))


def _dense(units, in_units=0, use_bias=True, bias=0., factor_type='avg'):
    return nn.Dense(units, in_units=in_units, use_bias=use_bias, bias_initializer=init.Constant(bias),
                    weight_initializer=init.Xavier(factor_type=factor_type))


def filter_centres(F, params, filter_size, image_shape):
    """Where the Gaussian filters of an attention window stand, and how wide they are, Eqns. 19-24 (Sec. 3.2).

    Parameters
    ----------
    params : NDArray or Symbol, windows, (batch, 5)
    filter_size : int, N; with 1 the stride (Eqn. 24) has no meaning and the only filter stands at the centre
    image_shape : tuple of int, (height, width)

    Returns
    -------
    mu_X, mu_Y : each (batch, N), in pixels, of which the first is 1
    sigma2 : (batch, 1), variance, in pixels^2
    """
    N, (height, width) = filter_size, image_shape
    g_x, g_y, log_sigma2, log_delta = (_columns(F, params, k, k + 1) for k in range(4))  # each (batch, 1)
    stride = (max(width, height) - 1) / max(N - 1, 1)
    delta = stride * F.exp(F.clip(log_delta, **_LOG_DELTA_LIMITS))                       # Eqn. 24
    i = F.arange(0.5 - N / 2, N / 2)                                                     # i - N/2 - 0.5 for i = 1..N
    offsets = F.dot(delta, F.reshape(i, (1, N)))                                         # (batch, N)
    mu_x, mu_y = (_expand(F, (length + 1) / 2 * (g + 1), N) + offsets                    # Eqns. 19-20, 22-23
                  for g, length in ((g_x, width), (g_y, height)))
    return mu_x, mu_y, F.exp(F.clip(log_sigma2, **_LOG_SIGMA2_LIMITS))


def filterbank(F, params, filter_size, image_shape):
    """Gaussian filters of an attention window, Eqns. 19-26 (Sec. 3.2).

    A bank is a softmax over the pixels, which is Eqns. 25-26 with the exact normalisers Z: every row sums to 1 and
    nothing divides by zero, also for a window far outside the image. log sigma^2 is clipped to [-20, 20] and
    log delta~ to [-20, 12], so that exp() stays finite.

    The parameters are those of `filter_centres`.

    Returns
    -------
    F_x : (batch, N, width), horizontal filters
    F_y : (batch, N, height), vertical filters
    gamma : (batch, 1), intensity
    """
    N, (height, width) = filter_size, image_shape
    mu_x, mu_y, sigma2 = filter_centres(F, params, N, image_shape)

    def bank(mu, length):
        distance = F.FullyConnected(F.reshape(mu, (-1, 1)), F.full((length, 1), -1.), F.arange(1, length + 1),
                                    num_hidden=length)                                   # (batch * N, length): a - mu
        squares = F.reshape(F.square(distance), (-1, N * length))
        logits = F.reshape(squares * _expand(F, -0.5 / sigma2, N * length), (-1, N, length))
        return F.softmax(logits, axis=-1)                                                # Eqns. 25-26, divided by Z

    return bank(mu_x, width), bank(mu_y, height), F.exp(_columns(F, params, 4, 5))


class AttentionWindow(HybridBlock):
    """What selective attention shares: N, the image's shape, and the map from h_dec to the window (Eqn. 21).

    The bias of that map starts as `_first_window`: filters so wide that neighbours overlap and see where to move.

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
        - **x**, **mean**: images, and sigmoid(c_{t-1}), what the canvas says of them so far, (batch, height * width).
        - **h_dec**: h_dec_{t-1}, (batch, units); not used.

    Outputs:
        - x_hat_t, (batch, height * width), and no window (None). The other half of r_t is x.
    """

    whole = True  # x is the same at every step: DRAW multiplies it once, before the first

    def hybrid_forward(self, F, x, mean, h_dec):
        return x - mean, None                                                            # Eqn. 3


class SelectiveAttentionRead(AttentionWindow):
    """N x N glimpses of the image and of the error image: r_t = gamma [F_y x F_x^T, F_y x_hat F_x^T] (Eqn. 27).
    The parameters are those of `AttentionWindow`.

    Inputs:
        - **x**, **mean**: images, and sigmoid(c_{t-1}), what the canvas says of them so far, (batch, height * width).
        - **h_dec**: h_dec_{t-1}, (batch, units).

    Outputs:
        - r_t, the glimpse of x and then that of x_hat_t, (batch, 2 * N * N), and the window (batch, 5).
    """

    whole = False
    _first_window = 0, 0, 2.5, -1, 0

    def hybrid_forward(self, F, x, mean, h_dec):
        N, window = self.filter_size, self.window(h_dec)                                 # Eqn. 21
        F_x, F_y, gamma = filterbank(F, window, N, self.image_shape)
        rows_x, rows_mean = (F.batch_dot(F_y, F.reshape(image, (-1,) + self.image_shape)) for image in (x, mean))
        # Eqn. 3 after the filters, which are linear: N rows are subtracted, not B.
        rows = F.reshape(F.stack(rows_x, rows_x - rows_mean, axis=1), (0, -3, 0))        # (batch, 2N, A)
        r = F.batch_dot(rows, F_x, transpose_b=True)                                     # (batch, 2N, N), Eqn. 27
        return F.reshape(r, (-1, 2 * N * N)) * _expand(F, gamma, 2 * N * N), window


class NoAttentionWrite(HybridBlock):
    """A linear map from h_dec to the whole canvas (Eqn. 18).

    Parameters
    ----------
    image_shape : tuple of int, (height, width)

    Inputs:
        - **h_dec**: h_dec_t, (batch, units).

    Outputs:
        - what is added to the canvas, (batch, height * width), and no window (None).
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
    The parameters are those of `AttentionWindow`.

    Inputs:
        - **h_dec**: h_dec_t, (batch, units).

    Outputs:
        - what is added to the canvas, (batch, height * width), and the window (batch, 5).
    """

    _first_window = 0, 0, 2.2, 0, 0

    def __init__(self, filter_size, image_shape, **kwargs):
        super().__init__(filter_size, image_shape, **kwargs)
        with self.name_scope():
            self.patch = _dense(filter_size ** 2)

    def hybrid_forward(self, F, h_dec):
        N, window = self.filter_size, self.window(h_dec)                                 # Eqn. 21
        F_x, F_y, gamma = filterbank(F, window, N, self.image_shape)
        patch = self.patch(h_dec) * _expand(F, 1 / gamma, N * N)                         # Eqn. 28, with the 1/gamma^
        rows = F.batch_dot(F.reshape(patch, (-1, N, N)), F_x)                            # (batch, N, A)
        image = F.batch_dot(F_y, rows, transpose_a=True)                                 # (batch, B, A), Eqn. 29
        return F.flatten(image), window                                                  # (batch, B * A)


def lstm(F, gates, c, num_units):
    """One step of an LSTM with forget gates; returns the next h and c, each (batch, num_units).

    `gates`, (batch, 4 * num_units), are the sums of all products: input, forget and output gate, candidate.
    """
    # Slices of the gates and then four nonlinearities: slices of slices would copy three gates twice.
    input_gate, forget_gate, output_gate, candidate = (
        F.Activation(_columns(F, gates, k * num_units, (k + 1) * num_units), act_type=act_type)
        for k, act_type in enumerate(('sigmoid', 'sigmoid', 'sigmoid', 'tanh')))
    c = forget_gate * c + input_gate * candidate
    return output_gate * F.Activation(c, act_type='tanh'), c


class DRAW(HybridBlock):
    """The DRAW network, Eqns. 1-8: given x and eps a deterministic function, for any batch size.

    The canvas starts at zero and is not learned; the initial h and c of both LSTMs are. Hybridize with `STATIC` for
    speed; then run one forward pass per `autograd.record()`, since MXNet 1.9.1 returns wrong gradients for two.

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
        - **mu**, **log_sigma**: means and logarithms of the standard deviations of q(z_t | x), each
          (num_steps, batch, latent_dim).

    Raises ValueError for a size below 1, and for inputs whose shapes do not fit.
    """

    def __init__(self, read, write, image_shape, num_steps, num_recurrent_units, latent_dim, **kwargs):
        super().__init__(**kwargs)
        names = 'height', 'width', 'num_steps', 'num_recurrent_units', 'latent_dim'
        for name, size in zip(names, (*image_shape, num_steps, num_recurrent_units, latent_dim)):
            if size < 1:
                raise ValueError(f'{name} must be at least 1, not {size}')
        self.image_shape, self.num_steps, self.latent_dim = tuple(image_shape), num_steps, latent_dim
        self._num_pixels, self._num_units = image_shape[0] * image_shape[1], num_recurrent_units
        units, num_gates = num_recurrent_units, 4 * num_recurrent_units
        for block in (read, write):
            if getattr(block, 'image_shape', self.image_shape) != self.image_shape:
                raise ValueError(f'a block for {block.image_shape} images in a network for {self.image_shape}')
            for parameter in block.collect_params().values():
                if 0 in parameter.shape:  # the weight of a map from h_dec
                    parameter.shape = parameter.shape[0], units
        with self.name_scope():
            self.read, self.write = read, write
            if read.whole:
                self.r_to_enc = _dense(num_gates, self._num_pixels)
                self.x_to_enc = _dense(num_gates, self._num_pixels, use_bias=False)
            else:  # by the inputs alone: the average with the outputs would mute so few
                self.r_to_enc = _dense(num_gates, 2 * read.filter_size ** 2, factor_type='in')
            self.h_dec_to_enc = _dense(num_gates, units, use_bias=False)
            self.h_enc_to_enc = _dense(num_gates, units, use_bias=False)
            self.h_enc_to_q = _dense(2 * latent_dim, units)
            self.z_to_dec = _dense(num_gates, latent_dim)
            self.h_dec_to_dec = _dense(num_gates, units, use_bias=False)
            for state in ('h_enc_0', 'c_enc_0', 'h_dec_0', 'c_dec_0'):
                setattr(self, state, self.params.get(state, shape=(1, units), init=init.Zero()))

    def hybridize(self, active=True, **kwargs):
        """Compile the whole network as one graph; `generate` and `reconstruct` call its parts as they are."""
        super().hybridize(active, **kwargs)
        for child in self._children.values():
            child.hybridize(False)

    def forward(self, x, *args):
        if isinstance(x, nd.NDArray) and args:
            self._check(args[0], x)
        return super().forward(x, *args)

    def hybrid_forward(self, F, x, eps, h_enc_0, c_enc_0, h_dec_0, c_dec_0):
        steps = self._unroll(F, eps, (h_enc_0, c_enc_0, h_dec_0, c_dec_0), x)
        q = F.stack(*(step['q'] for step in steps), axis=0)                              # (T, batch, 2 * latent_dim)
        mu, log_sigma = (F.slice_axis(q, axis=2, begin=k * self.latent_dim, end=(k + 1) * self.latent_dim)
                         for k in range(2))
        return steps[-1]['canvas'], mu, log_sigma

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
        canvases, write_windows, _ = self._paint(eps)
        return canvases, write_windows

    def reconstruct(self, x, eps):
        """Reconstructions of x: z_t from q(z_t | x).

        Parameters
        ----------
        x : NDArray, images, (batch, height * width), values in [0, 1]
        eps : NDArray, standard normal noise, (num_steps, batch, latent_dim)

        Returns
        -------
        canvases : c_0 .. c_T, logits, (num_steps + 1, batch, height * width)
        write_windows, read_windows : each (num_steps, batch, 5), or None without attention
        """
        return self._paint(eps, x)

    def _paint(self, eps, x=None):
        self._check(eps, x)
        with eps.context:  # the constants of the filter banks are made on the context in force
            initial = [getattr(self, name).data() for name in ('h_enc_0', 'c_enc_0', 'h_dec_0', 'c_dec_0')]
            steps = self._unroll(nd, eps, initial, x)
            canvases = nd.stack(nd.zeros_like(steps[0]['canvas']), *(step['canvas'] for step in steps))
            return canvases, *(None if steps[0].get(key) is None else nd.stack(*(step[key] for step in steps))
                               for key in ('write_window', 'read_window'))

    def _unroll(self, F, eps, initial, x=None):
        """The T steps for training, reconstruction and (without x) generation; a list of what `_step` returns."""
        eps_t = [F.reshape(F.slice_axis(eps, axis=0, begin=t, end=t + 1), (-3, 0))       # (batch, latent_dim)
                 for t in range(self.num_steps)]
        rows = *initial, F.zeros((1, self._num_pixels))                                  # (1, n) -> (batch, n)
        state = {name: F.broadcast_like(row, eps_t[0], lhs_axes=(0,), rhs_axes=(0,))
                 for name, row in zip(('h_enc', 'c_enc', 'h_dec', 'c_dec', 'canvas'), rows)}
        x_gates = () if x is None or not self.read.whole else (self.x_to_enc(x),)
        steps = [state]
        for t in range(self.num_steps):
            steps.append(self._step(F, steps[-1], eps_t[t], x, x_gates))
        return steps[1:]

    def _step(self, F, state, eps, x=None, x_gates=()):
        """One step of the recurrence; without x, z_t is drawn from the prior and the encoder is not used."""
        state, h_dec, canvas = dict(state), state['h_dec'], state['canvas']
        z = eps                                                                          # Sec. 2.3
        if x is not None:
            mean = F.Activation(canvas, act_type='sigmoid')
            r, state['read_window'] = self.read(x, mean, h_dec)                          # Eqns. 3-4
            gates = F.add_n(self.r_to_enc(r), self.h_dec_to_enc(h_dec), self.h_enc_to_enc(state['h_enc']), *x_gates)
            state['h_enc'], state['c_enc'] = lstm(F, gates, state['c_enc'], self._num_units)     # Eqn. 5
            state['q'] = self.h_enc_to_q(state['h_enc'])
            mu = _columns(F, state['q'], 0, self.latent_dim)                             # Eqn. 1
            sigma = F.exp(_columns(F, state['q'], self.latent_dim, 2 * self.latent_dim))         # Eqn. 2
            z = mu + sigma * eps                                                         # Eqn. 6
        gates = self.z_to_dec(z) + self.h_dec_to_dec(h_dec)
        state['h_dec'], state['c_dec'] = lstm(F, gates, state['c_dec'], self._num_units)         # Eqn. 7
        image, state['write_window'] = self.write(state['h_dec'])
        state['canvas'] = canvas + image                                                 # Eqn. 8
        return state

    def _check(self, eps, x=None):
        if eps.ndim != 3 or eps.shape[::2] != (self.num_steps, self.latent_dim):
            raise ValueError(f'eps must be ({self.num_steps}, batch, {self.latent_dim}), not {eps.shape}')
        if x is not None and x.shape != (eps.shape[1], self._num_pixels):
            raise ValueError(f'x must be (batch, height * width) = {eps.shape[1], self._num_pixels}, not {x.shape}')


def kl_per_step(F, mu, log_sigma):
    """KL(q(z_t | x) || N(0, 1)) of every step, over all latent dimensions, in nats, (num_steps, batch) (Eqn. 11).

    mu and log_sigma are (num_steps, batch, latent_dim); F may be numpy too. The constant of Eqn. 11 is written for a
    scalar z_t; here it is 1/2 per latent dimension.
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
        reconstruction = F.sum(F.Activation(canvas, act_type='softrelu') - x * canvas, axis=1)
        kl = F.sum(kl_per_step(F, mu, log_sigma), axis=0)                                # Eqn. 11
        return reconstruction, kl
