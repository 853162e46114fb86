"""What TensorBoard shows of a run, written with mxboard, against the number of training samples seen."""
import os
import re
import time

import system  # noqa: F401  (before mxnet)

import numpy as np
from mxboard.event_file_writer import EventsWriter
from mxboard.proto.event_pb2 import Event
from mxboard.proto.summary_pb2 import HistogramProto, Summary
from mxboard.summary import histogram_summary, image_summary, text_summary

from pictures import paint, render

_PREVIEW = 16  # samples and reconstructions per picture
_PREVIEW_SEED = 0  # the same noise at every moment, so that pictures compare
_EVENT_FILE = re.compile(r'events\.out\.tfevents\.[\w.-]+')


class Log:
    """Curves, pictures and histograms of one run, in an event file of its own.

    It is written in the calling thread: mxboard's SummaryWriter keeps every number in memory, and its thread hangs
    the program when the disk is full.

    Parameters
    ----------
    folder : str
    arguments : dict
        The run's arguments, written as a table.
    """

    def __init__(self, folder, arguments):
        self._folder, self._arguments = folder, arguments
        self._events = EventsWriter(os.path.join(folder, 'events'), verbose=False)
        self._events.init_with_suffix(f'.{time.time_ns()}')  # TensorBoard reads in the order of the names
        table = ['| argument | value |', '|---|---|'] + [f'| {name} | {value} |' for name, value in arguments.items()]
        summary = text_summary('configuration', '\n'.join(table))
        summary.value[0].tag = 'configuration'  # add_text of mxboard 0.1.0 forgets it, and TensorBoard then fails
        # First of all: TensorBoard drops what was written before a text with a lower step.
        self._add(summary, 0)

    def _add(self, summary, seen):
        self._events.write_event(Event(wall_time=time.time(), step=seen, summary=summary))

    def _scalar(self, tag, value, seen):
        # Not mxboard's scalar_summary: it makes an array of the number, and NumPy 2.5 no number of an array.
        self._add(Summary(value=[Summary.Value(tag=tag, simple_value=value)]), seen)

    def bound(self, split, seen, reconstruction, kl):
        """The negative variational bound and its two parts, in nats per image."""
        for name, value in (('bound', reconstruction + kl), ('reconstruction', reconstruction), ('kl', kl)):
            self._scalar(f'{name}/{split}', value, seen)

    def kl_per_step(self, seen, kl_t):
        """The KL of each time step on the validation images, in nats per image: as curves, and all in one histogram
        whose bin t - 0.5 .. t + 0.5 is as high as the KL of step t."""
        for t, value in enumerate(kl_t, start=1):
            self._scalar(f'kl_per_step/{t:03d}', value, seen)
        kl_t = np.maximum(kl_t, 0)
        histogram = HistogramProto(min=0.5, max=len(kl_t) + 0.5, num=kl_t.sum(), sum=kl_t.sum(),
                                   bucket_limit=np.arange(len(kl_t) + 1) + 0.5, bucket=[0, *kl_t])
        self._add(Summary(value=[Summary.Value(tag='kl_per_step', histo=histogram)]), seen)

    def optimization(self, seen, **numbers):
        """How the training goes: norm of the gradient before clipping (nats), learning rate, speed."""
        for name, value in numbers.items():
            self._scalar(f'optimization/{name}', value, seen)

    def gradients(self, net, seen):
        """A histogram per parameter of the last batch's clipped gradient."""
        for name, parameter in net._collect_params_with_prefix().items():
            self._add(histogram_summary(f'gradient/{name}', parameter.list_grad()[0].asnumpy(), 50), seen)

    def pictures(self, net, images, seen, contexts):
        """Samples from the prior by time step, and reconstructions below the images they are of."""
        images = images[:_PREVIEW]
        samples = paint.paint(net, _PREVIEW_SEED, contexts, num_samples=_PREVIEW)
        self._picture('samples/by_time_step', paint.sheet(net, samples), seen)
        painted = paint.paint(net, _PREVIEW_SEED, contexts, images=images)
        pairs = np.stack([images, [painting.probabilities[-1] for painting in painted]])
        pairs = pairs.reshape((2, len(images), *net.image_shape))
        self._picture('reconstructions/below_their_originals', render.sheet(pairs), seen)

    def _picture(self, tag, grey, seen):
        self._add(image_summary(tag, grey.astype(np.float32) / 255), seen)

    def flush(self):
        """Hand everything to the disk; mxboard itself only hands it to the operating system, and late."""
        self._events.flush()
        with open(self._events._filename, 'rb') as file:
            os.fsync(file.fileno())

    def sizes(self):
        """What is on the disk now, {event file: bytes}, for `rewind`."""
        self.flush()
        return {name: os.path.getsize(os.path.join(self._folder, name)) for name in _event_files(self._folder)}

    def close(self):
        """Close the event file. Raises nothing: what `flush` has returned for is on the disk."""
        writer, self._events._recordio_writer = self._events._recordio_writer, None  # or mxboard closes it again
        try:
            writer.close()
        except OSError:  # a full disk, which the flush before has told
            writer._writer = None


class NoLog:
    """A log that writes nothing, of the workers that do not."""

    def __getattr__(self, name):
        return lambda *args, **kwargs: None


def _event_files(folder):
    """Names of the event files that are plain files."""
    return sorted(entry.name for entry in os.scandir(folder)
                  if _EVENT_FILE.fullmatch(entry.name) and entry.is_file(follow_symlinks=False))


def rewind(folder, sizes):
    """Take back what was logged after `Log.sizes` returned `sizes`, so that a resumed run's curves have no fold."""
    for name in _event_files(folder):
        path, size = os.path.join(folder, name), sizes.get(name)
        if size is None:
            os.remove(path)
        elif os.path.getsize(path) > size:
            os.truncate(path, size)
