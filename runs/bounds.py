"""Likelihood bounds of images: the variational bound, and the importance-weighted one."""
import copy

import system  # noqa: F401  (before mxnet)

import numpy as np
from mxnet import gluon

import core
from dataset.noise import noise
from distributed.workers import Alone

_QUIET = np.errstate(over='ignore', invalid='ignore')  # what is not finite, the caller says in a line of his own


def log_weight(reconstruction, mu, log_sigma, eps):
    """log p(x|z) + log p(z) - log q(z|x), for z = mu + sigma * eps drawn from q.

    The normal constants of prior and posterior cancel. q(z_t|x) depends on z_1 .. z_{t-1}, and so do mu and log_sigma,
    which makes the product over t the density of the whole z.

    Parameters
    ----------
    reconstruction : numpy.ndarray
        -log p(x|z), shape (batch,).
    mu, log_sigma, eps : numpy.ndarray
        Each (num_steps, batch, latent_dim).

    Returns
    -------
    (batch,), nats
    """
    z = mu + np.exp(log_sigma) * eps
    return (0.5 * (eps ** 2 - z ** 2) + log_sigma).sum(axis=(0, 2)) - reconstruction


class Evaluator:
    """The bounds of images, batch by batch, each batch shared out to the workers and their contexts.

    Parameters
    ----------
    net : core.DRAW
        Initialized on `contexts`; its parameters at the time of a call count.
    contexts : list of mxnet.Context
    batch_size : int
        Images at a time, of all workers together. As every image has noise of its own, it changes the last bits of a
        result at most.
    group : distributed.workers.Alone, optional
    """

    def __init__(self, net, contexts, batch_size, group=None):
        self._contexts, self._batch_size, self._group = contexts, batch_size, group or Alone()
        # The copy shares the parameters and has a graph of its own: with one graph for training and evaluation, MXNet
        # plans it anew at every change between them.
        self._net, self._loss = copy.copy(net), core.DRAWLoss()
        for block in (self._net, self._loss):
            block.hybridize(**core.STATIC)

    def _batches(self, num_images, first=0):
        """(number of the first image of the batch, numbers of this worker's images) of every batch.

        The last batch is filled up with images that do not exist and are not counted, so that one graph serves all.
        """
        part = self._batch_size // self._group.size
        for start in range(first, num_images, self._batch_size):
            yield start, np.arange(part) + start + part * self._group.rank

    def _draw(self, images, rows, seed, purpose):
        """One draw of z for each of the images that `rows` counts.

        Returns
        -------
        reconstruction : (batch,), nats
        mu, log_sigma, eps : each (num_steps, batch, latent_dim)
            All float64.
        """
        x = gluon.utils.split_and_load(images[rows % len(images)], self._contexts)
        eps = noise(seed, purpose, rows[0], len(rows), self._net.num_steps, self._net.latent_dim)
        outputs = []  # of the contexts, all under way before the first is waited for
        for x_k, eps_k in zip(x, gluon.utils.split_and_load(eps, self._contexts, batch_axis=1)):
            canvas, mu, log_sigma = self._net(x_k, eps_k)
            outputs.append((self._loss(canvas, mu, log_sigma, x_k)[0], mu, log_sigma))
        counted = rows < len(images)
        reconstruction, mu, log_sigma = (
            np.concatenate([output.asnumpy().astype(np.float64) for output in parts], axis=axis)
            for axis, parts in zip((0, 1, 1), zip(*outputs)))
        return reconstruction[counted], mu[:, counted], log_sigma[:, counted], eps[:, counted].astype(np.float64)

    @_QUIET
    def mean(self, images, seed, purpose, on_batch=lambda count: None):
        """Means over images of reconstruction (), KL () and KL per step (num_steps,), one draw of z for each; nats.

        `on_batch` is called with the number of images after each batch.
        """
        sums = np.zeros(1 + self._net.num_steps)
        for start, rows in self._batches(len(images)):
            reconstruction, mu, log_sigma, _ = self._draw(images, rows, seed, purpose)
            kl_t = core.kl_per_step(np, mu, log_sigma).sum(axis=1)
            # Of all workers batch by batch: the others must not wait too long for a slow one.
            sums += self._group.sum(np.append(reconstruction.sum(), kl_t))
            on_batch(min(self._batch_size, len(images) - start))
        means = sums / len(images)
        return means[0], means[1:].sum(), means[1:]

    @_QUIET
    def per_image(self, images, seed, num_draws=1, done=None, on_draw=lambda count: None):
        """Bounds of every image, from `num_draws` draws of z for each; memory does not depend on `num_draws`.

        Parameters
        ----------
        images : numpy.ndarray
            (n, height * width), values 0 or 1.
        seed : int
        num_draws : int
        done : dict, optional
            What is returned, of the first images alone; it grows batch by batch, until it is what is returned.
        on_draw : callable, optional
            Called with the number of images after each draw.

        Returns
        -------
        dict of numpy.ndarray, each (n,), float64, nats
            `reconstruction` and `kl`, means over the draws, whose sum is the negative variational bound (Eqn. 12), and
            `importance_weighted`, -log (1/K sum_k p(x, z_k) / q(z_k|x)) (Burda et al. 2015, arXiv:1509.00519, Eqn. 8).
        """
        done = {} if done is None else done
        for name in ('reconstruction', 'kl', 'importance_weighted'):
            done.setdefault(name, np.zeros(0))
        for _, rows in self._batches(len(images), first=len(done['kl'])):
            sums = {'reconstruction': 0., 'kl': 0., 'importance_weighted': -np.inf}
            for k in range(num_draws):
                reconstruction, mu, log_sigma, eps = self._draw(images, rows, seed, f'evaluation {k}')
                sums['reconstruction'] += reconstruction
                sums['kl'] += core.kl_per_step(np, mu, log_sigma).sum(axis=0)
                weight = log_weight(reconstruction, mu, log_sigma, eps)
                sums['importance_weighted'] = np.logaddexp(sums['importance_weighted'], weight)
                on_draw(len(reconstruction))
            means = {'reconstruction': sums['reconstruction'] / num_draws, 'kl': sums['kl'] / num_draws,
                     'importance_weighted': np.log(num_draws) - sums['importance_weighted']}
            for name, values in means.items():
                done[name] = np.append(done[name], values)
        return done
