"""Likelihood bounds of images: the variational bound and the importance-weighted one."""
import system  # noqa: F401  (before mxnet)

import numpy as np
from mxnet import gluon

import core
from dataset.noise import noise

_QUIET = np.errstate(over='ignore', invalid='ignore')  # callers check that results are finite


def log_weight(reconstruction, mu, log_sigma, eps):
    """log p(x|z) + log p(z) - log q(z|x) in nats, (batch,), for z = mu + sigma * eps drawn from q, as NumPy arrays.

    `reconstruction` is -log p(x|z). The negated expectation is the bound of Eqn. 12. For a trained MNIST model, this
    estimate varies less than half as much between draws as one with the analytic KL of Eqn. 11. The factors
    (2 pi)^(-1/2) of prior and posterior cancel. q(z_t|x) depends on z_1 .. z_{t-1} through mu and log_sigma, so the
    product over t is the density of z.
    """
    z = mu + np.exp(log_sigma) * eps
    return (0.5 * (eps ** 2 - z ** 2) + log_sigma).sum(axis=(0, 2), dtype=np.float64) - reconstruction


class Evaluator:
    """Computes bounds, batch by batch; each batch is divided among the workers of a group and their devices.

    `forward` is the core.DRAW `net`, or the operator that computes it. The batch size changes at most the last bits of
    a result.
    """

    def __init__(self, net, forward, contexts, batch_size, group):
        self._net, self._forward, self._contexts = net, forward, contexts
        self._batch_size, self._group, self._loss = batch_size, group, core.DRAWLoss()

    def _batches(self, num_images):
        """The first image of each batch, and the numbers of this worker's images.

        The last batch is filled up with images that are not counted, so that one graph serves all.
        """
        part = self._batch_size // self._group.size
        for start in range(0, num_images, self._batch_size):
            yield start, np.arange(part) + start + part * self._group.rank

    def _draw(self, images, numbers, seed, purpose):
        """One draw of z for each image: reconstruction (batch,), mu, log_sigma and eps."""
        x = gluon.utils.split_and_load(images[numbers % len(images)], self._contexts)
        eps = noise(seed, purpose, numbers[0], len(numbers), self._net.num_steps, self._net.latent_dim)
        outputs = []  # all devices start before the first result is waited for
        for x_k, eps_k in zip(x, gluon.utils.split_and_load(eps, self._contexts, batch_axis=1)):
            canvas, mu, log_sigma = self._forward(x_k, eps_k)
            # The analytic KL, as slow as the rest of the loss, is not needed here, so it is computed for one step only.
            outputs.append((self._loss(canvas, mu[:1], log_sigma[:1], x_k)[0], mu, log_sigma))
        counted = max(0, len(images) - numbers[0])
        reconstruction, mu, log_sigma = (
            np.concatenate([part.asnumpy() for part in parts], axis=axis)
            for axis, parts in zip((0, 1, 1), zip(*outputs)))
        return (reconstruction[:counted].astype(np.float64),
                *(array[:, :counted] for array in (mu, log_sigma, eps)))

    @_QUIET
    def mean(self, images, seed, purpose, on_batch=lambda count: None):
        """Means over the images for one draw of z each, in nats: the negative variational bound with the sampled KL and
        the reconstruction, both (), and the analytic KL of each step, (num_steps,).

        After each batch, `on_batch` is called with the number of its images.
        """
        sums = np.zeros(2 + self._net.num_steps)
        for start, numbers in self._batches(len(images)):
            reconstruction, mu, log_sigma, eps = self._draw(images, numbers, seed, purpose)
            bound = -log_weight(reconstruction, mu, log_sigma, eps)
            kl_t = core.kl_per_step(np, mu, log_sigma).sum(axis=1)
            sums += self._group.sum(np.concatenate([[bound.sum(), reconstruction.sum()], kl_t]))
            on_batch(min(self._batch_size, len(images) - start))
        means = sums / len(images)
        return means[0], means[1], means[2:]

    @_QUIET
    def per_image(self, images, seed, num_draws=1, on_draw=lambda count: None):
        """Bounds of every image from `num_draws` draws of z; memory does not depend on `num_draws`.

        Parameters
        ----------
        images : numpy.ndarray
            (n, height * width), values 0 or 1.
        seed, num_draws : int
        on_draw : callable, optional
            Called after each draw of a batch, with the number of its images.

        Returns
        -------
        dict of numpy.ndarray, each (n,), float64, nats
            `bound`: the negative variational bound with the sampled KL, a mean over the draws. `reconstruction`: its
            first part. `importance_weighted`: -log (1/K sum_k p(x, z_k) / q(z_k|x)) (Burda et al. 2015,
            arXiv:1509.00519, Eqn. 8).
        """
        results = {'bound': [], 'reconstruction': [], 'importance_weighted': []}
        for _, numbers in self._batches(len(images)):
            bound, reconstruction, log_sum = 0., 0., -np.inf
            for k in range(num_draws):
                drawn, mu, log_sigma, eps = self._draw(images, numbers, seed, f'evaluation {k}')
                weight = log_weight(drawn, mu, log_sigma, eps)
                bound, reconstruction = bound - weight / num_draws, reconstruction + drawn / num_draws
                log_sum = np.logaddexp(log_sum, weight)
                on_draw(len(drawn))
            for name, values in zip(results, (bound, reconstruction, np.log(num_draws) - log_sum)):
                results[name].append(values)
        return {name: np.concatenate(values) for name, values in results.items()}
