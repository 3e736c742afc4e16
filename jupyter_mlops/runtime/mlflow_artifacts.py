"""MLflow's ``mlflow-artifacts:`` repository for our workspace: our token, patience, and flat memory.

In a job nobody waits for a server that is away: what is logged then goes to the spool, and so does all that the rank
logs after it until that is delivered.

For any other tracking server it is MLflow's own repository, unchanged.
"""

import os
import posixpath
from urllib.parse import quote, urlparse

from mlflow.entities import FileInfo
from mlflow.store.artifact.artifact_repo import verify_artifact_path
from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository
from mlflow.tracking._tracking_service.utils import get_tracking_uri
from mlflow.utils.rest_utils import augmented_raise_for_status, http_request

from . import arrival, locate, mlflow_stores, record, spool
from . import mlflow_http as http

_SERVICE = "/api/2.0/mlflow-artifacts/artifacts"
#: Bytes read and written at once.
CHUNK = 1 << 20


class ArtifactRepository(MlflowArtifactsRepository):
    """Artifacts behind our proxy, which keeps them on local disk: whole files in one request each."""

    def __init__(self, artifact_uri, tracking_uri=None, registry_uri=None):
        tracking_uri = tracking_uri or get_tracking_uri()
        super().__init__(artifact_uri, tracking_uri=tracking_uri, registry_uri=registry_uri)
        # A host in the artifact URI itself is somebody else's server.
        self._ours = not urlparse(artifact_uri).netloc and locate.is_ours(tracking_uri)
        self._root = self.artifact_uri.partition(_SERVICE)[2].strip("/")

    def _endpoint(self, path=None):
        return quote(posixpath.join("/", mlflow_stores.real_ids(self._root), path or ""))

    def _owner(self):
        """Whose artifacts these are, as entries of the spool tell it, and the folder in them; None for any other."""
        parts = self._root.split("/")
        if len(parts) >= 4 and parts[1] == "models" and parts[3] == "artifacts":
            return {"model_id": parts[2]}, "/".join(parts[4:])
        if len(parts) >= 3 and parts[2] == "artifacts":
            return {"run_id": parts[1]}, "/".join(parts[3:])
        return None

    def _settle(self):
        """Before reading: have delivered what this rank has left in the spool."""
        here = record.place() if self._ours else None
        if here is not None and spool.pending(here.job.spool, here.rank):
            mlflow_stores.await_spool()

    def _request(self, method, path, **options):
        def call(creds_of):
            return http_request(creds_of(_SERVICE), self._endpoint(path), method, max_retries=0,
                                raise_on_status=False, **options)

        response = http.persist(call)
        augmented_raise_for_status(response)
        return response

    @property
    def _host_creds(self):
        return http.host_creds(_SERVICE + "/" + self._root) if self._ours else super()._host_creds

    @property
    def _artifact_server_host_creds(self):
        return http.host_creds() if self._ours else super()._artifact_server_host_creds

    def _is_multipart_upload_enabled(self):
        return False if self._ours else super()._is_multipart_upload_enabled()

    def _is_multipart_download_enabled(self):
        return False if self._ours else super()._is_multipart_download_enabled()

    def log_artifact(self, local_file, artifact_path=None):
        if not self._ours:
            return super().log_artifact(local_file, artifact_path)
        verify_artifact_path(artifact_path)
        if http.silent():
            return None
        here, owner = record.place(), self._owner()
        if here is None or owner is None:
            return self._upload(local_file, artifact_path)
        (who, folder), local = owner, spool.is_local(owner[0].get("model_id", ""))
        if not local and not spool.pending(here.job.spool, here.rank):
            try:
                with http.brief():
                    return self._upload(local_file, artifact_path)
            except http.Away:
                arrival.note_away()
        content = dict(who, kind="artifact", path=posixpath.join(folder, artifact_path or "").strip("/"))
        spool.put(here.job.spool, here.rank, content, local_file)
        return None

    def _upload(self, local_file, artifact_path):
        from mlflow.utils.mime_type_utils import _guess_mime_type

        name = os.path.basename(local_file)
        target = posixpath.join(artifact_path, name) if artifact_path else name
        with open(local_file, "rb") as f:

            def call(creds_of):
                f.seek(0)
                return http_request(
                    creds_of(_SERVICE), self._endpoint(target), "PUT", data=f, max_retries=0, raise_on_status=False,
                    extra_headers={"Content-Type": _guess_mime_type(name)}, timeout=http.timeout(),
                )

            augmented_raise_for_status(http.persist(call))
        return None

    def log_artifacts(self, local_dir, artifact_path=None):
        if self._ours and http.silent():
            return None
        return super().log_artifacts(local_dir, artifact_path)

    def list_artifacts(self, path=None):
        if not self._ours:
            return super().list_artifacts(path)
        self._settle()
        root = mlflow_stores.real_ids(self._root)
        folder = posixpath.join(root, path) if path else root

        def call(creds_of):
            return http_request(creds_of(_SERVICE), "", "GET", params={"path": folder}, max_retries=0,
                                raise_on_status=False)

        response = http.persist(call)
        augmented_raise_for_status(response)
        found = []
        for f in response.json().get("files", []):
            name = f["path"]
            if name.startswith("/") or ".." in name.split("/"):
                continue
            size = f.get("file_size")
            whole = posixpath.join(path, name) if path else name
            found.append(FileInfo(whole, f["is_dir"], int(size) if size is not None else None))
        # A path that is a file lists itself; MLflow wants nothing then.
        if path and len(found) == 1 and not found[0].is_dir and (
            found[0].path == posixpath.join(path, posixpath.basename(path))
        ):
            return []
        return sorted(found, key=lambda f: f.path)

    def _download_file(self, remote_file_path, local_path):
        if not self._ours:
            return super()._download_file(remote_file_path, local_path)
        import requests

        self._settle()

        tries = 3
        while True:
            response = self._request("GET", remote_file_path, stream=True)
            tries -= 1
            try:
                with open(local_path, "wb") as f:
                    for chunk in response.iter_content(chunk_size=CHUNK):
                        f.write(chunk)
                return None
            except requests.exceptions.RequestException:  # broke off in the middle
                if not tries:
                    os.unlink(local_path)
                    raise
            finally:
                response.close()

    def delete_artifacts(self, artifact_path=None):
        if not self._ours:
            return super().delete_artifacts(artifact_path)
        if not http.silent():
            self._request("DELETE", artifact_path).close()
        return None
