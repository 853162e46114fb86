"""What a run records: events for TensorBoard, and its numbers as CSV files (docs/architecture.md lists them)."""
import os

from system import cli, files

import numpy as np

from pictures import paint, plot
from runs import curves, params
from runs.events import Events, summary

_CURVES = 'train', 'validation'
_PARTS = {'read': 'read', 'enc': 'encoder', 'q': 'posterior', 'dec': 'decoder', 'write': 'write'}
_NUM_PREVIEWS, _PREVIEW_SEED = 6, 0  # the same noise every time, so that pictures can be compared
_PREVIEW_SIDE = 256  # screen pixels to which an image is enlarged, at most


class Log:
    """Records a run in its folder. A run that resumes at `seen` training samples loses what was recorded later.

    Every method but `save_curves` and `close` may raise OSError, for example on a full disk.
    """

    def __init__(self, folder, arguments, seen=0):
        self._folder, self._events = folder, {}
        curves.truncate(self._path('curves.csv'), curves.COLUMNS, seen)
        curves.truncate(self._path('kl_per_step.csv'), curves.kl_columns(arguments['num_steps']), seen)
        for split in _CURVES:
            os.makedirs(self._path(split), exist_ok=True)
            self._events[split] = Events(self._path(split), seen)
        self._events['train'].add_table('configuration', max(seen, 0), arguments)

    def _path(self, name):
        return os.path.join(self._folder, name)

    def _append(self, name, cells):
        with open(self._path(name), 'a') as file:
            file.write(curves.line(cells))

    def bound(self, split, seen, reconstruction, kl, **optimization):
        """A point of the curves: the negative variational bound in nats per image. `optimization` is for the split
        'train' and has the last three of curves.COLUMNS; gradient_norm is the norm before clipping."""
        numbers = {'bound': reconstruction + kl, 'reconstruction': reconstruction, 'kl': kl}
        for name, number in numbers.items():
            self._events[split].add_scalar(f'nats_per_image/{name}', seen, number)
        for name, number in optimization.items():
            self._events[split].add_scalar(f'training/{name}', seen, number)
        numbers.update(optimization)
        self._append('curves.csv', [seen, split, *(numbers.get(name, np.nan) for name in curves.COLUMNS[2:])])

    def kl_per_step(self, seen, kl_t):
        """The analytic KL of each time step on the validation images, in nats per image: a histogram of T bars."""
        self._append('kl_per_step.csv', [seen, *kl_t])
        edges = np.arange(len(kl_t) + 1) + 0.5
        histogram = summary.histogram_summary('time_steps/kl', edges, edges)
        # The KLs replace the counts. None may be 0, or TensorBoard would widen the bar next to it.
        histogram.value[0].histo.bucket[:] = np.maximum(kl_t, 1e-9)
        self._events['validation'].add(seen, histogram)

    def gradients(self, net, seen):
        """A histogram of the last batch's clipped gradient for each part of the network."""
        parts = {}
        for name, parameter in params.of(net).items():
            part = _PARTS.get(name.split('.')[0].split('_to_')[-1], 'initial_states')
            parts.setdefault(part, []).append(parameter.list_grad()[0].asnumpy().ravel())
        for part, arrays in parts.items():
            histogram = summary.histogram_summary(f'training_gradients/{part}', np.concatenate(arrays), bins=50)
            self._events['train'].add(seen, histogram)

    def pictures(self, net, images, seen):
        """Samples from the prior, and reconstructions of the first `images`, (n, height * width), by time step."""
        wanted = {'samples': {'num_samples': _NUM_PREVIEWS}, 'reconstructions': {'images': images[:_NUM_PREVIEWS]}}
        for name, what in wanted.items():
            scale = min(paint.SCALE, max(1, _PREVIEW_SIDE // max(net.image_shape)))  # 60 of them take memory
            sheet = paint.sheet(paint.paint(net, _PREVIEW_SEED, **what), scale)
            pixels = np.asarray(sheet).transpose(2, 0, 1)
            self._events['validation'].add(seen, summary.image_summary(f'pictures/{name}', pixels))

    def result(self, seen, numbers):
        """The result of the run, {name: value}, as a table, and its bound as a scalar."""
        self._events['validation'].add_table('result', seen, numbers)
        self._events['validation'].add_scalar('result/bound_nats_per_image', seen, numbers['bound'])

    def save_curves(self):
        """Draw curves.png. A failure is reported in one line and ends no run."""
        try:
            files.write_whole(self._path('curves.png'), plot.png(plot.figure(curves.read(self._path('curves.csv')))))
        except Exception as error:
            cli.say(f'Note: {self._path("curves.png")} was not drawn: {cli.reason(error)}')

    def sync(self):
        """Return when everything is on the disk, so that no checkpoint is ahead of its log."""
        events = [events.path for events in self._events.values()]
        for path in [self._path('curves.csv'), self._path('kl_per_step.csv'), *events]:
            with open(path, 'a') as file:
                os.fsync(file.fileno())

    def close(self):
        """Close the event files."""
        for events in self._events.values():
            events.close()
