"""The learning curves of a run as a picture, so that nobody needs a server to see how it went."""
import io

import numpy as np

_PANELS = {'bound': 'Negative variational bound', 'reconstruction': 'Reconstruction', 'kl': 'KL'}
_STYLES = {'train': {'color': '#8fb7de', 'linewidth': 1}, 'validation': {'color': '#b2182b', 'linewidth': 1.5}}


def figure(curves):
    """Bound, reconstruction and KL, each of the training batches and of the validation images.

    Parameters
    ----------
    curves : dict
        What `runs.log.read_scalars` returns.

    Returns
    -------
    matplotlib.figure.Figure
        Of its own: pyplot, with its windows and its list of figures, is not touched.
    """
    from matplotlib.figure import Figure  # takes up to a second, which the start of a training need not wait for
    picture = Figure(figsize=(12, 3.6), dpi=100, layout='constrained')
    for axes, (name, title) in zip(picture.subplots(1, len(_PANELS)), _PANELS.items()):
        drawn = {split: curves[split][name] for split in _STYLES if len(curves[split].get(name, ()))}
        for split, points in drawn.items():
            axes.plot(*points.T, label=split, marker='.' if len(points) == 1 else None, **_STYLES[split])
        axes.set(title=title, xlabel='training samples', ylabel='nats per image', xlim=(0, None))
        axes.xaxis.set_major_formatter(lambda number, _: f'{number:,.0f}')
        axes.locator_params(axis='x', nbins=5)
        axes.grid(alpha=0.3)
        if drawn:
            _leave_out_the_start(axes, [points[:, 1] for points in drawn.values()])
            axes.legend()
    return picture


def _leave_out_the_start(axes, curves):
    """The first steps, hundreds of nats above the rest, would flatten all that follows; the ends stay in view."""
    curves = [values[np.isfinite(values)] for values in curves]
    values = np.concatenate(curves)
    if len(values):
        low, usual, high = np.quantile(values, [0, 0.95, 1])
        high = min(high, max(usual + 0.5 * (usual - low), *(curve[-1] for curve in curves if len(curve))))
        margin = 0.05 * (high - low) or 1.
        axes.set_ylim(low - margin, high + margin)


def png(curves):
    """The figure as the bytes of a PNG file; None where there are no points yet."""
    if not any(len(points) for split in curves.values() for points in split.values()):
        return None
    from matplotlib import style
    file = io.BytesIO()
    with style.context('default'):  # a user's own settings may want what is not there, LaTeX for instance
        figure(curves).savefig(file, format='png')
    return file.getvalue()
