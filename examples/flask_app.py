"""The export on Flask: `flask --app examples/flask_app.py run`, or any WSGI server."""

from flask import Flask, Response

from asyncjobs.adapters.flask import accept, mount
from exports import export, jobs

app = Flask(__name__)
mount(app, jobs, prefix="/api/jobs")


@app.post("/api/exports")
def create_export() -> Response:
    """Submit an export; `accept` checks the body against the handler's annotation."""
    return accept(export)
