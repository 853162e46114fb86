"""DRAW in JAX, compiled by XLA: the same training step as this project's, to be timed side by side with it.

One step = fresh noise, forward, KL + BCE in nats, backward and an Adam update, on random binary images.
Prints one line of JSON.

    python -m benchmarks.draw_jax --attention
"""
import argparse

import jax
import jax.numpy as jnp

from benchmarks import common


def filterbank(params, size, image_shape):
    """Eqns. 19-26: params (batch, 5) -> F_x (batch, size, width), F_y (batch, size, height), gamma (batch, 1)."""
    height, width = image_shape
    g_x, g_y, log_sigma2, log_delta, log_gamma = jnp.split(params, 5, 1)
    g_x = (width + 1) / 2 * (g_x + 1)
    g_y = (height + 1) / 2 * (g_y + 1)
    delta = (max(image_shape) - 1) / max(size - 1, 1) * jnp.exp(jnp.clip(log_delta, -20, 12))
    offsets = jnp.arange(size).reshape(1, size) - (size / 2 - 0.5)
    scale = (-0.5 * jnp.exp(-jnp.clip(log_sigma2, -20, 20)))[:, :, None]

    def bank(centre, length):
        mean = (centre + delta * offsets)[:, :, None]
        grid = jnp.arange(1, length + 1).reshape(1, 1, length)
        return jax.nn.softmax((grid - mean) ** 2 * scale, -1)

    return bank(g_x, width), bank(g_y, height), jnp.exp(log_gamma)


def lstm(gates, c):
    units = c.shape[1]
    i, f, o = jnp.split(jax.nn.sigmoid(gates[:, :3 * units]), 3, 1)
    c = f * c + i * jnp.tanh(gates[:, 3 * units:])
    return o * jnp.tanh(c), c


def make_loss(args):
    """The function (parameters, x, eps) -> mean of KL + BCE."""
    image_shape = args.input_height, args.input_width

    def loss(p, x, eps):
        batch = len(x)
        weights = {name: p[f'{name}.weight'].T for name in (key[:-7] for key in p if key.endswith('.weight'))}

        def dense(name, inputs):
            return inputs @ weights[name] + p[f'{name}.bias']

        def read(x_hat, h_dec):
            if not args.attention:
                return [x_hat]
            f_x, f_y, gamma = filterbank(dense('read.window', h_dec), args.read_size, image_shape)
            return [(f_y @ image.reshape(batch, *image_shape) @ f_x.transpose(0, 2, 1)).reshape(batch, -1) * gamma
                    for image in (x, x_hat)]

        def write(h_dec):
            if not args.attention:
                return dense('write.image', h_dec)
            f_x, f_y, gamma = filterbank(dense('write.window', h_dec), args.write_size, image_shape)
            patch = (dense('write.patch', h_dec) / gamma).reshape(batch, args.write_size, args.write_size)
            return (f_y.transpose(0, 2, 1) @ patch @ f_x).reshape(batch, -1)

        x_gates = p['r_to_enc.bias']
        if not args.attention:
            x_gates += x @ weights['x_to_enc']  # the same at every step
        encoder = jnp.concatenate([weights[f'{name}_to_enc'] for name in ('r', 'h_dec', 'h_enc')], 0)
        decoder = jnp.concatenate([weights['z_to_dec'], weights['h_dec_to_dec']], 0)

        def step(state, noise):
            h_enc, c_enc, h_dec, c_dec, canvas = state
            r = read(x - jax.nn.sigmoid(canvas), h_dec)
            h_enc, c_enc = lstm(x_gates + jnp.concatenate([*r, h_dec, h_enc], 1) @ encoder, c_enc)
            mu, log_sigma = jnp.split(dense('h_enc_to_q', h_enc), 2, 1)
            z = mu + jnp.exp(log_sigma) * noise
            h_dec, c_dec = lstm(p['z_to_dec.bias'] + jnp.concatenate([z, h_dec], 1) @ decoder, c_dec)
            kl = 0.5 * (mu ** 2 + jnp.exp(2 * log_sigma) - 2 * log_sigma - 1).sum(1)
            return (h_enc, c_enc, h_dec, c_dec, canvas + write(h_dec)), kl

        initial = tuple(jnp.broadcast_to(p[name], (batch, p[name].shape[1])) for name in common.STATES)
        (*_, canvas), kl = jax.lax.scan(step, (*initial, jnp.zeros_like(x)), eps)
        bce = jnp.maximum(canvas, 0) - canvas * x + jnp.log1p(jnp.exp(-jnp.abs(canvas)))
        return (kl.sum(0) + bce.sum(1)).mean()

    return loss


def make_train_step(args):
    """The compiled function (state, x) -> state, where state = parameters, Adam's m and v, t, key."""
    loss, tree_map = make_loss(args), jax.tree_util.tree_map

    @jax.jit
    def train_step(state, x):
        p, m, v, t, key = state
        key, noise_key = jax.random.split(key)
        eps = jax.random.normal(noise_key, (args.num_steps, args.batch_size, args.latent_dim))
        gradients, t = jax.grad(loss)(p, x, eps), t + 1
        m = tree_map(lambda m, g: 0.9 * m + 0.1 * g, m, gradients)
        v = tree_map(lambda v, g: 0.999 * v + 0.001 * g * g, v, gradients)
        p = tree_map(lambda p, m, v: p - 1e-3 * (m / (1 - 0.9 ** t)) / (jnp.sqrt(v / (1 - 0.999 ** t)) + 1e-8),
                     p, m, v)
        return p, m, v, t, key

    return train_step


def to_jax(arrays):
    return {name: jnp.array(array) for name, array in arrays.items()}


def loss_and_gradients(args, arrays, x, eps):
    loss, gradients = jax.jit(jax.value_and_grad(make_loss(args)))(to_jax(arrays), x, eps)
    return float(loss), gradients


def build(args):
    """A function that starts a training step, and one that waits for all that were started."""
    params, train_step = to_jax(common.random_parameters(args)), make_train_step(args)
    zeros = jax.tree_util.tree_map(jnp.zeros_like, params)
    state = params, zeros, zeros, jnp.array(0.), jax.random.PRNGKey(0)
    x = jnp.array(common.random_images(args, args.batch_size))

    def step():
        nonlocal state
        state = train_step(state, x)

    return step, lambda: jax.block_until_ready(state)


if __name__ == '__main__':
    args = common.parse_args(argparse.ArgumentParser(description=__doc__))
    common.print_result(f'JAX {jax.__version__}', common.measure(lambda: build(args), args))
