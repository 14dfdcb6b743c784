//! A machine's log files: bounded, the one before kept as `.1`.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The largest a log grows before it becomes the old one and a new one starts, bytes.
pub const MAX_LOG: u64 = 8 << 20;

/// A file that bytes are appended to, never larger than its limit.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    file: File,
    size: u64,
    limit: u64,
}

impl Log {
    /// Starts a log at `path`; what is there becomes the old one. Makes the folder where it is missing.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn start(path: PathBuf) -> io::Result<Log> {
        Log::start_with(path, MAX_LOG)
    }

    fn start_with(path: PathBuf, limit: u64) -> io::Result<Log> {
        if let Some(folder) = path.parent() {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        }
        let file = fresh(&path)?;
        Ok(Log { path, file, size: 0, limit })
    }

    /// Appends bytes.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.size + bytes.len() as u64 > self.limit {
            self.file = fresh(&self.path)?;
            self.size = 0;
        }
        let kept = &bytes[..bytes.len().min(usize::try_from(self.limit).unwrap_or(usize::MAX))];
        self.file.write_all(kept)?;
        self.size += kept.len() as u64;
        Ok(())
    }
}

fn fresh(path: &Path) -> io::Result<File> {
    let mut old = path.as_os_str().to_owned();
    old.push(".1");
    match std::fs::rename(path, old) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    OpenOptions::new().append(true).create_new(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_log_keeps_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("logs/serial.log");
        Log::start(path.clone()).unwrap().write(b"one").unwrap();
        Log::start(path.clone()).unwrap().write(b"two").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::read(dir.path().join("logs/serial.log.1")).unwrap(), b"one");
    }

    #[test]
    fn a_log_never_takes_more_than_twice_its_limit() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = Log::start_with(dir.path().join("serial.log"), 100).unwrap();
        for _ in 0..50 {
            log.write(&[b'x'; 30]).unwrap();
        }
        log.write(&[b'y'; 1000]).unwrap();
        for entry in std::fs::read_dir(dir.path()).unwrap() {
            assert!(entry.unwrap().metadata().unwrap().len() <= 100);
        }
    }
}
