"""What touches the machine. Imported before mxnet: it sets what mxnet's threads do."""
from system import devices  # noqa: F401
