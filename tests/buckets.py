"""A server on this machine that is Google Cloud Storage for a test."""

import socketserver
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus

import pytest
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import objects
from gcp_storage_emulator.server import create_server


def with_generations(handle):
    """What the server leaves out, and arrays need: to read or write an object if, and only if, it
    still is as it was before."""

    def handler(request, response, storage, *args):
        place = request.params["bucket_name"], request.params.get("object_id")
        if place[1] is None:
            place = place[0], request.query["name"][0]
        try:
            generation = storage.get_file_obj(*place)["generation"]
        except NotFound:
            generation = "0"
        if request.query.get("ifGenerationMatch", [generation]) != [generation]:
            response.status = HTTPStatus.PRECONDITION_FAILED
        elif request.query.get("ifGenerationNotMatch") == [generation]:
            response.status = HTTPStatus.NOT_MODIFIED
        else:
            response["x-goog-generation"] = generation
            return handle(request, response, storage, *args)
        return None

    return handler


@contextmanager
def bucket_server() -> Iterator[None]:
    """While it lasts, `gs://` leads to a server of this process."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("download", "_media_upload"):
            patch.setattr(objects, name, with_generations(getattr(objects, name)))
        # Of more than five connections at once, it would drop some, which wait a second then.
        patch.setattr(socketserver.TCPServer, "request_queue_size", 128)
        with create_server("localhost", 0, in_memory=True, default_bucket="runs") as server:
            address = f"http://localhost:{server._api._httpd.server_port}"
            for name, value in {
                "STORAGE_EMULATOR_HOST": address,
                "TENSORSTORE_GCS_HTTP_URL": address,
                "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
                "GOOGLE_CLOUD_PROJECT": "none",
                "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # asks for the kind of bucket
            }.items():
                patch.setenv(name, value)
            yield
