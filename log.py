"""What TensorBoard shows of a run, written with mxboard, against the number of training samples seen."""
import numpy as np
from mxboard.summary import text_summary

import render
import sample

_PREVIEW = 16  # samples and reconstructions per picture
_PREVIEW_SEED = 0  # the same noise at every moment, so that pictures compare


class Log:
    """Curves, pictures and histograms of one run.

    Parameters
    ----------
    writer : mxboard.SummaryWriter
    arguments : dict
        The run's arguments, written as a table.
    """

    def __init__(self, writer, arguments):
        self._writer, self._arguments = writer, arguments
        table = ['| argument | value |', '|---|---|'] + [f'| {name} | {value} |' for name, value in arguments.items()]
        summary = text_summary('configuration', '\n'.join(table))
        summary.value[0].tag = 'configuration'  # add_text of mxboard 0.1.0 forgets it, and TensorBoard then fails
        # First of all: TensorBoard drops what was written before a text with a lower step.
        writer._file_writer.add_summary(summary, 0)

    def bound(self, split, seen, reconstruction, kl):
        """The negative variational bound and its two parts, in nats per image."""
        for name, value in (('bound', reconstruction + kl), ('reconstruction', reconstruction), ('kl', kl)):
            self._writer.add_scalar(f'{name}/{split}', float(value), seen)

    def kl_per_step(self, seen, kl_t):
        """The KL of each time step on the validation images, in nats per image."""
        for t, value in enumerate(kl_t, start=1):
            self._writer.add_scalar(f'kl_per_step/{t:03d}', float(value), seen)

    def optimization(self, seen, norm, samples_per_second):
        """Norm of the gradient before clipping (nats), and speed."""
        self._writer.add_scalar('optimization/gradient_norm', float(norm), seen)
        self._writer.add_scalar('optimization/samples_per_second', float(samples_per_second), seen)

    def gradients(self, net, seen):
        """A histogram per parameter of the last batch's clipped gradient."""
        for name, parameter in net._collect_params_with_prefix().items():
            self._writer.add_histogram(f'gradient/{name}', parameter.grad().asnumpy(), seen, bins=50)

    def pictures(self, net, images, seen, ctx):
        """Samples from the prior by time step, and reconstructions below the images they are of."""
        arguments, images = self._arguments, images[:_PREVIEW]
        samples = sample.paint(net, arguments, seed=_PREVIEW_SEED, ctx=ctx, num_samples=_PREVIEW)
        self._picture('samples/by_time_step', sample.sheet(samples, arguments), seen)
        painted = sample.paint(net, arguments, seed=_PREVIEW_SEED, ctx=ctx, images=images)
        pairs = np.stack([images, [painting['probabilities'][-1] for painting in painted]])
        pairs = pairs.reshape((2, len(images), arguments['input_height'], arguments['input_width']))
        self._picture('reconstructions/below_their_originals', render.sheet(pairs), seen)

    def _picture(self, tag, grey, seen):
        self._writer.add_image(tag, grey.astype(np.float32) / 255, seen)

    def flush(self):
        """Hand everything to the operating system; mxboard itself does so late, and not at exit."""
        self._writer.flush()
