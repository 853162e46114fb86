"""What touches the machine. Importing it sets what must be so before mxnet is imported."""
from system import compat

compat.say_little_at_the_end()
compat.check()  # before anything is imported that is not Python's own

from system import devices  # noqa: E402

devices.set_environment()
compat.check_libraries()  # after the threads are set, which libgomp reads when it is loaded
compat.set_back()
