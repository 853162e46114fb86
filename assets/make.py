"""Make the README's pictures and a compact model folder from a run.

    python -m assets.make RUN_DIR NAME

Writes beside this file: NAME/ (config.json and best.safetensors in half precision, for sample.py and evaluate.py), and
of that very model NAME_0.gif ... NAME_9.gif (the first ten samples of seed 0), NAME_reconstructions.png (the first
four test images) and NAME_kl.png (the KL of every time step over training).
"""
import glob
import os
import shlex
import struct
import sys

from system import cli

import mxnet as mx
import numpy as np
from mxboard.proto.event_pb2 import Event
from PIL import Image, ImageDraw, ImageFont

from dataset import stream
from pictures import paint, render
from runs import arguments, storage

FOLDER = os.path.dirname(os.path.abspath(__file__))
_NUM_SAMPLES, _NUM_IMAGES = 10, 4


def compact_model(run_dir, folder):
    """The run's best parameters in half precision, with its config.json."""
    net, config, _ = storage.load_net(run_dir, [mx.cpu()])
    os.makedirs(folder, exist_ok=True)
    storage.save_params(folder, 'best', net, dtype='float16')
    storage.write_config(folder, without_paths(config))


def without_paths(config):
    """The same with the default folders: where the data and the run were on one machine is nobody else's."""
    defaults = arguments.parse_args(cli.Parser(), [])
    folders = {'data_dir': defaults.data_dir, 'logdir': defaults.logdir}
    config = {**config, 'arguments': {**config['arguments'], **folders}, 'command': shorter(config['command'])}
    if 'resumed' in config:
        config['resumed'] = [{**resumed, 'command': shorter(resumed['command'])} for resumed in config['resumed']]
    return config


def shorter(command):
    words = shlex.split(command)
    for flag in ('--data_dir', '--logdir'):
        if flag in words:
            at = words.index(flag)
            del words[at:at + 2]
    if '--resume' in words:
        words[words.index('--resume') + 1] = 'RUN_DIR'
    return shlex.join(words)


def reconstructions(net, arguments):
    """Rows of canvases with their windows, and the original."""
    test = stream.load(arguments['dataset'], arguments['data_dir'], net.image_shape, ['test'])['test'][:_NUM_IMAGES]
    images = stream.evaluation_images(test, arguments['binarization'])
    return paint.sheet(net, paint.paint(net, 0, [mx.cpu()], images=images))


def kl_table(run_dir):
    """Training samples (n,) and the KL per time step at each of them (n, num_steps), from the run's event files."""
    values = {}
    for path in sorted(glob.glob(os.path.join(glob.escape(run_dir), 'events.out.tfevents.*'))):
        with open(path, 'rb') as file:
            while len(header := file.read(12)) == 12:  # length, and its checksum
                event = Event.FromString(file.read(struct.unpack('<Q', header[:8])[0]))
                file.read(4)
                values.update({(event.step, int(value.tag[len('kl_per_step/'):])): value.simple_value
                               for value in event.summary.value if value.tag.startswith('kl_per_step/')})
    seen = sorted({step for step, _ in values})
    num_steps = max(t for _, t in values)
    return np.array(seen), np.array([[values[step, t] for t in range(1, num_steps + 1)] for step in seen])


def kl_figure(seen, table, width=640, height=256, left=56, bottom=40, top=24):
    """The table as a picture: training samples to the right, time steps upwards, the brighter the more nats."""
    most = float(np.quantile(table, 0.99))
    grey = np.uint8(255 * np.clip(table.T[::-1] / most, 0, 1))
    figure = Image.new('L', (left + width + 16, top + height + bottom), 255)
    figure.paste(Image.fromarray(grey).resize((width, height), Image.NEAREST), (left, top))
    draw, font = ImageDraw.Draw(figure), ImageFont.load_default(13)
    draw.text((left, 4), f'KL per time step on the validation images: black 0, white {most:.1f} nats', 0, font)
    for t in (1, len(table[0]) // 2, len(table[0])):
        draw.text((left - 8, top + height * (1 - (t - 0.5) / len(table[0]))), f'{t}', 0, font, anchor='rm')
    draw.text((4, top + height // 4), 'step', 0, font)
    for fraction in (0, 0.5, 1):
        at = seen[round(fraction * (len(seen) - 1))]
        draw.text((left + fraction * width, top + height + 4), f'{at:,}', 0, font,
                  anchor=('la', 'ma', 'ra')[round(2 * fraction)])
    draw.text((left + width // 2, top + height + 22), 'training samples', 0, font, anchor='ma')
    return figure


def main(run_dir, name):
    folder = os.path.join(FOLDER, name)
    compact_model(run_dir, folder)
    net, _, _ = storage.load_net(folder, [mx.cpu()])
    arguments = storage.read_config(run_dir)['arguments']  # they know where the data is
    samples = paint.paint(net, 0, [mx.cpu()], num_samples=_NUM_SAMPLES)
    paint.write_gifs(net, samples, output_dir=FOLDER, prefix=name, scale=paint.SCALE)
    render.save_png(f'{folder}_reconstructions.png', reconstructions(net, arguments))
    render.save_png(f'{folder}_kl.png', kl_figure(*kl_table(run_dir)))


if __name__ == '__main__':
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
