"""DRAW in float64 NumPy, one image at a time, straight from the equations: the reference of the tests.

Equation numbers are those of Gregor et al. (2015). `params` maps the names of the network's parameters to
arrays. An image is stored row by row: B rows (height) of A pixels (width), and so is an N x N patch.
`read_size` and `write_size` are N, the number of filters along an axis; None stands for no attention.
A window is (g~_X, g~_Y, log sigma^2, log delta~, log gamma).
"""
import numpy as np


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def filter_rows(centre, stride, variance, N, num_pixels):
    """N normalised Gaussian filters over the pixels 1..num_pixels of one axis."""
    rows = np.zeros((N, num_pixels))
    for i in range(1, N + 1):
        mean = centre + (i - N / 2 - 0.5) * stride  # Eqn. 19, 20
        a = np.arange(1, num_pixels + 1)
        exponent = -(a - mean) ** 2 / (2 * variance)  # Eqn. 25, 26
        unnormalised = np.exp(exponent - exponent.max())  # the common factor cancels in the next line
        rows[i - 1] = unnormalised / unnormalised.sum()  # Z of Eqn. 25, 26: every filter sums to 1
    return rows


def filterbank(window, N, image_shape):
    """F_X (N, A), F_Y (N, B) and gamma of one window."""
    B, A = image_shape
    g_x, g_y, log_variance, log_stride, log_gamma = np.asarray(window, dtype=np.float64)  # Eqn. 21
    centre_x = (A + 1) / 2 * (g_x + 1)  # Eqn. 22
    centre_y = (B + 1) / 2 * (g_y + 1)  # Eqn. 23
    stride = (max(A, B) - 1) / (N - 1) * np.exp(log_stride) if N > 1 else 0.0  # Eqn. 24; N = 1 has none
    variance = np.exp(log_variance)
    F_x = filter_rows(centre_x, stride, variance, N, A)
    F_y = filter_rows(centre_y, stride, variance, N, B)
    return F_x, F_y, np.exp(log_gamma)


def read(params, x, x_hat, h_dec, image_shape, N):
    """r_t, the half from x first, and the window (None without attention)."""
    if N is None:
        return np.concatenate([x, x_hat]), None  # Eqn. 17
    window = params['read.window.weight'] @ h_dec + params['read.window.bias']  # Eqn. 21
    F_x, F_y, gamma = filterbank(window, N, image_shape)
    patch = gamma * F_y @ x.reshape(image_shape) @ F_x.T  # Eqn. 27
    patch_hat = gamma * F_y @ x_hat.reshape(image_shape) @ F_x.T  # Eqn. 27
    return np.concatenate([patch.reshape(-1), patch_hat.reshape(-1)]), window


def write(params, h_dec, image_shape, N):
    """What is added to the canvas, and the window (None without attention)."""
    if N is None:
        return params['write.image.weight'] @ h_dec + params['write.image.bias'], None  # Eqn. 18
    window = params['write.window.weight'] @ h_dec + params['write.window.bias']  # Eqn. 21, of its own
    F_x, F_y, gamma = filterbank(window, N, image_shape)
    w = (params['write.patch.weight'] @ h_dec + params['write.patch.bias']).reshape(N, N)  # Eqn. 28
    return (F_y.T @ w @ F_x / gamma).reshape(-1), window  # Eqn. 29


def lstm(gates, c):
    """One LSTM update from the gates' inputs, in the order input, forget, output, candidate: h and c."""
    i, f, o, g = np.split(gates, 4)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def encode(params, r, h_dec, h_enc, c_enc):
    """Eqn. 5. Without attention the weights of x, the first half of r_t, have a name of their own."""
    weight = params['r_to_enc.weight']
    if 'x_to_enc.weight' in params:
        weight = np.concatenate([params['x_to_enc.weight'], weight], axis=1)
    gates = (weight @ r + params['h_dec_to_enc.weight'] @ h_dec + params['h_enc_to_enc.weight'] @ h_enc
             + params['r_to_enc.bias'])
    return lstm(gates, c_enc)


def decode(params, z, h_dec, c_dec):
    """Eqn. 7."""
    gates = params['z_to_dec.weight'] @ z + params['h_dec_to_dec.weight'] @ h_dec + params['z_to_dec.bias']
    return lstm(gates, c_dec)


def forward_one(params, x, eps, image_shape, read_size, write_size):
    """`forward` for one image: x (B*A,) or None, eps (T, Z)."""
    h_enc, c_enc, h_dec, c_dec = (params[name][0] for name in ('h_enc_0', 'c_enc_0', 'h_dec_0', 'c_dec_0'))
    canvas = np.zeros(image_shape[0] * image_shape[1])
    steps = {'mu': [], 'log_sigma': [], 'canvases': [canvas], 'read_windows': [], 'write_windows': []}
    for eps_t in eps:
        mu, log_sigma, read_window, z = None, None, None, eps_t  # Eqn. 13
        if x is not None:
            x_hat = x - sigmoid(canvas)  # Eqn. 3
            r, read_window = read(params, x, x_hat, h_dec, image_shape, read_size)  # Eqn. 4
            h_enc, c_enc = encode(params, r, h_dec, h_enc, c_enc)  # Eqn. 5
            q = params['h_enc_to_q.weight'] @ h_enc + params['h_enc_to_q.bias']
            mu, log_sigma = np.split(q, 2)  # Eqn. 1, 2: the second half is the log of the standard deviation
            z = mu + np.exp(log_sigma) * eps_t  # Eqn. 6
        h_dec, c_dec = decode(params, z, h_dec, c_dec)  # Eqn. 7, 14
        addition, write_window = write(params, h_dec, image_shape, write_size)
        canvas = canvas + addition  # Eqn. 8, 15
        for name, value in (('mu', mu), ('log_sigma', log_sigma), ('canvases', canvas),
                            ('read_windows', read_window), ('write_windows', write_window)):
            steps[name].append(value)
    return steps


def stack(images):
    """Per-image dicts of per-step lists to one dict of arrays (steps, batch, ...); None stays None."""
    return {name: None if images[0][name][-1] is None else np.stack([image[name] for image in images], axis=1)
            for name in images[0]}


def forward(params, x, eps, image_shape, read_size, write_size):
    """The network on x (batch, B*A) with noise eps (T, batch, Z); without x (None), samples with eps as z.

    Returns a dict: canvas (batch, B*A) logits; mu, log_sigma (T, batch, Z); canvases (T+1, batch, B*A)
    logits; read_windows, write_windows (T, batch, 5). What there is not is None.
    """
    outputs = stack([forward_one(params, None if x is None else x[n], eps[:, n], image_shape, read_size, write_size)
                     for n in range(eps.shape[1])])
    outputs['canvas'] = outputs['canvases'][-1]
    return outputs


def loss(canvas, mu, log_sigma, x):
    """Reconstruction (Eqn. 9) and KL (Eqn. 10, 11) of every image, each (batch,), in nats."""
    p, variance = sigmoid(canvas), np.exp(log_sigma) ** 2
    reconstruction = -np.sum(x * np.log(p) + (1 - x) * np.log(1 - p), axis=1)  # Eqn. 9
    num_steps, _, latent_dim = mu.shape
    kl = 0.5 * np.sum(mu ** 2 + variance - np.log(variance), axis=(0, 2)) - num_steps * latent_dim / 2
    return reconstruction, kl  # Eqn. 11 is for a scalar z: each dimension brings -T/2
