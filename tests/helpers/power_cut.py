"""A power cut, imitated: what was not fsynced is not there any more.

The strictest disk that POSIX allows: the bytes of a file are those of its last fsync, the names in a folder
are those of the folder's last fsync. What was there when the imitation began is safe.
"""

import os
from pathlib import Path


class Disk:
    "Records every fsync below a folder; `after_cut` writes what a power cut would leave."

    def __init__(self, root: Path, monkeypatch):
        self.root, self.files, self.folders, self.held = root, {}, {}, []
        self.moments: list[tuple[dict, dict]] = []  # what is safe after each fsync
        for folder in (root, *(p for p in root.rglob("*") if p.is_dir())):
            self._keep(os.open(folder, os.O_RDONLY))
        for file in (p for p in root.rglob("*") if p.is_file()):
            self._keep(os.open(file, os.O_RDONLY))
        self.real = os.fsync
        monkeypatch.setattr(os, "fsync", self._fsync)

    def _fsync(self, handle: int) -> None:
        self.real(handle)
        self._keep(os.dup(handle))
        self.moments.append((dict(self.files), {k: dict(v) for k, v in self.folders.items()}))

    def _keep(self, handle: int) -> None:
        "Note what is safe; the handle stays open, so that nothing else gets its number."
        self.held.append(handle)
        number, path = os.fstat(handle).st_ino, f"/proc/self/fd/{handle}"
        if os.path.isdir(path):
            with os.scandir(path) as entries:
                self.folders[number] = {e.name: (e.inode(), e.is_dir()) for e in entries}
        else:
            self.files[number] = Path(path).read_bytes()

    def close(self) -> None:
        for handle in self.held:
            os.close(handle)

    def after_cut(self, out: Path, moment: int = -1) -> Path:  # an index of `moments`
        "The folder as it is found after a power cut at that moment."
        files, folders = self.moments[moment] if self.moments else (self.files, self.folders)
        self._restore(os.stat(self.root).st_ino, out, files, folders)
        return out

    def _restore(self, number: int, out: Path, files: dict, folders: dict) -> None:
        out.mkdir(parents=True)
        for name, (child, is_folder) in folders.get(number, {}).items():
            if is_folder:
                self._restore(child, out / name, files, folders)
            else:
                (out / name).write_bytes(files.get(child, b""))  # a name without its bytes
