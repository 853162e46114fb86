"""The README's first line on every Python of this machine, with a short run; the results must be the same on all.

    python .ci/interpreters.py              # all
    python .ci/interpreters.py 3.12 3.13    # some

Each gets a fresh copy of the repository and a fresh environment, made by the words of the README. There it trains for
seconds, samples, evaluates, asks TensorBoard over HTTP, and imports the package from elsewhere. A Python that is too
old or too new must be turned away with one line. The Pythons are those of the path and of pyenv, one per minor version.
"""
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SUPPORTED = [f'3.{minor}' for minor in range(9, 14)]
OTHERS = ['3.6', '3.7', '3.8', '3.14', '3.15']
SCRIPTS = 'train_mnist.py', 'sample.py', 'evaluate.py'
SHORT = '--attention -hh 28 -ww 28 -s 4 -u 16 -l 4 -t 1280 -f 640 -v 64'  # after the README's flags, and instead
NOISE = re.compile(r'Warning|Traceback|^(ERROR|DEPRECATION)', re.MULTILINE)
ENVIRONMENT = {**os.environ, 'OMP_NUM_THREADS': '1', 'PIP_DISABLE_PIP_VERSION_CHECK': '1',
               'PYTHONDONTWRITEBYTECODE': '1', 'no_proxy': '127.0.0.1'}


def find(version):
    """The path of a Python of this minor version that can make environments, or None."""
    pyenv = Path(os.environ.get('PYENV_ROOT', Path.home() / '.pyenv')) / 'versions'
    for path in [shutil.which(f'python{version}'), *sorted(pyenv.glob(f'{version}.*/bin/python{version}'))]:
        code = 'import ensurepip, sys, venv; print("%d.%d" % sys.version_info[:2], sys.executable)'
        asked = path and subprocess.run([path, '-c', code], capture_output=True, text=True, timeout=60)
        if asked and asked.returncode == 0 and asked.stdout.split()[0] == version:  # pyenv's shims may answer nothing
            return asked.stdout.split()[1]
    return None


def run(command, folder, path):
    """Run a shell command; returns its output, and ends the check with it if it fails or is noisy."""
    done = subprocess.run(['bash', '-c', command], cwd=folder, env={**ENVIRONMENT, 'PATH': path}, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=900)
    if done.returncode or NOISE.search(done.stdout):
        sys.exit(f'{command}\n{done.stdout}exit code {done.returncode}')
    return done.stdout


def first_line():
    """The parts of the README's first line: some that install, and one that trains."""
    line, = re.findall(r'^python3 -m venv .* && \S+/python train_mnist\.py .*$', (ROOT / 'README.md').read_text(), re.M)
    *install, training = line.split(' && ')
    return ' && '.join(install), training


def ask_tensorboard(folder, run_name, path):
    """Start TensorBoard on the results and wait until it serves the run's curves; returns how many."""
    log = folder / 'tensorboard.log'
    command = ['.venv/bin/tensorboard', '--logdir=results', '--host=127.0.0.1', '--port=0']
    deadline = time.monotonic() + 120
    with open(log, 'w') as file, subprocess.Popen(command, cwd=folder, env={**ENVIRONMENT, 'PATH': path}, stdout=file,
                                                  stderr=file) as process:
        try:
            while time.monotonic() < deadline and process.poll() is None:
                time.sleep(0.2)
                address = re.search(r'http://127\.0\.0\.1:\d+/', log.read_text())
                if not address:
                    continue
                with urllib.request.urlopen(address.group() + 'data/plugin/scalars/tags', timeout=30) as answer:
                    tags = json.load(answer)
                if 'nats_per_image/bound' in tags.get(f'{run_name}/validation', {}):
                    return sum(map(len, tags.values()))
        finally:
            process.kill()
    sys.exit(f'TensorBoard did not serve the curves of {run_name}:\n{log.read_text()}')


def check(python, folder):
    """Install, train, sample, evaluate, look: returns (a line that tells of it, what must be equal on all)."""
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns('.*', '__pycache__', 'results', 'data', 'shared'))
    (folder / 'bin').mkdir()
    (folder / 'bin' / 'python3').symlink_to(python)  # the README says python3
    path = f'{folder / "bin"}:{os.environ["PATH"]}'
    install, training = first_line()
    started = time.monotonic()
    run(install, folder, path)
    installed = time.monotonic() - started
    run(f'{training} {SHORT}', folder, path)
    run_folder, = (folder / 'results').iterdir()
    run(f'.venv/bin/python sample.py {run_folder}', folder, path)
    evaluation = run(f'.venv/bin/python evaluate.py {run_folder}', folder, path)
    bound = re.search(r'variational bound .*?: (.*? nats)', evaluation).group(1)
    run('.venv/bin/pip install --quiet -e .', folder, path)
    run(f'cd / && {folder}/.venv/bin/python -c "import core, runs.params"', folder, path)
    curves = ask_tensorboard(folder, run_folder.name, path)
    gifs = [file.read_bytes() for file in folder.rglob('*.gif') if file.relative_to(folder).parts[0] != 'assets']
    code = ('import sys; sys.path.insert(0, "."); import system, platform, mxnet, numpy, PIL; '
            'print(f"Python {platform.python_version()}, NumPy {numpy.__version__}, Pillow {PIL.__version__}")')
    versions = run(f"exec .venv/bin/python -c '{code}'", folder, path).strip()
    pictures = hashlib.sha256(b''.join(sorted(gifs))).hexdigest()[:8]
    return (f'{versions}: installed in {installed:.0f} s, test bound {bound}, {len(gifs)} GIFs ({pictures}), '
            f'TensorBoard serves {curves} curves'), (bound, len(gifs), pictures)


def check_refusal(python):
    """Every script must end with one line that names the Python, and exit code 2."""
    for script in SCRIPTS:
        done = subprocess.run([python, ROOT / script, '--help'], capture_output=True, text=True, timeout=60,
                              env=ENVIRONMENT)
        line = re.fullmatch(rf'{script}: error: this is Python .*\n', done.stderr)
        if done.returncode != 2 or done.stdout or not line:
            sys.exit(f'{python} {script}: exit code {done.returncode}\n{done.stdout}{done.stderr}')
    return f'{python}: turned away by {", ".join(SCRIPTS)} with one line'


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the folders go in any case
    found = {version: find(version) for version in sys.argv[1:] or SUPPORTED}
    missing = [version for version, python in found.items() if not python]
    if missing:
        print(f'not found on this machine, so not run: Python {", ".join(missing)}', flush=True)
    results = set()
    for python in filter(None, found.values()):
        with tempfile.TemporaryDirectory() as folder:
            line, result = check(python, Path(folder) / 'draw')
        print('ok', line, flush=True)
        results.add(result)
        if len(results) > 1:
            sys.exit(f'not the same on all: {results}')
    for python in filter(None, map(find, OTHERS)):
        print('ok', check_refusal(python), flush=True)


if __name__ == '__main__':
    main()
