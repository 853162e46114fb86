"""One training of a network: the step, the optimizer, how far it has come, and what its checkpoint holds."""
import reprlib

from system import cli

import numpy as np
from mxnet import autograd, gluon, nd

import core
from dataset.noise import noise
from distributed.workers import Alone
from runs import storage
from runs.arguments import MAY_CHANGE, arguments_of
from runs.bounds import Evaluator

_VALIDATION_SEED = 0  # of the noise in validation bounds, so that moments and runs compare
_PROGRESS = ('samples_seen', 'num_updates', 'best_bound', 'seconds')  # what a checkpoint says of it


class NotFinite(cli.UserError):
    """The bound or the gradient became NaN or infinite."""


class Training:
    """A network in training: the step, the optimizer, and how far it has come.

    Every batch is shared out evenly, in order: first to the workers, then each one's part to its contexts. Images and
    noise are functions of their number in the stream, so all divisions of a batch give the same step.

    Parameters
    ----------
    net : core.DRAW
        Initialized on `contexts`.
    args : argparse.Namespace
        What `parse_args` returns; its batch_size is that of all workers together.
    contexts : list of mxnet.Context
    group : distributed.workers.Alone, optional
        The workers that train together, connected. Worker 0 alone reads and writes files.
    """

    def __init__(self, net, args, contexts, group=None):
        self.net, self.args, self.contexts, self.group = net, args, contexts, group or Alone()
        self.seen, self.best_bound, self.seconds = 0, float('inf'), 0.  # bound: of validation; seconds: of all sittings
        self.part = args.batch_size // self.group.size  # images of a batch that are this worker's
        self._loss, self._parameters = core.DRAWLoss(), storage.parameters(net)
        for block in (self.net, self._loss):
            block.hybridize(**core.STATIC)
        self._evaluator = Evaluator(net, contexts, args.batch_size, self.group)
        # Updates here and not in the KVStore: the gradient's norm is that of the sum over all.
        self._trainer = gluon.Trainer(list(self._parameters.values()), 'adam', {'learning_rate': args.learning_rate},
                                      kvstore=self.group.kvstore, update_on_kvstore=False)
        self.share_params()  # MXNet would share those of the worker that it counts first, which need not be worker 0
        self.group.begin(self._trainer)
        self._noise_ahead = None, None

    def next_images(self):
        """Which images of the stream this worker's part of the next batch is: (number of the first, how many)."""
        return self.seen + self.part * self.group.rank, self.part

    def step(self, x):
        """One Adam step.

        Parameters
        ----------
        x : numpy.ndarray
            This worker's part of the batch, (part, height * width), values 0 or 1.

        Returns
        -------
        (3,) : mean reconstruction and KL over the batch, and the gradient's norm before clipping, nats per image

        Raises
        ------
        NotFinite
            One of them is NaN or infinite; the parameters and the optimizer are untouched.
        """
        x = gluon.utils.split_and_load(x, self.contexts)
        eps = gluon.utils.split_and_load(self._noise(self.seen), self.contexts, batch_axis=1)
        sums = []
        for x_k, eps_k in zip(x, eps):
            with autograd.record():
                canvas, mu, log_sigma = self.net(x_k, eps_k)
                reconstruction, kl = self._loss(canvas, mu, log_sigma, x_k)                       # Eqns. 9-11
                bound = (reconstruction + self.kl_weight() * kl).sum() / self.args.batch_size     # Eqn. 12
            bound.backward()
            sums.append(nd.concat(reconstruction.sum(), kl.sum(), dim=0))
        self._trainer.allreduce_grads()  # sums over contexts and workers: the gradient of the mean over the batch
        norm = self._clip()
        self._noise(self.seen + self.args.batch_size)  # of the next step, drawn while MXNet is still busy with this one
        means = self.group.sum(sum(part.asnumpy() for part in sums)) / self.args.batch_size
        numbers = np.append(means, norm.asnumpy())
        self._check_finite(numbers)
        self._trainer.set_learning_rate(self.learning_rate())
        self._trainer.update(1)  # the gradient is that of the mean already
        self.seen += self.args.batch_size
        return numbers

    def _clip(self):
        """Scale the gradient down to a global norm of args.clip_norm; its norm before."""
        norms = [gluon.utils.clip_global_norm([parameter.grad(ctx) for parameter in self._parameters.values()],
                                              self.args.clip_norm, check_isfinite=False) for ctx in self.contexts]
        return norms[0]  # all contexts hold the same sum

    def _noise(self, position):
        """The noise of this worker's part of the batch after `position` training samples; the latest is kept."""
        if self._noise_ahead[0] != position:
            first = position + self.part * self.group.rank
            self._noise_ahead = position, noise(self.args.seed, 'noise', first, self.part, self.args.num_steps,
                                                self.args.latent_dim)
        return self._noise_ahead[1]

    def kl_weight(self):
        """Weight of the KL in the training objective: grows linearly to 1 over the first args.kl_warmup samples."""
        return min(1., (self.seen + self.args.batch_size) / self.args.kl_warmup)

    def learning_rate(self):
        """Adam's rate in the next step: constant, then linear to 0 over the last part args.lr_decay of the training."""
        remaining = max(0., 1 - self.seen / self.args.num_train_samples)
        decay = self.args.lr_decay
        return self.args.learning_rate * (remaining / decay if remaining < decay else 1.)

    def validate(self, images, on_batch=lambda count: None):
        """Mean reconstruction, KL and KL per step over images, in nats, with the same noise at every call.

        Raises NotFinite.
        """
        reconstruction, kl, kl_t = self._evaluator.mean(images, _VALIDATION_SEED, 'validation', on_batch)
        self._check_finite(np.append(kl_t, reconstruction))
        return reconstruction, kl, kl_t

    def _check_finite(self, numbers):
        if not np.isfinite(numbers).all():
            raise NotFinite(f'the bound or its gradient is not finite after {self.seen:,} training samples')

    def save_params(self, folder, name):
        """Write <name>.safetensors."""
        if self.group.rank == 0:
            storage.save_params(folder, name, self.net)

    def save_checkpoint(self, folder, log, name='checkpoint'):
        """Write what `resume` needs, and nothing that a stopped and an unstopped run would write differently."""
        if self.group.rank == 0:
            log.sync()
            moments = [self._trainer._updaters[0].states[k] for k in range(len(self._parameters))]
            groups = [{key: parameter.list_data()[0] for key, parameter in self._parameters.items()},
                      *(dict(zip(self._parameters, moment)) for moment in zip(*moments))]
            storage.save_checkpoint(folder, name, self.net, groups, {
                'samples_seen': self.seen, 'num_updates': self._trainer.optimizer.num_update,
                'best_bound': self.best_bound if np.isfinite(self.best_bound) else None, 'seconds': self.seconds,
                'arguments': arguments_of(self.args)})

    def resume(self, checkpoint):
        """Take up where a checkpoint ends.

        Parameters
        ----------
        checkpoint : tuple or None
            What worker 0 has from `read_checkpoint`, of which the others get the state; None starts anew.
        """
        groups, metadata = checkpoint or (None, None)
        progress = [metadata[key] for key in _PROGRESS] if metadata else [0, 0, None, 0]
        progress = [float('inf') if number is None else number for number in progress]  # no best bound yet
        seen, num_updates, self.best_bound, self.seconds = self.group.broadcast(np.array(progress, float)).tolist()
        if not num_updates:
            return
        self.seen = int(seen)
        adam = self._trainer.optimizer
        adam.begin_num_update = adam.num_update = int(num_updates)
        for k, (name, parameter) in enumerate(self._parameters.items()):
            arrays = [group[name] for group in groups] if groups else [np.zeros(parameter.shape, np.float32)] * 3
            value, *moments = (self.group.broadcast(array) for array in arrays)
            parameter.set_data(nd.array(value))
            # Trainer.load_states would unpickle a file, so Adam's mean and variance go where it would put them.
            for updater, ctx in zip(self._trainer._updaters, self.contexts):
                updater.states[k] = tuple(nd.array(moment, ctx=ctx) for moment in moments)
                updater.states_synced[k] = True

    def load_best(self, folder):
        """Put best.safetensors, which worker 0 reads from `folder`, into the network. Raises storage.RunError."""
        if self.group.rank == 0:
            storage.load_params(folder, 'best', self.net)
        self.share_params()

    def share_params(self):
        """Give all workers the parameters of worker 0."""
        for parameter in self._parameters.values():
            parameter.set_data(nd.array(self.group.broadcast(parameter.list_data()[0].asnumpy())))


def memory_needed(net, batch_size, num_contexts):
    """Bytes that a training step takes at least, on the CPU.

    Each parameter with its gradient, mean and variance, on every context; and what the backward pass wants of every
    step: canvas and its mean, q, and of each LSTM gates, cell and output, as they are and their gradients.
    """
    units, pixels = net.h_enc_0.shape[1], net.image_shape[0] * net.image_shape[1]
    per_step = 2 * (2 * pixels + 2 * net.latent_dim + 2 * 6 * units)
    return 4 * (4 * num_contexts * storage.num_weights(net) + batch_size * net.num_steps * per_step)


def read_checkpoint(folder, net, args):
    """The checkpoint of a run as (state, metadata), checked; None where there is none.

    The network need not be initialized. Raises storage.RunError where the checkpoint is damaged, or where it is of
    another network or of other arguments than `args`.
    """
    checkpoint = storage.load_checkpoint(folder, 'checkpoint', net)
    if checkpoint is None:
        return None
    metadata = checkpoint[1]
    for key, value in arguments_of(args).items():
        if key not in MAY_CHANGE and metadata['arguments'].get(key) != value:
            raise storage.RunError(f'{folder}/config.json was changed: {key} is {value!r}, but '
                                   f'{reprlib.repr(metadata["arguments"].get(key))} in the checkpoint')
    if metadata['best_bound'] is not None:
        storage.read_params(folder, 'best', net)  # the end of the run needs it
    return checkpoint
