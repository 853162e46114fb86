"""What TensorBoard shows of a run, against the number of training samples seen, and reading it back.

Events lie in two folders, RUN/train and RUN/validation: TensorBoard draws what has the same name in one chart.
"""
import contextlib
import os
import re
import struct
import time

from system import cli, files

import numpy as np
from google.protobuf.message import DecodeError
from mxboard.proto.event_pb2 import Event, SessionLog
from mxboard.proto.summary_pb2 import HistogramProto, Summary, SummaryMetadata
from mxboard.proto.tensor_pb2 import TensorProto
from mxboard.proto.types_pb2 import DT_STRING
from mxboard.record_writer import masked_crc32c

from pictures import curves, paint, render
from runs import storage

SPLITS = ('train', 'validation')
# TensorBoard sorts the groups of charts by name and opens the first two: the curves, and then the pictures.
_BOUND, _PICTURES, _KL_PER_STEP = 'nats_per_image', 'pictures', 'time_steps/kl'
_OPTIMIZATION, _GRADIENTS = 'training', 'training_gradients'
_LAYERS = {'read': 'read', 'enc': 'encoder', 'q': 'posterior', 'dec': 'decoder', 'write': 'write'}
_PREVIEW = 6  # samples and reconstructions per picture
_PREVIEW_SEED = 0  # the same noise at every moment, so that pictures compare
_EVENT_FILE = re.compile(r'events\.out\.tfevents\.(\d{6})')  # numbered: TensorBoard reads in the order of the names
_NUM_BINS = 50


class _EventFile:
    """The events of one sitting of a run.

    Written in the calling thread and handed to the operating system event by event, so that TensorBoard shows them at
    once and a full disk ends in an OSError here. mxboard's SummaryWriter has a thread, which hangs then.
    """

    def __init__(self, folder):
        os.makedirs(folder, exist_ok=True)
        numbers = [int(match[1]) for match in map(_EVENT_FILE.fullmatch, os.listdir(folder)) if match]
        self._path = os.path.join(folder, f'events.out.tfevents.{max(numbers, default=0) + 1:06d}')
        self._file = open(self._path, 'xb', buffering=0)  # noqa: SIM115

    def write(self, **event):
        content = Event(wall_time=time.time(), **event).SerializeToString()
        length = struct.pack('<Q', len(content))
        record = b''.join([length, struct.pack('<I', masked_crc32c(length)),
                           content, struct.pack('<I', masked_crc32c(content))])
        with self._named_errors():
            while record:
                record = record[self._file.write(record):]

    def sync(self):
        with self._named_errors():
            os.fsync(self._file.fileno())

    def close(self):
        with contextlib.suppress(OSError):  # all that matters was synced
            self._file.close()

    @contextlib.contextmanager
    def _named_errors(self):
        try:
            yield
        except OSError as error:
            error.filename = self._path
            raise


class Log:
    """Curves, pictures and histograms of one run, in two event files of its own.

    All methods but `close` raise an OSError that names the file, on a full disk for instance.

    Parameters
    ----------
    folder : str
    arguments : dict
        The run's arguments, written as a table.
    seen : int
        Training samples seen in the checkpoint that the run goes on from, 0 for a new run.
    """

    def __init__(self, folder, arguments, seen=0):
        self._folder, self._files = folder, {}
        try:
            for split in SPLITS:
                file = self._files[split] = _EventFile(os.path.join(folder, split))
                file.write(file_version='brain.Event:2')
                # Readers drop what an earlier sitting logged after the checkpoint that this one goes on from.
                file.write(step=seen + 1, session_log=SessionLog(status=SessionLog.START))
            self._table('train', 'configuration', seen, ('argument', 'value'), arguments)
        except OSError:
            self.close()
            raise

    def _add(self, split, tag, seen, **value):
        self._files[split].write(step=seen, summary=Summary(value=[Summary.Value(tag=tag, **value)]))

    def _histogram(self, split, tag, seen, counts, edges, **sums):
        # The first bucket ends at the left edge.
        histogram = HistogramProto(min=edges[0], max=edges[-1], bucket=[0, *counts], bucket_limit=edges, **sums)
        self._add(split, tag, seen, histo=histogram)

    def _table(self, split, tag, seen, head, rows):
        lines = [' | '.join(str(cell).replace('|', r'\|') for cell in row)
                 for row in (head, ('---',) * len(head), *rows.items())]
        # Not all paths can be encoded.
        tensor = TensorProto(dtype=DT_STRING, string_val=['\n'.join(lines).encode(errors='backslashreplace')])
        metadata = SummaryMetadata(plugin_data=[SummaryMetadata.PluginData(plugin_name='text')])
        self._add(split, tag, seen, tensor=tensor, metadata=metadata)

    def bound(self, split, seen, reconstruction, kl):
        """The negative variational bound and its two parts, in nats per image; `split` is one of SPLITS."""
        for name, value in (('bound', reconstruction + kl), ('reconstruction', reconstruction), ('kl', kl)):
            self._add(split, f'{_BOUND}/{name}', seen, simple_value=value)

    def kl_per_step(self, seen, kl_t):
        """The KL of each time step on the validation images, in nats per image, in one histogram: its bin
        t - 0.5 .. t + 0.5 is as high as the KL of step t."""
        kl_t = np.maximum(kl_t, 0)
        self._histogram('validation', _KL_PER_STEP, seen, kl_t, np.arange(len(kl_t) + 1) + 0.5, num=kl_t.sum(),
                        sum=kl_t @ np.arange(1, len(kl_t) + 1))

    def optimization(self, seen, **numbers):
        """How the training goes: norm of the gradient before clipping (nats), learning rate, speed."""
        for name, value in numbers.items():
            self._add('train', f'{_OPTIMIZATION}/{name}', seen, simple_value=value)

    def gradients(self, net, seen):
        """A histogram per part of the network of the last batch's clipped gradient."""
        parts = {}
        for name, parameter in storage.parameters(net).items():
            part = _LAYERS.get(name.split('.')[0].split('_to_')[-1], 'initial_states')
            parts.setdefault(part, []).append(parameter.list_grad()[0].asnumpy().ravel())
        for part, gradients in parts.items():
            values = np.concatenate(gradients).astype(np.float64)
            counts, edges = np.histogram(values, _NUM_BINS)
            self._histogram('train', f'{_GRADIENTS}/{part}', seen, counts, edges, num=values.size, sum=values.sum(),
                            sum_squares=(values ** 2).sum())

    def pictures(self, net, images, seen):
        """Samples from the prior, and reconstructions of the first of `images` (n, height * width), by time step."""
        wanted = {'samples': {'num_samples': _PREVIEW}, 'reconstructions': {'images': images[:_PREVIEW]}}
        for name, what in wanted.items():
            sheet = paint.sheet(paint.paint(net, _PREVIEW_SEED, **what))
            image = Summary.Image(height=sheet.height, width=sheet.width, colorspace=3,
                                  encoded_image_string=render.png(sheet))
            self._add('validation', f'{_PICTURES}/{name}', seen, image=image)

    def result(self, seen, numbers):
        """What the end of a run found, {name: value}, as a table."""
        self._table('validation', 'result', seen, ('result', 'value'), numbers)

    def save_curves(self):
        """Draw the run's curves, of all its sittings, into curves.png. A matplotlib that cannot draw is told."""
        path, scalars = os.path.join(self._folder, 'curves.png'), read_scalars(self._folder)
        try:
            picture = curves.png(scalars)
        except (ValueError, RuntimeError, ImportError, OSError) as error:  # MPLBACKEND, matplotlibrc
            print(f'Note: {path} was not drawn: {cli.last_line(error)}')
            return
        if picture:
            files.write_whole(path, picture)

    def sync(self):
        """Return when all events are on the disk, so that a checkpoint never knows of more than its log."""
        for file in self._files.values():
            file.sync()

    def close(self):
        """Close the event files. Raises nothing."""
        for file in self._files.values():
            file.close()


class NoLog:
    """Stands in for Log at the workers that write nothing: the same methods, without effect."""

    def _nothing(self, *args, **kwargs):
        """Nothing."""

    bound = kl_per_step = optimization = gradients = pictures = result = save_curves = sync = close = _nothing


def _events(folder):
    """The events in a folder in the order in which they were written; a torn end of a file is left out."""
    names = sorted(entry.name for entry in os.scandir(folder)
                   if _EVENT_FILE.fullmatch(entry.name) and entry.is_file(follow_symlinks=False))
    for name in names:
        # protobuf has three ways to say that bytes are no event, one of them in its C++ version alone.
        with open(os.path.join(folder, name), 'rb') as file, \
                contextlib.suppress(DecodeError, UnicodeDecodeError, SystemError):
            size = os.fstat(file.fileno()).st_size
            while len(header := file.read(12)) == 12:
                length, checksum = struct.unpack('<QI', header)
                if checksum != masked_crc32c(header[:8]) or file.tell() + length + 4 > size:
                    break
                content = file.read(length)
                if file.read(4) != struct.pack('<I', masked_crc32c(content)):
                    break
                yield Event.FromString(content)


def _values(folder, kind):
    """{tag: {samples seen: value}} of one kind ('simple_value' or 'histo'), without what a later sitting took back."""
    found = {}
    for event in _events(folder) if os.path.isdir(folder) else ():
        if event.session_log.status == SessionLog.START:
            found = {tag: {seen: value for seen, value in points.items() if seen < event.step}
                     for tag, points in found.items()}
        for value in event.summary.value:
            if value.HasField(kind):
                found.setdefault(value.tag, {})[event.step] = getattr(value, kind)
    return found


def read_scalars(folder):
    """The curves of a run, from its event files.

    Returns
    -------
    dict
        {split: {name: array (n, 2)}}: training samples seen, and the value there. The names 'bound',
        'reconstruction' and 'kl' (nats per image) are in both splits, those of `Log.optimization` in 'train'.
    """
    return {split: {tag.rpartition('/')[2]: np.array(sorted(points.items())).reshape(-1, 2)
                    for tag, points in _values(os.path.join(folder, split), 'simple_value').items()}
            for split in SPLITS}


def read_kl_per_step(folder):
    """The KL of each time step on the validation images, from a run's event files.

    Returns
    -------
    seen : numpy.ndarray
        Training samples seen at the n validations, shape (n,).
    kl_t : numpy.ndarray
        Nats per image, shape (n, num_steps).
    """
    points = _values(os.path.join(folder, 'validation'), 'histo').get(_KL_PER_STEP, {})
    return np.array(sorted(points)), np.array([points[seen].bucket[1:] for seen in sorted(points)])
