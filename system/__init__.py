"""What touches the machine. Importing it sets what must be so before mxnet is imported."""
from system import devices

devices.set_environment()
