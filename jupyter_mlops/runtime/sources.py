"""Where inputs come from: this machine's files and mounted claims, HTTP, and whatever fsspec knows."""

import os
import posixpath
import re
import stat
from urllib.parse import unquote, urlsplit

from . import data

PIECE = 4 << 20
#: Most files of one input; a folder with more is better read where it is.
MOST_FILES = 200000
#: Seconds without a byte after which a connection counts as broken.
SILENCE = 60.0
#: What to install for a scheme, where fsspec's own words do not say it.
_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "abfss": "adlfs",
             "az": "adlfs", "wasbs": "adlfs", "hdfs": "pyarrow", "hf": "huggingface_hub"}


def of(path, kind):
    """The source of a path; ``kind``: ``uri_file``, ``uri_folder`` or empty. Raises DataError."""
    name = data.scheme(path)
    if name == "claim":
        return Files(mounted(path), kind, path.rstrip("/"))
    if name == "":
        return Files(data.local(path), kind)
    if name in ("http", "https"):
        return Web(path, kind)
    return Remote(path, kind)


def mounted(path):
    """Where a path of a claim is here. Raises DataError: it is not there."""
    name, inner = data.claim(path)
    root = os.environ.get(data.CLAIMS) or ""
    found = os.path.join(root, name, inner) if inner else os.path.join(root, name)
    if not root or not os.path.exists(found):
        raise data.DataError("claim '%s' has no %s" % (name, inner or "files"))
    return found


class Files:
    """Files of a disk. All sources have ``folder`` and these two methods.

    Args:
        url: under which they are known, where their path is another one in each pod.
    """

    def __init__(self, path, kind, url=""):
        self.path = path
        self.url = url or path
        self.folder = check_kind(path, kind)

    def files(self):
        """[(path below the input, what :meth:`read` takes, what tells versions apart or None, bytes or None)]."""
        if not self.folder:
            return [self._entry(os.path.basename(self.path), self.path, self.url)]
        found = []
        for place, folders, names in os.walk(self.path):
            folders.sort()
            for name in sorted(names):
                path = os.path.join(place, name)
                if stat.S_ISREG(os.stat(path).st_mode) if os.path.exists(path) else False:
                    relative = os.path.relpath(path, self.path)
                    found.append(self._entry(relative, path, self.url + "/" + relative))
            _bounded(found, self.path)
        return found

    @staticmethod
    def _entry(relative, path, url):
        info = os.stat(path)
        return relative, url, "%d %d" % (info.st_size, info.st_mtime_ns), info.st_size

    def read(self, what, at):
        """Pieces of a file from an offset on."""
        with open(self.path + what[len(self.url):], "rb") as f:
            f.seek(at)
            while True:
                piece = f.read(PIECE)
                if not piece:
                    return
                yield piece


def check_kind(path, kind):
    """Whether a path of this machine is a folder; raises DataError when it is not there, or is the other one."""
    if not os.path.exists(path):
        raise data.DataError("there is no %s" % path)
    folder = os.path.isdir(path)
    if kind and folder != (kind == "uri_folder"):
        raise data.DataError("%s is a %s: say type: uri_%s" % (path, *(("folder",) * 2 if folder else ("file",) * 2)))
    if not os.access(path, os.R_OK | (os.X_OK if folder else 0)):
        raise data.DataError("%s cannot be read" % path)
    return folder


class Web:
    """One file over HTTP, with the standard library alone."""

    folder = False

    def __init__(self, url, kind):
        self.url = url
        if kind == "uri_folder":
            raise data.DataError("%s: over HTTP there are files only: say type: uri_file" % data.shown(url))

    def files(self):
        try:
            with self._open("HEAD") as answer:
                head = answer.headers
        except Exception as error:
            if getattr(error, "code", None) not in (403, 405, 501):  # signed URLs are for one method
                raise explain(error, self.url)
            try:
                with self._open("GET") as answer:
                    head = answer.headers
            except Exception as again:
                raise explain(again, self.url)
        size = head.get("Content-Length") if not head.get("Content-Encoding") else None
        version = head.get("ETag") or (head.get("Last-Modified") and "%s %s" % (head.get("Last-Modified"), size))
        name = unquote(posixpath.basename(urlsplit(self.url).path)) or "file"
        return [(re.sub(r"[/\0]", "_", name), self.url, version, int(size) if size and size.isdigit() else None)]

    def read(self, what, at):
        headers = {"Range": "bytes=%d-" % at} if at else {}
        with self._open("GET", headers) as answer:
            skip = at if answer.status != 206 else 0  # a server without ranges begins anew
            while True:
                piece = answer.read1(PIECE)
                if not piece:
                    return
                if skip >= len(piece):
                    skip -= len(piece)
                    continue
                yield piece[skip:]
                skip = 0

    def _open(self, method, headers=()):
        from urllib.request import Request, urlopen

        request = Request(self.url, headers={"User-Agent": "jupyter-mlops", **dict(headers)}, method=method)
        return urlopen(request, timeout=SILENCE)


class Remote:
    """Whatever fsspec has an implementation for: object stores, and other servers."""

    def __init__(self, url, kind):
        self.url = url
        try:
            from fsspec.core import url_to_fs
        except ImportError:
            raise lacking(url, "fsspec")
        try:
            self.fs, self.path = url_to_fs(url)
        except ImportError as error:
            raise lacking(url, str(error))
        except Exception as error:
            if isinstance(error, ValueError) and "rotocol" in str(error):
                raise data.DataError("fsspec knows no %s://" % data.scheme(url))
            raise explain(error, url)
        try:
            info = self.fs.info(self.path)
        except Exception as error:
            raise explain(error, url)
        self.folder = info.get("type") == "directory"
        if kind and self.folder != (kind == "uri_folder"):
            what = "folder" if self.folder else "file"
            raise data.DataError("%s is a %s: say type: uri_%s" % (data.shown(url), what, what))

    def files(self):
        try:
            found = self.fs.find(self.path, detail=True) if self.folder else {self.path: self.fs.info(self.path)}
        except Exception as error:
            raise explain(error, self.url)
        root = self.fs._strip_protocol(self.path).rstrip("/") if self.folder else ""
        entries = []
        for path, info in sorted(found.items()):
            relative = path[len(root):].strip("/") if self.folder else posixpath.basename(path)
            if not relative or ".." in relative.split("/") or path.endswith("/"):
                continue  # a marker of a folder
            entries.append((relative, "%s://%s" % (data.scheme(self.url), path.split("://")[-1]), version(info),
                            info.get("size")))
        _bounded(entries, self.url)
        return entries

    def read(self, what, at):
        with self.fs.open(self.fs._strip_protocol(what), "rb", block_size=PIECE, cache_type="readahead") as f:
            f.seek(at)
            while True:
                piece = f.read(PIECE)
                if not piece:
                    return
                yield piece


def version(info):
    """What an implementation of fsspec tells of a file that is another one when its content is."""
    for name in ("ETag", "etag", "version_id", "generation", "md5Hash", "content_md5", "uid"):
        if info.get(name):
            return "%s %s" % (name.lower(), info[name])
    for name in ("LastModified", "last_modified", "mtime", "updated", "created"):
        if info.get(name):
            return "%s %s" % (info[name], info.get("size"))
    return None


def _bounded(found, path):
    if len(found) > MOST_FILES:
        raise data.DataError("%s has more than %d files: pack them, or use mode: direct" % (
            data.shown(path), MOST_FILES))


# -- what goes wrong, in one line


def lacking(url, told):
    """What to install."""
    name = data.scheme(url)
    package = _PACKAGES.get(name) or (re.findall(r"[iI]nstall (\w[\w-]*)", told) or ["fsspec"])[0]
    if told == "fsspec" and package == "fsspec":
        package = "fsspec and what it needs for %s" % name
    return data.DataError("%s needs the package %s, which the job's Python lacks: add it to environment.pip, or to the"
                          " image" % (data.shown(url), package))


def passes(error):
    """Whether it may go better the next time."""
    if isinstance(error, (data.DataError, FileNotFoundError, PermissionError, IsADirectoryError)):
        return False
    code = getattr(error, "code", None)
    return not (isinstance(code, int) and 400 <= code < 500 and code not in (408, 429))


def explain(error, url):
    """An exception of a store as a DataError of one line."""
    if isinstance(error, data.DataError):
        return error
    place, code = data.shown(url), getattr(error, "code", None)
    name = type(error).__name__
    if isinstance(error, FileNotFoundError) or code in (404, 410):
        return data.DataError("there is nothing at %s" % place)
    if isinstance(error, PermissionError) or code in (401, 403) or "Credential" in name:
        return data.DataError("%s: access is denied: the job's credentials are missing or not enough" % place)
    if isinstance(error, ImportError):
        return lacking(url, str(error))
    return data.DataError("%s cannot be read: %s" % (place, one_line(error)))


def one_line(error):
    """An exception in one line, without what follows a question mark in a URL: that may be a signature."""
    text = " ".join(str(error).split())[:300]
    name = type(error).__name__
    return re.sub(r"(://[^\s?]*)\?\S*", r"\1", "%s: %s" % (name, text) if text else name)
