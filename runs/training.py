"""A network in training: batches, schedules, the update, validation, and the state that a checkpoint holds."""
from system import cli

import mxnet as mx
import numpy as np
from mxnet import gluon, nd

import core
from dataset.noise import noise
from fused.network import accelerate
from runs import params
from runs.bounds import Evaluator

_VALIDATION_SEED = 0  # the same noise each time, so that validations can be compared


class NotFinite(cli.UserError):
    """The bound or its gradient became NaN or infinite."""


def check_batch_size(args, contexts, group):
    """Raise cli.UserError unless a batch can be divided evenly among all devices."""
    number = group.size * len(contexts)
    if args.batch_size % number:
        raise cli.UserError(f'argument --batch_size: {args.batch_size} images cannot be divided evenly among {number} '
                            'devices')


class Training:
    """A network, its optimizer, and how far they have come.

    Every batch is divided evenly among the workers of the `group`, and each part among that worker's devices. Images
    and noise are functions of their number in the stream, so every division gives the same step.
    """

    def __init__(self, args, contexts, group):
        self.args, self.contexts, self.group = args, contexts, group
        self.seen, self.best_bound = 0, float('inf')  # training samples; lowest validation bound, nats
        mx.random.seed(args.seed)
        self.net, self.loss = params.build_net(args), core.DRAWLoss()
        self.net.initialize(ctx=contexts)
        for block in (self.net, self.loss):
            block.hybridize(**core.STATIC)
        self.forward = accelerate(self.net, contexts, args.fused)  # the net, or the operator that computes it
        self._part = args.batch_size // group.size
        self._evaluator = Evaluator(self.net, self.forward, contexts, args.batch_size, group)
        self._parameters = params.of(self.net)
        self._trainer = gluon.Trainer(list(self._parameters.values()), 'adam', kvstore=None)

    def batch(self, images):
        """The next images of a TrainingStream and their noise on each device: a list of x (batch, height * width) and
        one of eps (num_steps, batch, latent_dim)."""
        args, first = self.args, self.seen + self._part * self.group.rank
        x = images.batch(first, self._part)
        eps = noise(args.seed, 'noise', first, self._part, args.num_steps, args.latent_dim)
        return (gluon.utils.split_and_load(x, self.contexts),
                gluon.utils.split_and_load(eps, self.contexts, batch_axis=1))

    def kl_weight(self):
        """Weight of the KL in the next step: grows linearly to 1 over the first args.kl_warmup samples."""
        return min(1., (self.seen + self.args.batch_size) / self.args.kl_warmup)

    def learning_rate(self):
        """Adam's rate in the next step: constant, then linear to 0 over the last part, args.lr_decay, of the run."""
        remaining, decay = max(0., 1 - self.seen / self.args.num_train_samples), self.args.lr_decay
        return self.args.learning_rate * (remaining / decay if remaining < decay else 1.)

    def update(self, losses):
        """Sum the gradients of all devices and workers, clip their norm, and make a step of Adam.

        Takes each device's (reconstruction, kl). Returns bound, reconstruction, kl and the gradient's norm before
        clipping, means over the batch in nats per image. Raises NotFinite, which leaves the parameters as they were.
        """
        self.group.sum_gradients(list(self._parameters.values()))
        gradients = [[parameter.grad(ctx) for parameter in self._parameters.values()] for ctx in self.contexts]
        norm = [gluon.utils.clip_global_norm(own, self.args.clip_norm, check_isfinite=False) for own in gradients][0]
        sums = np.sum([[part.sum().asscalar() for part in pair] for pair in losses], axis=0, dtype=np.float64)
        reconstruction, kl = self.group.sum(sums) / self.args.batch_size
        numbers = reconstruction + kl, reconstruction, kl, norm.asscalar()
        self._check_finite(numbers)
        self._trainer.set_learning_rate(self.learning_rate())
        self._trainer.update(1)  # the gradient is that of the mean over the batch
        self.seen += self.args.batch_size
        return numbers

    def validate(self, images, on_batch=lambda count: None):
        """Negative variational bound (sampled KL), reconstruction, and analytic KL of each step: means over the images,
        nats, with the same noise at every call. Raises NotFinite."""
        bound, reconstruction, kl_t = self._evaluator.mean(images, _VALIDATION_SEED, 'validation', on_batch)
        self._check_finite([bound, *kl_t])
        return bound, reconstruction, kl_t

    def _check_finite(self, numbers):
        if not np.isfinite(numbers).all():
            raise NotFinite(f'the bound or its gradient is not finite after {self.seen:,} training samples')

    def state(self):
        """The (arrays, state) of a checkpoint, the same for a resumed and for an uninterrupted run."""
        arrays = params.arrays_of(self.net)
        for k, name in enumerate(self._parameters):
            moments = self._trainer._updaters[0].states.get(k)  # none before the first step
            moments = moments or 2 * [nd.zeros(self._parameters[name].shape)]
            arrays.update((prefix + name, moment.asnumpy()) for prefix, moment in zip(params.PREFIXES[1:], moments))
        best_bound = self.best_bound if np.isfinite(self.best_bound) else None
        return arrays, {'samples_seen': self.seen, 'best_bound': best_bound}

    def restore(self, checkpoint):
        """Continue from a checkpoint, (arrays, state) of worker 0, or from the initial parameters of worker 0 (None).

        Gluon's Trainer.load_states would unpickle a file, so the moments are set directly.
        """
        arrays, state = checkpoint or (params.arrays_of(self.net), {})
        best_bound = state.get('best_bound')
        progress = np.array([state.get('samples_seen', 0), np.inf if best_bound is None else best_bound])
        seen, self.best_bound = self.group.broadcast(progress).tolist()
        self.seen, adam = int(seen), self._trainer.optimizer
        adam.begin_num_update = adam.num_update = self.seen // self.args.batch_size

        def of_worker_0(name, shape):
            return nd.array(self.group.broadcast(arrays.get(name, np.zeros(shape, np.float32))))

        for k, (name, parameter) in enumerate(self._parameters.items()):
            parameter.set_data(of_worker_0(name, parameter.shape))
            if self.seen:
                moments = [of_worker_0(prefix + name, parameter.shape) for prefix in params.PREFIXES[1:]]
                for updater, ctx in zip(self._trainer._updaters, self.contexts):
                    updater.states[k] = tuple(moment.as_in_context(ctx) for moment in moments)
                    updater.states_synced[k] = True
