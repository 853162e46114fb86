"""One training of a network: the graphs, the optimizer, how far it has come, and what its checkpoint holds."""
import copy
import os

import numpy as np
from mxnet import autograd, gluon, nd

import core
import data
import run_folder
from log import rewind

_VALIDATION_SEED = 0  # of the noise in validation bounds, so that moments and runs compare
# What a resumed run may change; all else decides what the run is.
MAY_CHANGE = ('num_train_samples', 'learning_rate', 'lr_decay', 'val_freq', 'log_freq', 'checkpoint_freq', 'data_dir',
              'gpu')


def arguments_of(args):
    """What config.json keeps of the arguments."""
    return {name: value for name, value in vars(args).items() if name != 'resume'}


class NotFinite(Exception):
    """The bound or the gradient became NaN or infinite."""


class Training:
    """A network in training: the graphs, the optimizer, and how far it has come.

    Parameters
    ----------
    net : core.DRAW
        Initialized on `ctx`.
    args : argparse.Namespace
        What `parse_args` returns.
    ctx : mxnet.Context
    """

    def __init__(self, net, args, ctx):
        self.net, self.args, self.ctx, self.seen = net, args, ctx, 0
        self.best_bound, self.seconds = float('inf'), 0.  # on the validation images; of training, over all sittings
        # The copy shares the parameters and has a graph of its own: with one graph for both, MXNet plans it anew at
        # every change between training and validation.
        self._evaluator, self._loss = copy.copy(net), core.DRAWLoss()
        for block in (self.net, self._evaluator, self._loss):
            block.hybridize(**core.STATIC)
        self._trainer = gluon.Trainer(net.collect_params(), 'adam', {'learning_rate': args.learning_rate})
        self._recent, self._noise_ahead = [], (None, None)

    def step(self, x):
        """One Adam step on a batch (batch_size, height * width) of 0 and 1.

        Raises NotFinite, the parameters and the optimizer untouched, where the bound or the gradient's norm is NaN
        or infinite.
        """
        x = nd.array(x, ctx=self.ctx)
        eps = self._training_noise(self.seen)
        with autograd.record():
            canvas, mu, log_sigma = self.net(x, eps)
            reconstruction, kl = self._loss(canvas, mu, log_sigma, x)
            bound = (reconstruction + self.kl_weight() * kl).mean()                      # Eqn. 12
        bound.backward()
        gradients = [parameter.grad() for parameter in self.net.collect_params().values()]
        norm = gluon.utils.clip_global_norm(gradients, self.args.clip_norm, check_isfinite=False)
        numbers = nd.concat(reconstruction.mean(), kl.mean(), norm, dim=0)
        self._training_noise(self.seen + len(x))  # drawn while MXNet is still busy with this step
        numbers = numbers.asnumpy()
        self._check_finite(numbers)
        self._trainer.set_learning_rate(self.learning_rate())
        self._trainer.step(1)  # the bound is a mean over the batch already
        self._recent.append(numbers)
        self.seen += len(x)

    def _training_noise(self, position):
        """The noise of the step after `position` training samples; the last one drawn is kept."""
        if self._noise_ahead[0] != position:
            self._noise_ahead = position, self._noise(self.args.seed, 'noise', position)
        return self._noise_ahead[1]

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
        groups = [{name: parameter.data() for _, name, parameter in self._numbered()},
                  *({name: adam[k][moment] for k, name, _ in self._numbered()} for moment in range(2))]
        run_folder.save_checkpoint(folder, self.net, groups, {
            'samples_seen': self.seen, 'num_updates': self._trainer._optimizer.num_update,
            'best_bound': self.best_bound, 'seconds': self.seconds, 'event_files': log.sizes(),
            'arguments': arguments_of(self.args)})

    def resume(self, folder):
        """Take up where the checkpoint in `folder` ends, or start anew where there is none yet; rewinds the log.

        Raises run_folder.RunError.
        """
        checkpoint = run_folder.load_checkpoint(folder, self.net, num_groups=3)
        if checkpoint is None:
            rewind(folder, {})
            return
        groups, metadata = checkpoint
        path = os.path.join(folder, 'checkpoint.params')
        numbers = [metadata.get(key) for key in ('samples_seen', 'num_updates', 'best_bound', 'seconds')]
        if not (all(type(n) is int and n > 0 for n in numbers[:2]) and all(type(n) is float for n in numbers[2:])
                and isinstance(metadata.get('event_files'), dict) and isinstance(metadata.get('arguments'), dict)
                and all(type(n) is int and n >= 0 for n in metadata['event_files'].values())):
            raise run_folder.RunError(f'{path} is damaged: its metadata is incomplete')
        for name, value in arguments_of(self.args).items():
            if name not in MAY_CHANGE and metadata['arguments'].get(name) != value:
                raise run_folder.RunError(f'{folder}/config.json was changed: {name} is {value!r}, but '
                                          f'{metadata["arguments"].get(name)!r} in checkpoint.params')
        self.seen, num_updates, self.best_bound, self.seconds = numbers
        if self.best_bound < float('inf'):
            run_folder.load_params(folder, 'best', self.net)  # the end of the run needs it
        parameters, means, variances = groups
        updater, optimizer = self._trainer._updaters[0], self._trainer._optimizer
        for k, name, parameter in self._numbered():
            parameter.set_data(parameters[name])
            updater.states[k] = (means[name].as_in_context(self.ctx), variances[name].as_in_context(self.ctx))
            updater.states_synced[k] = True
            optimizer._index_update_count[k] = num_updates
        optimizer.num_update = num_updates
        rewind(folder, metadata['event_files'])

    def _numbered(self):
        """(number in the optimizer, name, parameter) of every parameter."""
        names = {id(parameter): name for name, parameter in run_folder.parameters(self.net).items()}
        return [(k, names[id(parameter)], parameter) for k, parameter in enumerate(self._trainer._params)]

    def validate(self, images):
        """Mean reconstruction, KL and KL per step over images (n, height * width), with one draw of z for each.

        The noise is the same at every call. The last batch is filled up with images that do not count, so that
        one graph serves all. Raises NotFinite.
        """
        sums, n = [0., 0., 0.], len(images)
        for first in range(0, n, self.args.batch_size):
            rows = np.arange(first, first + self.args.batch_size)
            x = nd.array(images[rows % n], ctx=self.ctx)
            canvas, mu, log_sigma = self._evaluator(x, self._noise(_VALIDATION_SEED, 'validation', first))
            reconstruction, kl = self._loss(canvas, mu, log_sigma, x)
            for k, values in enumerate((reconstruction, kl, core.kl_per_step(nd, mu, log_sigma))):
                sums[k] = sums[k] + values.asnumpy()[..., rows < n].sum(axis=-1, dtype=np.float64)
        means = tuple(total / n for total in sums)
        self._check_finite(*means)
        return means

    def _noise(self, seed, purpose, position):
        shape = self.args.num_steps, self.args.batch_size, self.args.latent_dim
        return nd.array(data.generator(seed, purpose, position).standard_normal(shape, dtype=np.float32),
                        ctx=self.ctx)

    def _check_finite(self, *numbers):
        if not all(np.isfinite(number).all() for number in numbers):
            raise NotFinite(f'the bound or its gradient is not finite after {self.seen:,} training samples; '
                            f'add a smaller --learning_rate')
