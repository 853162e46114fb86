"""One training of a network: the graphs, the optimizer, how far it has come, and what its checkpoint holds."""
import copy
import os

import numpy as np
from mxnet import autograd, gluon, nd

import core
from dataset.noise import noise
from distributed.workers import Workers
from runs import storage
from runs.arguments import MAY_CHANGE, arguments_of
from runs.log import rewind

_VALIDATION_SEED = 0  # of the noise in validation bounds, so that moments and runs compare
_PROGRESS = ('samples_seen', 'num_updates', 'best_bound', 'seconds')  # what a checkpoint says of it


class NotFinite(Exception):
    """The bound or the gradient became NaN or infinite."""


class Training:
    """A network in training: the graphs, the optimizer, and how far it has come.

    Every batch is shared out evenly, in order: first to the workers, then each one's part to its contexts. Images and
    noise are functions of their number in the stream, so all divisions of a batch give the same step.

    Parameters
    ----------
    net : core.DRAW
        Initialized on `contexts`.
    args : argparse.Namespace
        What `parse_args` returns; its batch_size is that of all workers together.
    contexts : list of mxnet.Context
    workers : Workers, optional
        Connected; this process alone if not given.
    """

    def __init__(self, net, args, contexts, workers=None):
        self.net, self.args, self.contexts, self.seen = net, args, contexts, 0
        self.workers = workers or Workers()
        self.part = args.batch_size // self.workers.size  # images of a batch that are this worker's
        self._first = self.part * self.workers.rank  # the number of the first of them
        self.best_bound, self.seconds = float('inf'), 0.  # on the validation images; of training, over all sittings
        # The copy shares the parameters and has a graph of its own: with one graph for both, MXNet plans it anew at
        # every change between training and validation.
        self._evaluator, self._loss = copy.copy(net), core.DRAWLoss()
        for block in (self.net, self._evaluator, self._loss):
            block.hybridize(**core.STATIC)
        # Updates here and not in the KVStore: the gradient's norm is that of the sum over all.
        self._trainer = gluon.Trainer(net.collect_params(), 'adam', {'learning_rate': args.learning_rate},
                                      kvstore=self.workers.kvstore, update_on_kvstore=False)
        self.workers.begin(self._trainer)
        self._recent, self._noise_ahead = [], (None, None)

    def next_images(self):
        """Which images of the stream this worker's part of the next batch is: (number of the first, how many)."""
        return self.seen + self._first, self.part

    def step(self, x):
        """One Adam step on a batch of which x (batch_size / workers, height * width), 0 and 1, is this worker's part.

        Raises NotFinite, the parameters and the optimizer untouched, where the bound or the gradient's norm is NaN
        or infinite.
        """
        parts = []
        for x_part, eps in self._share(x, self._training_noise(self.seen)):
            with autograd.record():  # one forward pass in each
                canvas, mu, log_sigma = self.net(x_part, eps)
                reconstruction, kl = self._loss(canvas, mu, log_sigma, x_part)
                bound = (reconstruction + self.kl_weight() * kl).sum() / self.args.batch_size         # Eqn. 12
            bound.backward()
            parts.append(nd.concat(reconstruction.sum(), kl.sum(), dim=0))
        self._trainer.allreduce_grads()  # sums, so that the parts of the bound make up the mean over the batch
        parameters = self.net.collect_params().values()
        norms = [gluon.utils.clip_global_norm([parameter.grad(ctx) for parameter in parameters], self.args.clip_norm,
                                              check_isfinite=False) for ctx in self.contexts]
        self._training_noise(self.seen + self.args.batch_size)  # drawn while MXNet is still busy with this step
        sums = self.workers.sum(sum(part.asnumpy() for part in parts))
        numbers = np.append(sums / self.args.batch_size, norms[0].asnumpy())
        self._check_finite(numbers)
        self._trainer.set_learning_rate(self.learning_rate())
        self._trainer.update(1)
        self._recent.append(numbers)
        self.seen += self.args.batch_size

    def _share(self, x, eps):
        """[(x, eps)] of each context."""
        return list(zip(gluon.utils.split_and_load(x, self.contexts),
                        gluon.utils.split_and_load(eps, self.contexts, batch_axis=1)))

    def _training_noise(self, position):
        """The noise of this worker's part of the batch after `position` training samples; the latest is kept."""
        if self._noise_ahead[0] != position:
            self._noise_ahead = position, self._noise(self.args.seed, 'noise', position)
        return self._noise_ahead[1]

    def _noise(self, seed, purpose, position):
        return noise(seed, purpose, position + self._first, self.part, self.args.num_steps, self.args.latent_dim)

    def kl_weight(self):
        """Weight of the KL in the training objective: grows linearly to 1 over the first args.kl_warmup samples."""
        return min(1., (self.seen + self.args.batch_size) / self.args.kl_warmup)

    def learning_rate(self):
        """Adam's rate in the next step: constant, then linear to 0 over the last part args.lr_decay of the training."""
        remaining = max(0., 1 - self.seen / self.args.num_train_samples)
        decay = self.args.lr_decay
        return self.args.learning_rate * (remaining / decay if remaining < decay else 1.)

    def means(self):
        """Means over the steps since the last call: reconstruction, KL and gradient norm, in nats per image."""
        means = np.mean(self._recent, axis=0, dtype=np.float64)
        self._recent = []
        return tuple(map(float, means))

    def save_checkpoint(self, folder, log):
        """Write what `resume` needs, and nothing that a stopped and an unstopped run would write differently."""
        adam = self._trainer._updaters[0].states  # Trainer.save_states would be a pickle
        groups = [{name: parameter.list_data()[0] for _, name, parameter in self._numbered()},
                  *({name: adam[k][moment] for k, name, _ in self._numbered()} for moment in range(2))]
        storage.save_checkpoint(folder, self.net, groups, {
            'samples_seen': self.seen, 'num_updates': self._trainer._optimizer.num_update,
            'best_bound': self.best_bound, 'seconds': self.seconds, 'event_files': log.sizes(),
            'arguments': arguments_of(self.args)})

    def resume(self, folder):
        """Take up where the checkpoint in `folder` ends, or start anew where there is none yet; rewinds the log.

        Only worker 0 needs the folder; the others get its state. Raises storage.RunError.
        """
        groups, metadata = self._read_checkpoint(folder) if self.workers.rank == 0 else (None, None)
        numbers = self.workers.gather(metadata and [metadata[key] for key in _PROGRESS])[0]
        if numbers is None:
            return
        self.seen, num_updates, self.best_bound, self.seconds = numbers
        adam = self._trainer._optimizer
        adam.begin_num_update = adam.num_update = num_updates
        for k, name, parameter in self._numbered():
            # Parameter, mean and variance.
            arrays = [self.workers.broadcast(np.zeros(parameter.shape, np.float32) if groups is None
                                             else group[name].asnumpy()) for group in groups or range(3)]
            parameter.set_data(nd.array(arrays[0]))
            for updater, ctx in zip(self._trainer._updaters, self.contexts):
                updater.states[k] = tuple(nd.array(array, ctx=ctx) for array in arrays[1:])
                updater.states_synced[k] = True

    def _read_checkpoint(self, folder):
        """The checkpoint as (state, metadata), all checked, or (None, None)."""
        checkpoint = storage.load_checkpoint(folder, self.net, num_groups=3)
        if checkpoint is None:
            rewind(folder, {})
            return None, None
        groups, metadata = checkpoint
        path = os.path.join(folder, 'checkpoint.params')
        numbers = [metadata.get(key) for key in _PROGRESS]
        if not (all(type(n) is int and n > 0 for n in numbers[:2]) and all(type(n) is float for n in numbers[2:])
                and isinstance(metadata.get('event_files'), dict) and isinstance(metadata.get('arguments'), dict)
                and all(type(n) is int and n >= 0 for n in metadata['event_files'].values())):
            raise storage.RunError(f'{path} is damaged: its metadata is incomplete')
        for name, value in arguments_of(self.args).items():
            if name not in MAY_CHANGE and metadata['arguments'].get(name) != value:
                raise storage.RunError(f'{folder}/config.json was changed: {name} is {value!r}, but '
                                          f'{metadata["arguments"].get(name)!r} in checkpoint.params')
        if numbers[2] < float('inf'):
            storage.load_params(folder, 'best', self.net)  # the end of the run needs it
        rewind(folder, metadata['event_files'])
        return groups, metadata

    def load_best(self, folder):
        """Put best.params, which worker 0 reads from `folder`, into the network. Raises storage.RunError."""
        if self.workers.rank == 0:
            storage.load_params(folder, 'best', self.net)
        for _, _, parameter in self._numbered():
            parameter.set_data(nd.array(self.workers.broadcast(parameter.list_data()[0].asnumpy())))

    def _numbered(self):
        """(number in the optimizer, name, parameter) of every parameter."""
        names = {id(parameter): name for name, parameter in storage.parameters(self.net).items()}
        return [(k, names[id(parameter)], parameter) for k, parameter in enumerate(self._trainer._params)]

    def validate(self, images):
        """Mean reconstruction, KL and KL per step over images (n, height * width), with one draw of z for each.

        The noise is the same at every call. The last batch is filled up with images that do not count, so that
        one graph serves all. Raises NotFinite.
        """
        n, size = len(images), self.args.batch_size
        sums = np.zeros(2 + self.args.num_steps)
        for first in range(0, n, size):
            rows = np.arange(first, first + size)[self._first:self._first + self.part]
            parts = []  # of the contexts, all under way before the first is waited for
            for x, eps in self._share(images[rows % n], self._noise(_VALIDATION_SEED, 'validation', first)):
                canvas, mu, log_sigma = self._evaluator(x, eps)
                reconstruction, kl = self._loss(canvas, mu, log_sigma, x)
                parts.append(nd.concat(nd.stack(reconstruction, kl), core.kl_per_step(nd, mu, log_sigma), dim=0))
            values = np.concatenate([part.asnumpy() for part in parts], axis=1)          # (2 + T, part)
            # Of all workers batch by batch: the others must not wait too long for a slow one.
            sums += self.workers.sum(values[:, rows < n].sum(axis=1, dtype=np.float64))
        means = sums / n
        self._check_finite(means)
        return means[0], means[1], means[2:]

    def _check_finite(self, numbers):
        if not np.isfinite(numbers).all():
            raise NotFinite(f'the bound or its gradient is not finite after {self.seen:,} training samples; '
                            f'add a smaller --learning_rate')
