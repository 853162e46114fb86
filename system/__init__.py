"""Command line, devices and files. Importing this package prepares for `import mxnet`."""
from system import compat

compat.install_excepthook()
compat.check()  # before anything is imported that is not in Python's library

from system import devices  # noqa: E402

devices.set_environment()
compat.restore_numpy_names()
