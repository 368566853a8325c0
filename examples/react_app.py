"""The export on FastAPI, with a page on React: `uvicorn --app-dir examples react_app:app`.

The page is at http://127.0.0.1:8000/react/ and takes React from a CDN.
"""

from pathlib import Path

from fastapi.staticfiles import StaticFiles

from fastapi_app import app

app.mount("/react", StaticFiles(directory=Path(__file__).parent / "react", html=True))
