//! An initial RAM file system in the kernel's "newc" cpio format (Documentation/driver-api/early-userspace/buffer-format),
//! written the same way every time: fixed owners and times, entries in the order they were added.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::hollow::{hollow, linked};
use crate::media::Kernel;

/// File types of the mode field (stat(2)).
const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;

/// Builds the archive in memory.
#[derive(Debug, Default)]
pub struct Initramfs {
    archive: Vec<u8>,
    inode: u32,
    folders: BTreeSet<String>,
    programs: BTreeSet<String>,
}

impl Initramfs {
    /// An empty archive.
    pub fn new() -> Self {
        Self::default()
    }

    /// An archive with the static busybox in /bin, `/bin/sh`, and the usual mount points.
    pub fn with_busybox() -> Result<Self> {
        let mut fs = Self::new();
        for folder in ["dev", "proc", "sys", "tmp", "run", "mnt"] {
            fs.folder(folder);
        }
        let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| Path::new(path).exists());
        let busybox =
            busybox.context("busybox is missing: install the package busybox-static, or run './dev setup'")?;
        fs.copy("bin/busybox", Path::new(busybox), 0o755)?;
        fs.symlink("bin/sh", "busybox");
        Ok(fs)
    }

    /// Adds a folder and the folders above it; one that is there already stays.
    pub fn folder(&mut self, path: &str) {
        if path.is_empty() || self.folders.contains(path) {
            return;
        }
        self.parent_of(path);
        self.folders.insert(path.to_owned());
        self.entry(path, DIRECTORY | 0o755, &[]);
    }

    /// Adds a file with these permissions.
    pub fn file(&mut self, path: &str, content: &[u8], permissions: u32) {
        self.parent_of(path);
        self.entry(path, REGULAR | permissions, content);
    }

    /// Adds a copy of a file of this machine.
    pub fn copy(&mut self, path: &str, from: &Path, permissions: u32) -> Result<()> {
        let content = fs::read(from).with_context(|| format!("could not read {}", from.display()))?;
        self.file(path, &content, permissions);
        Ok(())
    }

    /// Adds a program of this machine with every library that it is linked with, at their own paths. One that is there
    /// already is added once.
    pub fn program(&mut self, path: &Path) -> Result<()> {
        linked(path)?.iter().map(|(_, file)| file.as_path()).chain([path]).try_for_each(|file| self.at_its_path(file))
    }

    /// Adds a program that needs no more than the libraries of these names; the others that it is linked with are hollow.
    pub fn program_with_only(&mut self, path: &Path, libraries: &[&str]) -> Result<()> {
        let hollow = hollow(path, libraries)?;
        for name in &hollow.names {
            self.file(&format!("usr/lib/{name}"), &hollow.library, 0o755);
        }
        hollow.kept.iter().map(PathBuf::as_path).chain([path]).try_for_each(|file| self.at_its_path(file))
    }

    fn at_its_path(&mut self, file: &Path) -> Result<()> {
        let inside = file.to_str().context("a path")?.trim_start_matches('/').to_owned();
        if self.programs.insert(inside.clone()) {
            self.copy(&inside, file, 0o755)?;
        }
        Ok(())
    }

    /// Adds a symbolic link.
    pub fn symlink(&mut self, path: &str, target: &str) {
        self.parent_of(path);
        self.entry(path, SYMLINK | 0o777, target.as_bytes());
    }

    /// Adds the kernel's modules with all that they need to /modules, and their names in loading order, one a line, in
    /// /modules/order.
    pub fn modules(&mut self, kernel: &Kernel, names: &[&str]) -> Result<()> {
        let mut order = String::new();
        for (name, content) in kernel.modules(names)? {
            self.file(&format!("modules/{name}.ko"), &content, 0o644);
            order += &format!("{name}\n");
        }
        self.file("modules/order", order.as_bytes(), 0o644);
        Ok(())
    }

    /// Writes the finished archive.
    pub fn write(mut self, path: &Path) -> Result<()> {
        self.entry("TRAILER!!!", 0, &[]);
        fs::write(path, &self.archive).with_context(|| format!("could not write the initramfs {}", path.display()))
    }

    fn parent_of(&mut self, path: &str) {
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.folder(parent);
        }
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.inode += 1;
        let links = if mode & DIRECTORY != 0 { 2 } else { 1 };
        // ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check
        let fields = [self.inode, mode, 0, 0, links, 0, content.len() as u32, 0, 0, 0, 0, path.len() as u32 + 1, 0];
        self.archive.extend_from_slice(b"070701");
        for field in fields {
            self.archive.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.archive.extend_from_slice(path.as_bytes());
        self.archive.push(0);
        self.pad();
        self.archive.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.archive.resize(self.archive.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpio_reads_back_what_was_added_with_the_folders_above_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("initramfs");
        let mut fs = Initramfs::new();
        fs.file("etc/deep/name", b"hello", 0o640);
        fs.symlink("etc/link", "deep/name");
        fs.write(&path).unwrap();
        let cpio = std::process::Command::new("cpio")
            .args(["--extract", "--make-directories", "--quiet", "--no-preserve-owner"])
            .current_dir(folder.path())
            .stdin(fs::File::open(&path).unwrap())
            .status()
            .unwrap();
        assert!(cpio.success());
        assert_eq!(fs::read_to_string(folder.path().join("etc/link")).unwrap(), "hello");
    }

    #[test]
    fn the_same_content_gives_the_same_bytes() {
        let build = || {
            let mut fs = Initramfs::new();
            fs.file("a/b", b"content", 0o600);
            fs.archive
        };
        assert_eq!(build(), build());
    }
}
