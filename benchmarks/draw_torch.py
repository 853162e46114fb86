"""DRAW in PyTorch: the same training step as this project's, to be timed side by side with it.

One step = fresh noise, forward, KL + BCE in nats, backward and an Adam update, on random binary images.
Prints one line of JSON.

    python -m benchmarks.draw_torch --attention
"""
import argparse
import os

import torch
from torch.nn import functional as F

from benchmarks import common


def filterbank(params, size, image_shape):
    """Eqns. 19-26: params (batch, 5) -> F_x (batch, size, width), F_y (batch, size, height), gamma (batch, 1)."""
    height, width = image_shape
    g_x, g_y, log_sigma2, log_delta, log_gamma = params.split(1, dim=1)
    g_x = (width + 1) / 2 * (g_x + 1)
    g_y = (height + 1) / 2 * (g_y + 1)
    delta = (max(image_shape) - 1) / max(size - 1, 1) * log_delta.clamp(-20, 12).exp()
    offsets = torch.arange(size).view(1, size) - (size / 2 - 0.5)
    scale = (-0.5 * (-log_sigma2.clamp(-20, 20)).exp()).unsqueeze(2)

    def bank(centre, length):
        mean = (centre + delta * offsets).unsqueeze(2)
        grid = torch.arange(1, length + 1).view(1, 1, length)
        return ((grid - mean) ** 2 * scale).softmax(-1)

    return bank(g_x, width), bank(g_y, height), log_gamma.exp()


def lstm(gates, c):
    units = c.shape[1]
    i, f, o = gates[:, :3 * units].sigmoid().chunk(3, 1)
    c = f * c + i * gates[:, 3 * units:].tanh()
    return o * c.tanh(), c


def make_loss(args):
    """The function (parameters, x, eps) -> mean of KL + BCE."""
    image_shape = args.input_height, args.input_width

    def loss(p, x, eps):
        batch = len(x)

        def dense(name, inputs):
            return F.linear(inputs, p[f'{name}.weight'], p[f'{name}.bias'])

        def read(x_hat, h_dec):
            if not args.attention:
                return [x_hat]
            f_x, f_y, gamma = filterbank(dense('read.window', h_dec), args.read_size, image_shape)
            return [(f_y @ image.view(batch, *image_shape) @ f_x.transpose(1, 2)).flatten(1) * gamma
                    for image in (x, x_hat)]

        def write(h_dec):
            if not args.attention:
                return dense('write.image', h_dec)
            f_x, f_y, gamma = filterbank(dense('write.window', h_dec), args.write_size, image_shape)
            patch = (dense('write.patch', h_dec) / gamma).view(batch, args.write_size, args.write_size)
            return (f_y.transpose(1, 2) @ patch @ f_x).flatten(1)

        x_gates = p['r_to_enc.bias']
        if not args.attention:
            x_gates = F.linear(x, p['x_to_enc.weight'], x_gates)  # the same at every step
        encoder = torch.cat([p[f'{name}_to_enc.weight'] for name in ('r', 'h_dec', 'h_enc')], 1).t()
        decoder = torch.cat([p['z_to_dec.weight'], p['h_dec_to_dec.weight']], 1).t()

        h_enc, c_enc, h_dec, c_dec = (p[name].expand(batch, -1) for name in common.STATES)
        canvas, posteriors = torch.zeros_like(x), []
        for t in range(args.num_steps):
            r = read(x - canvas.sigmoid(), h_dec)
            h_enc, c_enc = lstm(torch.addmm(x_gates, torch.cat([*r, h_dec, h_enc], 1), encoder), c_enc)
            posteriors.append(dense('h_enc_to_q', h_enc))
            mu, log_sigma = posteriors[-1].chunk(2, 1)
            z = mu + log_sigma.exp() * eps[t]
            h_dec, c_dec = lstm(torch.addmm(p['z_to_dec.bias'], torch.cat([z, h_dec], 1), decoder), c_dec)
            canvas = canvas + write(h_dec)
        mu, log_sigma = torch.stack(posteriors).chunk(2, 2)
        kl = 0.5 * (mu ** 2 + (2 * log_sigma).exp() - 2 * log_sigma - 1).sum((0, 2))
        return (kl + F.binary_cross_entropy_with_logits(canvas, x, reduction='none').sum(1)).mean()

    return loss


def to_torch(arrays):
    return {name: torch.tensor(array, requires_grad=True) for name, array in arrays.items()}


def loss_and_gradients(args, arrays, x, eps):
    params = to_torch(arrays)
    loss = make_loss(args)(params, torch.tensor(x), torch.tensor(eps))
    loss.backward()
    return loss.item(), {name: param.grad.numpy() for name, param in params.items()}


def build(args):
    """A function that starts a training step, and one that waits for it: on the CPU, nothing runs after a call."""
    torch.set_num_threads(int(os.environ.get('OMP_NUM_THREADS') or len(os.sched_getaffinity(0))))
    torch.manual_seed(0)
    params, loss = to_torch(common.random_parameters(args)), make_loss(args)
    optimizer = torch.optim.Adam(params.values(), 1e-3, fused=True)
    x = torch.tensor(common.random_images(args, args.batch_size))

    def step():
        optimizer.zero_grad()
        loss(params, x, torch.randn(args.num_steps, args.batch_size, args.latent_dim)).backward()
        optimizer.step()

    return step, lambda: None


if __name__ == '__main__':
    args = common.parse_args(argparse.ArgumentParser(description=__doc__))
    common.print_result(f'PyTorch {torch.__version__}', common.measure(lambda: build(args), args))
