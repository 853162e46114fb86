"""Event files for TensorBoard, written by mxboard."""
import os
import time

from system import compat

import numpy as np

try:
    from mxboard import summary
    from mxboard.event_file_writer import EventsWriter
    from mxboard.proto.event_pb2 import Event, SessionLog
except TypeError:  # of protobuf
    raise compat.Unsupported("mxboard needs protobuf 3.20 (pip install 'protobuf<3.21'), and cannot be imported in a "
                             'process that has imported tensorboard') from None


class Events(EventsWriter):
    """A new event file in `folder`; from earlier ones, TensorBoard drops all steps above `seen`.

    It is written in the calling thread: the thread of mxboard's SummaryWriter hangs on a full disk. Raises OSError.
    """

    def __init__(self, folder, seen):
        # TensorBoard reads files in the order of their names, and clocks can be set back: the number comes first.
        super().__init__(os.path.join(folder, f'{len(os.listdir(folder)):06d}.events'), verbose=False)
        try:
            self._write(file_version='brain.Event:2')
        except ValueError as error:  # into which mxboard turns the OSError
            raise error.__context__ from None
        self._write(step=seen + 1, session_log=SessionLog(status=SessionLog.START))
        self.path = self._filename

    def _write(self, **event):
        self.write_event(Event(wall_time=time.time(), **event))
        self.flush()

    def add(self, seen, content):
        """Write what a function of mxboard.summary returns."""
        self._write(step=seen, summary=content)

    def add_scalar(self, tag, seen, number):
        """Write a number."""
        self.add(seen, summary.scalar_summary(tag, np.array(number)))  # mxboard's own array would be one of shape (1,)

    def add_table(self, tag, seen, rows):
        """Write a dict as a table of two columns."""
        cells = [(name, str(value).replace('|', '\\|')) for name, value in rows.items()]
        table = '\n'.join(map(' | '.join, [('name', 'value'), ('---', '---'), *cells]))
        text = table.encode(errors='backslashreplace').decode()  # a path need not be valid text
        content = summary.text_summary(tag, text)
        content.value[0].tag = tag  # mxboard leaves it empty
        content.value[0].tensor.ClearField('tensor_shape')  # or TensorBoard shows a table in a table
        self.add(seen, content)

    def close(self):
        """Close the file. Never raises."""
        try:
            super().close()
        except OSError:  # `add` raised it before: discard what the full disk cannot take
            with open(os.devnull, 'wb') as null:
                os.dup2(null.fileno(), self._recordio_writer._writer.fileno())
            super().close()
