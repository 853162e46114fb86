"""Adam on normalized weights, against Adam on v and g with gradients from autograd."""
import system  # noqa: F401  (before mxnet)

import numpy as np
import pytest
from mxnet import autograd, gluon, nd

from runs.optimizer import NormalizedAdam

X = nd.array(np.random.RandomState(0).normal(size=(20, 4)))
Y = nd.array(np.random.RandomState(1).normal(size=(20, 3)))


def updates(parameters, optimizer, predict):
    """Minimize the squared error of `predict` in seven steps, in the middle at another rate."""
    trainer = gluon.Trainer(parameters, optimizer, kvstore=None)
    for rate in (0.1, 0.1, 0.1, 0.3, 0.3, 0.1, 0.1):
        with autograd.record():
            loss = nd.square(predict() - Y).sum()
        loss.backward()
        trainer.set_learning_rate(rate)
        trainer.update(1)


@pytest.mark.parametrize('scale', [0.01, 1, 10])
def test_weights_are_trained_as_v_and_g(scale):
    w, b = (nd.array(scale * np.random.RandomState(k).normal(size=shape)) for k, shape in ((2, (3, 4)), (3, (3,))))
    dense = gluon.nn.Dense(3, in_units=4)
    dense.initialize()
    dense.weight.set_data(w), dense.bias.set_data(b)
    updates(dense.collect_params(), NormalizedAdam(), lambda: dense(X))

    v, g, bias = (gluon.Parameter(name, shape=shape) for name, shape in (('v', (3, 4)), ('g', (3, 1)), ('b', (3,))))
    for parameter, value in (v, w), (g, nd.norm(w, axis=1, keepdims=True)), (bias, b):
        parameter.initialize()
        parameter.set_data(value)

    def weight():
        return g.data() * v.data() / nd.sqrt(nd.sum(nd.square(v.data()), axis=1, keepdims=True))

    updates([v, g, bias], 'adam', lambda: nd.dot(X, weight().T) + bias.data())
    np.testing.assert_allclose(dense.weight.data().asnumpy(), weight().asnumpy(), rtol=1e-4, atol=1e-5 * scale)
    np.testing.assert_allclose(dense.bias.data().asnumpy(), bias.data().asnumpy(), rtol=1e-4, atol=1e-5 * scale)
    assert abs(dense.weight.data() - w).asnumpy().max() > 0.3
