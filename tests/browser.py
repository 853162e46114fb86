"""TensorBoard, and a headless Chromium to look at it. Both listen on the loopback only, and end with their contexts.

Chromium is told what to do over HTTP, by chromedriver (the WebDriver protocol).
"""
import base64
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.parse
import urllib.request

from commands import TIME_OUT, wait_for

_CHROMIUM = ('chromium', 'chromium-browser', 'google-chrome')
_FLAGS = ('--headless', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--disable-quic', '--no-first-run',
          '--disable-background-networking', '--disable-component-update', '--disable-sync', '--hide-scrollbars',
          '--window-size=1600,2300')
_OPEN = urllib.request.build_opener(urllib.request.ProxyHandler({})).open


def missing():
    """Why no Browser can start here, or None."""
    if not any(map(shutil.which, _CHROMIUM)):
        return 'no chromium on PATH (Debian: apt-get install chromium chromium-driver)'
    return None if shutil.which('chromedriver') else 'no chromedriver on PATH (Debian: apt-get install chromium-driver)'


@contextlib.contextmanager
def served(argv, pattern):
    """Start a server, yield what `pattern` finds in its output, and end the server."""
    with tempfile.TemporaryFile('w+') as log, subprocess.Popen(
            argv, stdout=log, stderr=log, start_new_session=True) as process:
        try:
            def found():
                log.seek(0)
                return re.search(pattern, log.read())

            yield wait_for(found, lambda: process.poll() is None).group(1)
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # and what it has started


@contextlib.contextmanager
def tensorboard(logdir, run, *flags):
    """A TensorBoard that has read all of the finished run at `run`: its address, and a function that asks it."""
    def ask(path, **query):
        with _OPEN(f'{url}data/{path}?{urllib.parse.urlencode(query)}', timeout=TIME_OUT) as response:
            content = response.read()
        return content if response.headers.get_content_type().startswith('image/') else json.loads(content)

    def loaded():
        try:
            return 'result' in ask('plugin/text/tags').get(f'{run}/validation', ())  # the last event of a run
        except urllib.error.HTTPError:  # the fast reader is not there yet
            return False

    argv = ['--logdir', str(logdir), '--port', '0', '--host', '127.0.0.1', *flags]
    with served([sys.executable, '-m', 'tensorboard.main', *argv], r'(http://127\.0\.0\.1:\d+/)') as url:
        wait_for(loaded)
        yield url, ask


class Browser:
    """One page in a window of its own."""

    def __init__(self, port, profile):
        chromium = next(filter(None, map(shutil.which, _CHROMIUM)))
        flags = [*_FLAGS, f'--user-data-dir={profile}']
        self._url = f'http://127.0.0.1:{port}/session'
        session = self._ask('', capabilities={'alwaysMatch': {
            'goog:chromeOptions': {'binary': chromium, 'args': flags}, 'goog:loggingPrefs': {'browser': 'ALL'}}})
        self._url += f'/{session["sessionId"]}'

    def _ask(self, path, method='POST', **content):
        data = json.dumps(content).encode() if method == 'POST' else None
        request = urllib.request.Request(self._url + path, data, {'Content-Type': 'application/json'}, method=method)
        with _OPEN(request, timeout=TIME_OUT) as answer:
            return json.load(answer)['value']

    def open(self, url):
        self._ask('/url', url=url)

    def run(self, script, *args):
        """What the JavaScript function body returns."""
        return self._ask('/execute/sync', script=script, args=args)

    def screenshot(self):
        """A PNG of the window."""
        return base64.b64decode(self._ask('/screenshot', 'GET'))

    def console(self):
        """The lines of the console since the last call: (level, message)."""
        return [(entry['level'], entry['message']) for entry in self._ask('/se/log', type='browser')]

    def quit(self):
        self._ask('', 'DELETE')


@contextlib.contextmanager
def browser():
    """A Browser, which ends with the context."""
    profile = tempfile.mkdtemp()
    try:
        with served(['chromedriver', '--port=0'], r'started successfully on port (\d+)') as port:
            page = Browser(port, profile)
            try:
                yield page
            finally:
                page.quit()
    finally:
        shutil.rmtree(profile, ignore_errors=True)
