"""A model Hub on this machine, for tests: what huggingface_hub's client calls, on the standard library's http.server.

    with Hub() as hub: subprocess.run([...], env=os.environ | hub.env(home))

It keeps repositories in memory, knows a token that may write, one that may only read, and one of another user, and can cut the next download in the middle.
"""
import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

TOKENS = {"hf_write": ("me", "write"), "hf_read": ("me", "read"), "hf_other": ("other", "write")}  # token -> user and role


@dataclass
class Commit:
    oid: str
    title: str
    files: dict  # path -> content


@dataclass
class Repo:
    id: str
    private: bool = False
    commits: list = field(default_factory=list)
    refs: dict = field(default_factory=dict)  # branch or tag -> oid

    def commit(self, branch, title, files):
        "A new commit with these files at the head of `branch`."
        digest = hashlib.sha1(f"{self.id} {title} {len(self.commits)}".encode())
        for path in sorted(files): digest.update(path.encode() + hashlib.sha256(files[path]).digest())
        self.commits.append(Commit(digest.hexdigest(), title, files))
        self.refs[branch] = digest.hexdigest()
        return self.commits[-1]

    def at(self, revision):
        "The commit of a branch, tag or hash; None if there is none."
        oid = self.refs.get(revision, revision)
        return next((c for c in self.commits if c.oid == oid), None)


class Refused(Exception):
    "An answer that is an error: status, the Hub's code for it, text."


def blob_id(content): return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def sha256(content): return hashlib.sha256(content).hexdigest()


class Hub:
    "The server; `requests` is what was asked for, as (method, path, Range)."
    def __init__(self, lfs=(".safetensors",)):
        self.lfs, self.repos, self.objects, self.requests = lfs, {}, {}, []
        self.cut_at = None  # send so many bytes of the next file that is larger, then hang up
        self.lock = threading.RLock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads, self.server.hub = True, self

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    @property
    def endpoint(self): return f"http://127.0.0.1:{self.server.server_port}"

    def env(self, home, token="hf_write", **more):
        "The environment in which huggingface_hub talks to this server, with a cache of its own."
        return {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(home), "HF_TOKEN": token, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1",
                "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "0", "NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"} | more

    def is_lfs(self, path): return path.endswith(self.lfs)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_): pass

    def do(self):
        url = urlsplit(self.path)
        self.route, self.query, hub = unquote(url.path), parse_qs(url.query), self.server.hub
        self.data = self.read_body()
        hub.requests.append((self.command, self.route, self.headers.get("Range")))
        try:
            for method, pattern, name in ROUTES:
                if self.command in method and (m := re.fullmatch(pattern, self.route)): return getattr(self, name)(**m.groupdict())
            raise Refused(404, None, f"{self.command} {self.route} is not served here")
        except Refused as e:
            status, code, text = e.args
            self.answer({"error": text}, status, {"X-Error-Message": text} | ({"X-Error-Code": code} if code else {}))
        except (BrokenPipeError, ConnectionResetError): self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do

    def read_body(self):
        if "chunked" not in self.headers.get("Transfer-Encoding", ""): return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def json(self): return json.loads(self.data or b"{}")

    def answer(self, content, status=200, headers=None):
        if not isinstance(content, bytes):
            content, headers = json.dumps(content).encode(), {"Content-Type": "application/json"} | (headers or {})
        self.send_response(status)
        for k, v in (headers or {}).items(): self.send_header(k, v)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD": self.wfile.write(content)

    # ---- who may do what

    def user(self):
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in TOKENS: raise Refused(401, None, "Invalid credentials in Authorization header")
        return TOKENS.get(token, (None, None))

    def repo(self, id):
        repo, (name, _) = self.server.hub.repos.get(id), self.user()
        if repo is None or repo.private and name != id.split("/")[0]: raise Refused(404 if name else 401, "RepoNotFound", "Repository not found")
        return repo

    def may_write(self, id):
        name, role = self.user()
        if name is None: raise Refused(401, None, "Invalid username or password.")
        if role != "write" or name != id.split("/")[0]: raise Refused(403, None, f"You don't have the rights to write to {id}: the token of {name} may {role}")

    def commit_at(self, id, revision):
        commit = self.repo(id).at(unquote(revision))
        if commit is None: raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    # ---- repositories

    def whoami(self):
        name, role = self.user()
        if name is None: raise Refused(401, None, "Invalid credentials")
        self.answer({"type": "user", "id": name, "name": name, "orgs": [], "auth": {"type": "access_token", "accessToken": {"displayName": "t", "role": role}}})

    def create(self):
        ask, hub = self.json(), self.server.hub
        id = f"{ask.get('organization') or self.user()[0]}/{ask['name']}"
        self.may_write(id)
        with hub.lock:
            if id in hub.repos: return self.answer({"error": "You already created this model repo", "url": f"{hub.endpoint}/{id}"}, 409)
            hub.repos[id] = Repo(id, ask.get("private") or ask.get("visibility") == "private")
            hub.repos[id].commit("main", "initial commit", {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"})
        self.answer({"url": f"{hub.endpoint}/{id}", "name": id, "id": id})

    def delete(self):
        ask = self.json()
        id = f"{ask.get('organization') or self.user()[0]}/{ask['name']}"
        self.may_write(id)
        self.repo(id)
        del self.server.hub.repos[id]
        self.answer({})

    def info(self, id, revision="main"):
        commit, repo = self.commit_at(id, revision), self.repo(id)
        self.answer({"_id": id, "id": id, "modelId": id, "author": id.split("/")[0], "sha": commit.oid, "private": repo.private, "gated": False, "disabled": False,
                     "tags": [], "downloads": 0, "likes": 0, "siblings": [{"rfilename": p} for p in commit.files]})

    def entry(self, commit, path):
        content = commit.files[path]
        lfs = {"lfs": {"oid": sha256(content), "size": len(content), "pointerSize": 134}} if self.server.hub.is_lfs(path) else {}
        return {"type": "file", "path": path, "size": len(content), "oid": blob_id(content)} | lfs

    def tree(self, id, revision, path):
        commit = self.commit_at(id, revision)
        self.answer([self.entry(commit, p) for p in commit.files if p.startswith(path or "")])

    def paths_info(self, id, revision):
        commit = self.commit_at(id, revision)
        asked = self.json().get("paths") if self.headers.get("Content-Type", "").startswith("application/json") else parse_qs(self.data.decode()).get("paths", [])
        self.answer([self.entry(commit, p) for p in asked if p in commit.files])

    def refs(self, id):
        refs = self.repo(id).refs
        self.answer({"branches": [{"name": k, "ref": f"refs/heads/{k}", "targetCommit": v} for k, v in refs.items()], "tags": [], "converts": []})

    def commits(self, id, revision):
        self.commit_at(id, revision)
        self.answer([{"id": c.oid, "title": c.title, "message": "", "authors": [], "date": "2024-01-01T00:00:00.000Z"} for c in reversed(self.repo(id).commits)])

    def branch(self, id, revision):
        self.may_write(id)
        repo = self.repo(id)
        if revision in repo.refs: return self.answer({"error": "Reference already exists"}, 409)
        repo.refs[revision] = self.commit_at(id, self.json().get("startingPoint", "main")).oid
        self.answer({})

    # ---- uploads

    def validate_yaml(self): self.answer({"errors": [], "warnings": []})

    def preupload(self, id, revision):
        self.may_write(id)
        commit, kind = self.commit_at(id, revision), lambda p: "lfs" if self.server.hub.is_lfs(p) else "regular"
        self.answer({"files": [{"path": f["path"], "uploadMode": kind(f["path"]), "shouldIgnore": False,
                                "oid": self.entry(commit, f["path"])["oid"] if f["path"] in commit.files else None} for f in self.json()["files"]]})

    def lfs_batch(self, id):
        self.may_write(id)
        hub = self.server.hub
        def actions(oid): return {} if oid in hub.objects else {"actions": {"upload": {"href": f"{hub.endpoint}/lfs/{oid}"}, "verify": {"href": f"{hub.endpoint}/lfs/verify"}}}
        self.answer({"transfer": "basic", "objects": [o | actions(o["oid"]) for o in self.json()["objects"]]})

    def lfs_put(self, oid):
        if sha256(self.data) != oid: raise Refused(400, None, "the content doesn't have this hash")
        self.server.hub.objects[oid] = self.data
        self.answer({})

    def lfs_verify(self):
        ask = self.json()
        if len(self.server.hub.objects.get(ask["oid"], b"")) != ask["size"]: raise Refused(404, None, "no such object")
        self.answer({})

    def commit(self, id, revision):
        self.may_write(id)
        hub, lines = self.server.hub, [json.loads(line) for line in self.data.splitlines() if line]
        with hub.lock:
            repo, files = self.repo(id), dict(self.commit_at(id, revision).files)
            for line in lines[1:]:
                value = line["value"]
                if line["key"] == "file": files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile": files[value["path"]] = hub.objects[value["oid"]]
                else: files = {p: c for p, c in files.items() if p != value["path"] and not p.startswith(value["path"].rstrip("/") + "/")}
            new = repo.commit(revision, lines[0]["value"]["summary"], files)
        self.answer({"success": True, "commitOid": new.oid, "commitUrl": f"{hub.endpoint}/{id}/commit/{new.oid}", "hookOutput": ""})

    # ---- downloads

    def resolve(self, id, revision, path):
        commit = self.commit_at(id, revision)
        if path not in commit.files: raise Refused(404, "EntryNotFound", "Entry not found")
        content, hub, head = commit.files[path], self.server.hub, {"X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes"}
        if not hub.is_lfs(path): return self.send_file(content, head | {"ETag": f'"{blob_id(content)}"'})
        hub.objects[oid := sha256(content)] = content
        self.answer(b"", 302, head | {"ETag": f'"{oid}"', "X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(len(content)),
                                      "Location": f"http://localhost:{hub.server.server_port}/lfs/{oid}"})  # another host, as a CDN is

    def lfs_get(self, oid): self.send_file(self.server.hub.objects[oid], {"ETag": f'"{oid}"', "Accept-Ranges": "bytes"})

    def send_file(self, content, headers):
        hub, start, status = self.server.hub, 0, 200
        if m := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or ""):
            start, status = int(m[1]), 206
            headers = headers | {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        if self.command == "HEAD" or hub.cut_at is None or len(content) - start <= hub.cut_at: return self.answer(content[start:], status, headers)
        part, hub.cut_at = content[start:start + hub.cut_at], None
        self.send_response(status)
        for k, v in headers.items(): self.send_header(k, v)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(part)
        self.wfile.flush()
        self.close_connection = True  # in the middle


ID, REV = r"(?P<id>[^/]+/[^/]+)", r"(?P<revision>[^/]+|refs/pr/\d+)"
ROUTES = [  # methods, path, name of the answering function
    ("GET", "/api/whoami-v2", "whoami"),
    ("POST", "/api/repos/create", "create"),
    ("DELETE", "/api/repos/delete", "delete"),
    ("POST", "/api/validate-yaml", "validate_yaml"),
    ("POST", f"/api/models/{ID}/preupload/{REV}", "preupload"),
    ("POST", f"/{ID}\\.git/info/lfs/objects/batch", "lfs_batch"),
    ("POST", "/lfs/verify", "lfs_verify"),
    ("PUT", "/lfs/(?P<oid>[0-9a-f]{64})", "lfs_put"),
    ("GET HEAD", "/lfs/(?P<oid>[0-9a-f]{64})", "lfs_get"),
    ("POST", f"/api/models/{ID}/commit/{REV}", "commit"),
    ("POST", f"/api/models/{ID}/branch/{REV}", "branch"),
    ("POST", f"/api/models/{ID}/paths-info/{REV}", "paths_info"),
    ("GET", f"/api/models/{ID}/tree/{REV}(?:/(?P<path>.*))?", "tree"),
    ("GET", f"/api/models/{ID}/refs", "refs"),
    ("GET", f"/api/models/{ID}/commits/{REV}", "commits"),
    ("GET", f"/api/models/{ID}/revision/{REV}", "info"),
    ("GET", f"/api/models/{ID}", "info"),
    ("GET HEAD", f"/{ID}/resolve/{REV}/(?P<path>.+)", "resolve"),
]
