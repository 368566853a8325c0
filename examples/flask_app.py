"""The export on Flask: `flask --app examples/flask_app.py run`, or any WSGI server."""

from flask import Flask, Response, abort, send_file

from asyncjobs.adapters.flask import accept, mount
from exports import export, exported, jobs

app = Flask(__name__)
mount(app, jobs, prefix="/api/jobs")


@app.post("/api/exports")
def create_export() -> Response:
    """Submit an export; `accept` checks the body against the handler's annotation."""
    return accept(export)


@app.get("/exports/<name>")
def download(name: str) -> Response:
    """Download a finished export."""
    path = exported(name)
    if path is None:
        abort(404)
    return send_file(path.absolute(), as_attachment=True, download_name=name)
