"""The learning curves of a run as a picture."""
import io

import numpy as np

_PANELS = {'bound': 'Negative variational bound', 'reconstruction': 'Reconstruction', 'kl': 'KL'}
_STYLES = {'train': {'color': '#8fb7de', 'linewidth': 1}, 'validation': {'color': '#b2182b', 'linewidth': 1.5}}


def figure(table):
    """Bound, reconstruction and KL over training, as a matplotlib.figure.Figure; `table` is that of curves.csv.

    It is made without pyplot, which keeps a global list of figures.
    """
    import matplotlib.figure  # takes up to a second, which no run should wait for when it starts
    picture = matplotlib.figure.Figure(figsize=(12, 3.6), dpi=100, layout='constrained')
    later = table['samples_seen'] >= table['samples_seen'].max(initial=0) / 10
    for axes, (name, title) in zip(picture.subplots(1, len(_PANELS)), _PANELS.items()):
        for split, style in _STYLES.items():
            points = table[table['split'] == split]
            marker = '.' if len(points) == 1 else None
            axes.plot(points['samples_seen'], points[name], label=split, marker=marker, **style)
        axes.set(title=title, xlabel='training samples', ylabel='nats per image', xlim=(0, None))
        axes.xaxis.set_major_formatter('{x:,.0f}')
        axes.locator_params(axis='x', nbins=5)
        axes.grid(alpha=0.3)
        axes.legend()
        shown = table[name][later & np.isfinite(table[name])]
        if len(shown):  # the first tenth, hundreds of nats above the rest, would flatten it
            margin = 0.05 * np.ptp(shown) or 1
            axes.set_ylim(shown.min() - margin, shown.max() + margin)
    return picture


def png(figure):
    """A matplotlib figure as the bytes of a PNG file."""
    file = io.BytesIO()
    figure.savefig(file, format='png')
    return file.getvalue()
